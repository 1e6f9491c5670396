"""The thread that writes checkpoints goes on when the disk fails it."""

import pytest

from engine.checkpoint import store
from engine.checkpoint.writer import Writer
from pipelines.errors import UserError
from tests.engine.checkpoint.conftest import trained_model


def test_writer_survives_a_folder_it_cannot_write(tmp_path, capsys):
    model, ema, optimizer = trained_model()
    (tmp_path / "file").write_text("in the way")
    writer = Writer(tmp_path / "file" / "checkpoints", 1, 1)
    writer.save(store.snapshot(model, ema.model, optimizer), {"step": 1}, "seed: 0\n")
    writer.wait(0)
    assert writer.failures == 1
    assert "WARNING: checkpoint of step 1 not written" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"the last 1 checkpoints could not be written \(Not a directory\)"):
        writer.refuse(1)


def test_a_bug_in_the_writer_is_raised_and_hangs_nobody(tmp_path):
    writer = Writer(tmp_path, 1, 1)
    writer.save({}, {"no step": 1}, "seed: 0\n")
    with pytest.raises(RuntimeError, match="checkpoint writer failed"):
        writer.wait()
