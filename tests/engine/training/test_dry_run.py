"""`--dry-run` tries everything and leaves nothing."""

from engine import train
from tests.conftest import TINY


def test_dry_run_reads_its_checkpoint_back_and_leaves_nothing(tmp_path, capsys):
    assert train.main([*TINY, "--dry-run", f"run_root={tmp_path}"]) == 0
    said = capsys.readouterr().out
    assert "read back bit for bit" in said and "memory: peak" in said and "2 done" in said
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".")] == []
