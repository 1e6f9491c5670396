"""trainer.deterministic=true: two runs of one command end with the same bits, on one rank and on two."""

from pathlib import Path

import pytest

from . import harness
from .harness import Outcome

SETTINGS = (*harness.SETTINGS, "trainer.deterministic=true", "trainer.checkpoint_every_steps=3")


def twice(folder: Path, ranks: int) -> Outcome:
    """The same command twice; every tensor of model, average and optimizer and every logged loss compared."""
    for name in ("one", "two"):
        job = harness.start([*SETTINGS, f"name={name}", f"run_root={folder}"], folder, ranks=ranks)
        assert harness.finish(job) == 0, harness.output(job)[-4000:]
    one, two = folder / "one", folder / "two"
    losses = [[record["loss"] for record in harness.metrics(run)] for run in (one, two)]
    alike = not harness.differences(one, two) and losses[0] == losses[1] and len(losses[0]) >= 24
    note = f"{len(harness.tensors(one))} tensors compared bit for bit"
    return Outcome(f"trainer.deterministic=true, {ranks or 1} rank(s), run twice", 1, int(alike), note=note)


@pytest.mark.slow  # 20 s each
@pytest.mark.parametrize("ranks", [0, 2])
def test_two_runs_have_the_same_bits(tmp_path, ranks):
    assert twice(tmp_path, ranks).survived == 1


@pytest.mark.slow  # 10 s
def test_another_seed_has_other_bits(tmp_path):
    """What the comparison is worth."""
    for seed in (0, 1):
        job = harness.start([*SETTINGS, f"name=seed{seed}", f"seed={seed}", f"run_root={tmp_path}"], tmp_path)
        assert harness.finish(job) == 0, harness.output(job)[-4000:]
    assert len(harness.differences(tmp_path / "seed0", tmp_path / "seed1")) > 300
