"""The training and the evaluation on an emulated GPU give what they give on the CPU.

float32, as bf16 rounds otherwise under the two autocasts. Both train by the PyTorch references, one step (slow) by the
interpreted kernels; the boxes of the evaluation are the kernels' on the emulated GPU.
"""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from engine import evaluate, train
from engine.run.log import read_metrics
from tests.conftest import ROOT, TINY
from tests.fake_gpu import run

TRAINED = ROOT / "tests" / "before"  # a run that finds texts, and its pages
SETTINGS = (
    *TINY,
    f"data.train={TRAINED}/pages/train",
    f"data.val={TRAINED}/pages/val",
    "data.image_size=[64,64]",
    "trainer.precision=float32",
    "trainer.ema=true",
    "trainer.precise_bn=2",
    "trainer.kernels=reference",  # the interpreter takes seconds a step
    "models.optimizer.lr=1e-4",  # at the preset's 4e-3 a last bit grows to 1e-3 of the loss in six steps
    "post.bin_thresh=0.9",  # an untrained network's noise is no region
)
SHAPES = {"quad": ["post.shape=quad"], "polygon": ["post.shape=polygon", "post.connectivity=4"]}
LOSSES = ("loss", "prob_loss", "thresh_loss", "binary_loss")


def commands(folder: Path) -> list[list[str]]:
    """Four steps; two more with two batches each, from the checkpoint; two evaluations of another run."""
    training = [*SETTINGS, f"run_root={folder}", "name=run", "resume=auto"]
    judging = [f"checkpoint={TRAINED}/run", f"data.val={TRAINED}/pages/val", f"run_root={folder}"]
    judging.append("trainer.precision=float32")
    return [
        ["engine.train", *training, "trainer.max_steps=4"],
        ["engine.train", *training, "trainer.max_steps=6", "trainer.accumulate=2", "data.batch_size=1"],
        *(["engine.evaluate", *judging, *shape, f"output={folder}/{name}.json"] for name, shape in SHAPES.items()),
    ]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """What the same commands left, on the CPU and on the emulated GPU."""
    one, other = (tmp_path_factory.mktemp(name) for name in ("cpu", "gpu"))
    run.emulated(*[word for command in commands(other) for word in (*command, ",")])
    for module, *arguments in commands(one):
        main = {"engine.train": train.main, "engine.evaluate": evaluate.main}[module]
        assert main([*arguments, "trainer.device=cpu"]) == 0
    return one, other


def steps(folder: Path) -> list[dict]:
    """The records of a run's steps."""
    return [r for r in read_metrics(folder / "metrics.jsonl") if r["kind"] == "train"]


def test_losses_are_the_cpus(folders):
    on_cpu, on_gpu = (steps(folder / "run") for folder in folders)
    assert [r["step"] for r in on_cpu] == [r["step"] for r in on_gpu] == list(range(1, 7))
    assert [r["loss"] for r in on_gpu[:3]] == [r["loss"] for r in on_cpu[:3]]
    for one, other in zip(on_cpu, on_gpu, strict=True):
        for name in LOSSES:
            assert other[name] == pytest.approx(one[name], rel=1e-6), (one["step"], name)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-5)


@pytest.mark.slow
def test_a_step_by_the_kernels_is_the_cpus(tmp_path):
    settings = [*SETTINGS, f"run_root={tmp_path}", "trainer.max_steps=1", "trainer.kernels=triton"]
    run.emulated("engine.train", *settings, "name=gpu")
    assert train.main([*settings, "name=cpu", "trainer.device=cpu"]) == 0
    one, other = (steps(tmp_path / name) for name in ("cpu", "gpu"))
    assert [one[0][name] for name in LOSSES] == [other[0][name] for name in LOSSES]


@pytest.mark.parametrize("part", ["model", "ema", "optimizer"])
def test_checkpoints_are_the_cpus(folders, part):
    """With BatchNorm's statistics among them, which two batches have estimated anew."""
    one, other = (load_file(folder / "run" / "checkpoints" / "last" / f"{part}.safetensors") for folder in folders)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        apart = (tensor.double() - other[name].double()).norm()
        assert apart <= 1e-3 * tensor.double().norm() + 1e-6, name


@pytest.mark.parametrize("shape", SHAPES)
def test_an_evaluation_counts_what_it_counts_on_the_cpu(folders, shape):
    one, other = (json.loads((folder / f"{shape}.json").read_text()) for folder in folders)
    assert 0 < one["hmean"] < 1
    for times in ("seconds", "images_per_second"):
        one.pop(times), other.pop(times)
    assert one == other
