"""A run's folder: its name, and that nothing there is overwritten."""

import pytest

from engine.config.load import load_config
from engine.run.folder import folder_of, refuse_taken
from pipelines.errors import UserError


def load(*argv):
    return load_config(["preset=demo", "trainer.max_epochs=6", *argv])[0]


def test_names_of_folders(tmp_path):
    named = folder_of(load(f"run_root={tmp_path}", "name=a"))
    assert named == tmp_path / "a"
    first, second = (folder_of(load(f"run_root={tmp_path}")).name for _ in "ab")
    assert first.startswith("demo-20") and len(first) == len(second) == len("demo-20261124-020500-123")


def test_an_existing_run_is_not_overwritten(tmp_path):
    config = load(f"run_root={tmp_path}", "name=a")
    (tmp_path / "a").mkdir()
    refuse_taken(tmp_path / "a", config)  # an empty folder is fine
    (tmp_path / "a" / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match=r"exists already: give another name=NAME, or resume=auto"):
        refuse_taken(tmp_path / "a", config)
    refuse_taken(tmp_path / "a", load(f"run_root={tmp_path}", "name=a", "resume=auto"))
