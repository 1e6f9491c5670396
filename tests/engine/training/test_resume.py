"""Going on with a run: files of older versions."""

import hashlib
import json

import pytest

from engine import train
from engine.checkpoint import store
from engine.run.log import read_metrics
from engine.training.resume import Position
from pipelines.errors import UserError
from tests.conftest import TINY

# As a version wrote it whose Position had `lr_scale` and `best_epoch`.
OLD = {
    "step": 3,
    "epoch": 0,
    "samples_in_epoch": 6,
    "best": 0.25,
    "best_epoch": 0,
    "stale": 0,
    "minutes": 0.1,
    "precise_step": -1,
    "unjudged": False,
    "lr_scale": 0.5,
    "global_batch": 2,
    "stream": {"seed": 0, "pages": [8], "weights": []},
    "bad_pages": [],
    "score": None,
    "scores": None,
}


def test_a_run_of_an_older_version_goes_on(tmp_path, capsys):
    constant = ("models.scheduler.name=constant", "models.scheduler.warmup_epochs=0")
    command = [*TINY, *constant, "name=old", f"run_root={tmp_path}", "resume=auto"]
    assert train.main([*command, "trainer.max_steps=3"]) == 0
    last = (tmp_path / "old" / "checkpoints" / "last").resolve()
    _replace(last, json.dumps(OLD, indent=1))
    assert Position.from_state(store.load_state(last, Position.kinds())) == Position(
        step=3, samples_in_epoch=6, best=0.25, minutes=0.1, rollback_factor=0.5
    )
    assert train.main([*command, "trainer.max_steps=5"]) == 0
    assert "learning rate times 0.5 since a rollback" in capsys.readouterr().out
    rates = [r["lr"] for r in read_metrics(tmp_path / "old" / "metrics.jsonl") if r["kind"] == "train"]
    assert rates[3] == rates[2] / 2
    state = json.loads((tmp_path / "old" / "checkpoints" / "last" / "state.json").read_text())
    assert (state["step"], state["lr_scale"]) == (5, 0.5) and "rollback_factor" not in state


def _replace(checkpoint, text: str) -> None:
    """Another state.json, with its checksum in the manifest."""
    (checkpoint / "state.json").write_text(text)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["state.json"] = {"bytes": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def test_another_global_batch_is_refused_on_resume(trained, tmp_path):
    with pytest.raises(UserError, match=r"global batch of 2, this run has 1"):
        train.main([*TINY, "name=x", f"run_root={tmp_path}", f"resume={trained}", "data.batch_size=1"])


def test_resume_from_a_path_into_another_run_is_refused(trained, tmp_path):
    assert train.main([*TINY, "name=b", f"run_root={tmp_path}", "trainer.max_steps=1"]) == 0
    with pytest.raises(UserError, match="holds another run"):
        train.main([*TINY, "name=b", f"run_root={tmp_path}", f"resume={trained}"])


def test_another_training_stream_is_refused_in_the_middle_of_an_epoch(tmp_path):
    command = [*TINY, "name=cut", f"run_root={tmp_path}", "resume=auto"]
    assert train.main([*command, "trainer.max_steps=3"]) == 0
    with pytest.raises(UserError, match="in the middle of an epoch"):
        train.main([*command, "seed=1"])


def test_resume_and_init_from_ask_no_hub(trained, tmp_path):
    """The presets start from timm's weights; a run that has weights of its own must not need them."""
    settings = [*TINY, f"run_root={tmp_path}", "models.encoder.weights=gone.safetensors", "trainer.max_steps=1"]
    assert train.main([*settings, "name=tuned", f"init_from={trained}"]) == 0
    assert train.main([*settings, "name=tuned", "resume=auto", "trainer.max_steps=2"]) == 0
