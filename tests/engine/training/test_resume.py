"""Going on with a run: files of older versions."""

import hashlib
import json

from engine import train
from engine.checkpoint import store
from engine.run.log import read_metrics
from engine.training.resume import Position
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
