import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from tiny_gpu import ARGUMENTS, TINY

from bench.gpu import __main__, step
from tests.conftest import DEVICE, ROOT


@pytest.mark.parametrize("what", ["eager", "compiled", "plain loop"])
def test_steps_are_timed(what, no_compiler, monkeypatch):
    monkeypatch.setattr(step, "STEPS", 2)
    ((name, figures),) = step.rows(what, TINY)
    assert name == what and figures["end"]
    assert figures["images_per_second"] > 0 and figures["model_tflop_s"] > 0
    assert ("| part of the step |" in figures.get("text", "")) == (what == "compiled")
    assert (figures.get("kept_images_per_second", 0) > 0) == (what != "plain loop")


def test_the_words_of_an_entry_are_settings():
    w44 = SimpleNamespace(pages=16, side=1280, encoder="hrnet_w44", device=DEVICE)
    seen = {what: step.settings(w44, what) for section, what in __main__.PLAN if section == "step"}
    assert not seen["eager"].trainer.compile and seen["compiled"].trainer.compile
    assert seen["compiled, blocks"].speed.scope == "blocks"
    assert seen["compiled, 64 channels"].models.encoder.pad_widths == "64"
    assert seen["compiled, half the activations"].speed.memory_budget == 0.5
    few = seen["compiled, 2 pages, graphs"]
    assert few.data.batch_size == 2 and few.cuda_graphs and not seen["compiled, 2 pages"].cuda_graphs
    changed = [what for what in seen if what.startswith("compiled, ")]
    assert len({repr(seen[what]) for what in changed}) == len(changed), "two entries measure the same"


def test_workers_fit_into_shared_memory(monkeypatch):
    monkeypatch.setattr(step.shutil, "disk_usage", lambda path: SimpleNamespace(free=64 << 20))
    assert step.loader_workers(16, 315 << 20) == 0 and step.loader_workers(16, 1 << 20) == 14


def test_a_step_needs_torch_timm_and_opencv_alone():
    """Without DALI, OpenCV loads the pages; without pyclipper, our reference draws the plain loop's targets."""
    others = ["omegaconf", "wandb", "shapely", "scipy", "safetensors", "rich", "matplotlib", "pyclipper", "nvidia.dali"]
    code = (
        "import sys\n"
        f"for name in {others}: sys.modules[name] = None\n"
        "import importlib.util as u\n"
        f"real = u.find_spec; u.find_spec = lambda name, *a: None if name in {others} else real(name, *a)\n"
        "from bench.gpu import __main__ as gpu, step\n"
        "step.STEPS = 2\n"
        f"sys.exit(sum(gpu.child('step', what, {ARGUMENTS}) for what in ('plain loop', 'eager')))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    rows = [json.loads(line[4:]) for line in done.stdout.splitlines() if line.startswith("ROW ")]
    assert [row["of"] for row in rows] == ["plain loop", "eager"]
    assert all(row["images_per_second"] > 0 and "OpenCV" in row["loader"] for row in rows)
