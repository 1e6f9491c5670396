"""A loss or gradient that is no number on one rank: skipped on all, its inputs kept, then rollback or stop."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from engine.checkpoint import store
from engine.config.load import load_config
from engine.distributed import Ranks
from engine.training import faults

from . import harness
from .harness import Outcome


def run(folder: Path, name: str, fault: dict, *more: str, ranks: int = 2) -> tuple[int, str, Path]:
    """(exit code, output, run folder) of a run with a planted fault."""
    arguments = [*harness.SETTINGS, f"run_root={folder}", f"name={name}", *more]
    env = {"FAULT": json.dumps(fault)} if fault else {}
    job = harness.start(arguments, folder, ranks=ranks, module="tests.faults.inject", env=env)
    return harness.finish(job), harness.output(job), folder / name


def skip_scenario(folder: Path, kind: str) -> Outcome:
    """Three steps, two of them in a row, are spoilt on rank 1; the checkpoints around them tell what changed."""
    bad = [3, 7, 8]
    settings = ("trainer.max_steps=9", "trainer.checkpoint_every_steps=1", "trainer.keep_last=20", "trainer.ema=false")
    code, said, folder = run(folder, kind, {"kind": kind, "rank": 1, "steps": bad}, *settings)
    assert code == 0, said
    parts = {}
    for path in harness.checkpoints(folder):
        step = store.load_state(path)["step"]
        parts[step] = {k: v for part in ("model", "optimizer") for k, v in store.load_part(path, part).items()}
    survived = 0
    for step in range(2, 9):
        same = [k for k, v in parts[step].items() if torch.equal(v, parts[step - 1][k])]
        if step in bad:
            assert len(same) == len(parts[step]), f"step {step}: {set(parts[step]) - set(same)} changed"
            survived += 1
        else:
            assert len(same) < len(parts[step]) / 2
    told = harness.metrics(folder, "incident")
    assert [r["step"] for r in told] == bad and "(2 in a row)" in told[2]["text"]
    train = {r["step"]: r for r in harness.metrics(folder)}
    assert all((train[s]["skipped"] == 1) == (s in bad) and (train[s]["loss"] is None) == (s in bad) for s in train)
    return Outcome(
        "NaN or infinity in the loss or gradient of one rank", len(bad), survived, note="skipped on all ranks"
    )


@pytest.mark.parametrize(
    "kind", ["nan", pytest.param("inf", marks=pytest.mark.slow), pytest.param("gradient", marks=pytest.mark.slow)]
)
def test_a_bad_step_changes_nothing_on_any_rank_and_its_inputs_are_kept(tmp_path, kind):
    assert skip_scenario(tmp_path, kind).survived == 3
    dumps = sorted(p.name for p in (tmp_path / kind / "nonfinite").iterdir())
    rank = 0 if kind == "gradient" else 1  # nobody's own loss is to blame for a bad gradient
    assert dumps == [f"step_{step:08d}_rank{rank}" for step in (3, 7, 8)]
    target = tmp_path / kind / "nonfinite" / dumps[0]
    info = json.loads((target / "info.json").read_text())
    assert info["step"] == 3 and len(info["pages"]) == 2  # one a forward pass
    assert all(Path(page).is_file() for pages in info["pages"] for page in pages)
    batch = safetensors.torch.load_file(target / "batch_0.safetensors")
    assert batch["image"].shape == (1, 3, 64, 96) and batch["image"].isfinite().all() and len(batch["points_xy"])


@pytest.mark.slow
def test_too_many_in_a_row_stop_the_run_with_one_line(tmp_path):
    fault = {"kind": "nan", "rank": 0, "steps": list(range(4, 100))}
    code, said, _ = run(tmp_path, "stop", fault, "trainer.nonfinite_limit=3", ranks=0)
    assert code == 2 and "Traceback" not in said
    assert said.count("error: diverged at step 6: 3 steps in a row were skipped") == 1, said
    assert "trainer.on_nonfinite=rollback" in said


@pytest.mark.slow
def test_rollback_goes_on_from_the_last_checkpoint_with_a_lower_rate(tmp_path):
    settings = ("trainer.on_nonfinite=rollback", "trainer.nonfinite_limit=3", "trainer.checkpoint_every_steps=4")
    constant = ("models.scheduler.name=constant", "models.scheduler.warmup_epochs=0", "models.optimizer.lr=0.001")
    # calls are counted over the whole process: after the rollback from step 10 to 8, step 9 is the process's eleventh
    fault = {"kind": "nan", "rank": 1, "steps": [8, 9, 10]}
    code, said, folder = run(tmp_path, "back", fault, *settings, *constant)
    assert code == 0, said
    assert "rollback 1, learning rate times 0.5" in said and "resumed from" in said
    told = [(r["step"], r["text"].split(":")[0]) for r in harness.metrics(folder, "incident")]
    assert told == [
        (8, "skipped"),
        (9, "skipped"),
        (10, "skipped"),
        (8, "rolled back to here; learning rate times 0.5"),
    ]
    records = harness.metrics(folder)
    assert [r["step"] for r in records] == list(range(1, 25))
    assert {r["lr"] for r in records[:8]} == {0.001} and {r["lr"] for r in records[8:]} == {0.0005}
    assert json.loads((folder / "checkpoints" / "last" / "state.json").read_text())["lr_scale"] == 0.5


@pytest.mark.slow
def test_a_rollback_that_does_not_help_ends_after_the_allowed_number(tmp_path):
    fault = {"kind": "nan", "rank": 0, "steps": list(range(4, 400))}
    settings = ("trainer.on_nonfinite=rollback", "trainer.nonfinite_limit=2", "trainer.max_rollbacks=2")
    code, said, _ = run(tmp_path, "back", fault, *settings, ranks=0)
    assert code == 2 and "Traceback" not in said
    assert said.count("rollback ") == 2 and "learning rate times 0.25" in said and "error: diverged" in said


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [0, 2])
def test_no_memory_left_is_one_line_with_batch_size_and_what_to_change(tmp_path, ranks):
    rank = max(0, ranks - 1)
    code, said, _ = run(tmp_path, "memory", {"kind": "memory", "rank": rank, "steps": [2]}, ranks=ranks)
    assert code == (1 if ranks else 2)  # torchrun's own
    lines = [line for line in said.splitlines() if line.startswith(f"error: out of memory on rank {rank}")]
    assert len(lines) == 1 and (ranks or "Traceback" not in said), said
    words = (
        "peak",
        "data.batch_size=1 at 64x96",
        "lower data.image_size",
        "speed.memory_budget",
        "Tried to allocate 20.00 GiB",
    )
    assert all(word in lines[0] for word in words) and "halve" not in lines[0]


@pytest.mark.parametrize("batch", [1, 2])
def test_no_memory_left_never_advises_to_halve_one_page(batch):
    config = load_config([f"data.batch_size={batch}"])[0]
    words = str(faults.out_of_memory(RuntimeError("no"), config, Ranks(0, 0, 1, torch.device("cpu"))))
    assert ("halve data.batch_size and double trainer.accumulate" in words) == (batch == 2)
    assert "lower data.image_size" in words


@pytest.mark.slow
def test_a_rollback_before_the_first_checkpoint_starts_from_the_given_one(tmp_path):
    code, said, first = run(tmp_path, "first", {}, "trainer.max_epochs=1", ranks=0)
    assert code == 0, said
    settings = ("trainer.on_nonfinite=rollback", "trainer.nonfinite_limit=2", f"resume={first}")
    code, said, _ = run(tmp_path, "second", {"kind": "nan", "rank": 0, "steps": [2, 3]}, *settings, ranks=0)
    assert code == 0, said
    assert said.count("resumed from") == 2 and "learning rate times 0.5 since a rollback" in said
