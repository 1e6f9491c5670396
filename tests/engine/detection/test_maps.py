"""detection.maps: maps kept with 8 bits a pixel, in RAM or in a file without a name, gone however the work ends."""

import errno
import gc
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import receipts
from engine.config.load import load_config
from engine.data import open_data
from engine.detection.maps import MapStore, prob_batches, store_maps
from engine.distributed import start
from engine.model import build_model
from pipelines.errors import UserError
from tests.conftest import TINY


def _detector(tmp_path, *settings):
    config, _ = load_config([*TINY, f"run_root={tmp_path}", *settings])
    ranks = start(config.trainer.device)
    return config, ranks, build_model(config).to(ranks.device).eval(), open_data(config, ranks).val


@pytest.mark.parametrize("ram_bytes", [1 << 30, 0])
def test_a_store_holds_what_the_network_said(tmp_path, ram_bytes):
    """Three batches, the last of another size; every value within half a step."""
    config, ranks, model, pages = _detector(tmp_path, "eval.batch_size=3")
    told = []
    store = store_maps(model, pages, config, ranks, lambda *numbers: told.append(numbers), ram_bytes)
    with store:
        assert isinstance(store.bytes, np.memmap) != bool(ram_bytes) and len(store) == 4 and told == [(3, 4), (4, 4)]
        for batch, maps in prob_batches(model, pages, config, ranks):
            kept = store.maps(batch.index)
            assert kept.dtype == torch.float32 and kept.shape == maps.shape
            assert (kept - maps.cpu()).abs().max() <= 1 / 510 + 1e-6
            assert torch.equal((kept * 255).round() / 255, kept)
            np.testing.assert_array_equal(store.matrices[batch.index], batch.matrix)
        np.testing.assert_array_equal(store.sizes_wh, pages.size_wh)


def test_eight_bits_come_back_unchanged_and_odd_values_in_bounds():
    maps = torch.from_numpy(np.stack(receipts.prob_maps()))  # multiples of 1/255 themselves
    with MapStore(6, (receipts.HEIGHT, receipts.WIDTH)) as store:
        store.put(np.arange(6), maps, np.zeros((6, 2, 3)), np.zeros((6, 2)))
        assert torch.equal(store.maps([4, 1]), maps[[4, 1]])
    with MapStore(1, (1, 4)) as store:
        store.put(np.array([0]), torch.tensor([[[np.nan, -1.0, 2.0, np.inf]]]), np.zeros((1, 2, 3)), np.zeros((1, 2)))
        assert store.maps([0]).tolist() == [[[0.0, 0.0, 1.0, 1.0]]]


def test_the_file_has_no_name_and_its_room_comes_back(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def mapped() -> int:
        gc.collect()
        return Path("/proc/self/maps").read_text().count(f"{tmp_path}/")

    store = MapStore(3, (64, 96), ram_bytes=0)
    assert isinstance(store.bytes, np.memmap) and mapped() and list(tmp_path.iterdir()) == [], "a kill would leave it"
    store.close()
    assert not mapped()


def test_a_pass_that_is_interrupted_leaves_nothing(tmp_path, monkeypatch):
    config, ranks, model, pages = _detector(tmp_path, "eval.batch_size=1")
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))

    def tell(done, total):
        assert Path("/proc/self/maps").read_text().count(f"{folder}/"), "not in a file"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store_maps(model, pages, config, ranks, tell, ram_bytes=0)
    gc.collect()
    assert not Path("/proc/self/maps").read_text().count(f"{folder}/") and list(folder.iterdir()) == []


def test_a_full_disk_is_said_before_the_work(tmp_path, monkeypatch):
    def full(file, start, size):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(UserError, match=r"no room for 0\.9 GiB .*\(No space left on device\); .* TMPDIR"):
            MapStore(1000, (1000, 1000), ram_bytes=0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(UserError, match="No such file"):
        MapStore(1, (8, 8), ram_bytes=0)
