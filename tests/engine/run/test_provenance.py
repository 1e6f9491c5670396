"""Where a run comes from."""

import subprocess

from engine.config.load import load_config
from engine.run.provenance import git_state, provenance


def load(*argv):
    return load_config(["preset=demo", "trainer.max_epochs=6", *argv])[0]


def test_git_state(tmp_path):
    assert git_state(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "f").write_text("1")
    for words in (["init", "-q"], ["add", "f"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], check=True)
    state = git_state(tmp_path)
    assert len(state["commit"]) == 40 and not state["dirty"]
    (tmp_path / "f").write_text("2")
    assert git_state(tmp_path)["dirty"]


def test_provenance_depends_on_the_settings():
    one, two, same = (provenance(load(f"seed={seed}"), 1, "x")["config_sha256"] for seed in (1, 2, 1))
    assert one == same != two
