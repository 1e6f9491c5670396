"""Shared by the tests: a tiny detector's settings, and processes as a user starts them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import forked
import pytest

# One of several processes (pytest -n): a second thread only waits for a core (0.8 images/s where one thread gave 2.1).
# The mark goes, as pytest-benchmark measures nothing where it sees it, here and in the pytest that a test starts.
if os.environ.pop("PYTEST_XDIST_WORKER", None):
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # after OMP_NUM_THREADS is set

# Under `nohup ... &` the shell has SIGINT ignored, in all processes that tests start too: Ctrl-C is none there.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Without a GPU the kernels' tests run Triton's interpreter, which is chosen when a kernel is imported; with one the
# same tests run the compiled kernels.
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"

ROOT = Path(__file__).resolve().parent.parent
SUPPORT = ROOT / "tests" / "support"  # what several tests share

# Files that take longest as a whole, the longest first. Begun last, one of two processes waited minutes for the other.
LONGEST = (
    "test_readme", "faults/test_signals", "training/test_step", "model/test_forward", "db_loss/test_kernel",
    "test_geometry", "engine/test_train", "test_norms", "test_before", "test_gpu", "test_norm_relu", "test_labelling",
    "test_driver", "test_golden", "test_onnx_file", "test_precise_bn", "test_distributed", "db_targets/test_kernel",
    "test_progressive", "test_outputs", "test_attempt",
)  # fmt: skip

# The smallest run that has every part of a real one: 8 synthetic pages, 4 steps an epoch, 2 epochs.
TINY = (
    "preset=demo",
    "data.image_size=[96,128]",
    "data.synthetic_size=[120,150]",
    "data.synthetic_train=8",
    "data.synthetic_val=4",
    "data.batch_size=2",
    "data.threads=1",
    "models.encoder.name=lcnet_035",
    "models.decoder.inner_channels=8",
    "models.decoder.output_channels=4",
    "models.head.hidden_channels=4",
    "trainer.max_epochs=2",
    "trainer.log_every=1",
    "trainer.ema=false",
    "eval.every_epochs=1",
    "trainer.overlays=1",
    "trainer.threads=1",
)


def pytest_configure(config):
    if hasattr(config.option, "loadscopereorder"):  # pytest-xdist's, which puts files of many tests first
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    """The longest files first; the others in their order."""

    def place(item):
        file = item.path.relative_to(ROOT).with_suffix("").as_posix()
        return next((rank for rank, name in enumerate(LONGEST) if file.endswith(name)), len(LONGEST))

    items.sort(key=place)


def run_module(module: str, *arguments: str, ranks: int = 0, cwd=None, timeout: float = 240, check: bool = False):
    """Runs `python -m module ...` from `cwd` (torchrun with `ranks` processes when above 0), output as text."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)  # a user's process has none
    if ranks:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
        done = subprocess.run(
            [*torchrun, "-m", module, *arguments], cwd=cwd, env=environment, capture_output=True, text=True,
            timeout=timeout, check=False,
        )  # fmt: skip
    else:
        done = forked.run([module, *arguments], cwd=cwd or Path.cwd(), env=environment, timeout=timeout)
    if check:
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def run_file(path: Path, *arguments: str, cwd: Path, timeout: float = 240):
    """Runs `python FILE ...` from `cwd` in an environment where the project is not installed, output as text."""
    environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "PYTHONPATH")}
    environment["OMP_NUM_THREADS"] = "1"
    return forked.run([str(path), *arguments], cwd=cwd, env=environment, timeout=timeout, root=ROOT)


@pytest.fixture
def tiny() -> tuple[str, ...]:
    """Settings of the smallest run."""
    return TINY


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The run folder of one finished tiny training, made once for all tests."""
    from engine import train

    folder = tmp_path_factory.mktemp("trained")
    assert train.main([*TINY, "name=run", f"run_root={folder}/runs"]) == 0
    return folder / "runs" / "run"
