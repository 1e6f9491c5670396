"""The benches' peer: the same batches as DALI's, and what it needs."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from bench.peers.opencv_loader import opencv_loader
from pipelines import loader
from pipelines.augment import AugmentConfig
from pipelines.batch import Batch
from pipelines.errors import UserError
from pipelines.graph import STD
from pipelines.index.build import build
from tests.conftest import ROOT

CANVAS = (320, 256)
ALL = AugmentConfig(
    rotate_p=1.0, brightness_p=0.8, hsv_p=0.6, sharpen_p=0.5, blur_p=0.5, noise_p=1.0, shadow_p=0.8, fog_p=0.8
)


def write_pages(folder, size, count=8, suffix="jpg"):
    """Soft coloured pages with fine dark marks, every EXIF orientation, and the index of them."""
    (folder / "img").mkdir(parents=True)
    (folder / "gt").mkdir()
    rng = np.random.default_rng(0)
    width, height = size
    for i in range(count):
        small = rng.integers(90, 255, (height // 20, width // 20, 3), dtype=np.uint8)
        page = np.array(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC))
        page[20:-20:14, 20:-20] //= 2
        exif = Image.Exif()
        exif[0x0112] = 1 + i % 8
        Image.fromarray(page).save(folder / "img" / f"{i}.{suffix}", quality=92, exif=exif)
        rows = [f"20,{y},80,{y},80,{y + 9},20,{y + 9},word" for y in range(20, 90, 14)]
        (folder / "gt" / f"{i}.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return build(folder, folder / "index")


def pairs(index, augment, count=4, workers=0):
    """Batches of DALI and of the peer."""
    given = {"image_size": CANVAS, "batch_size": 4, "augment": augment, "seed": 7}
    ours, peer = loader.train_loader(index, **given), opencv_loader(index, workers=workers, **given)
    made = [(next(ours), next(peer)) for _ in range(count)]
    ours.close()
    peer.close()
    return made


def assert_same_labels(ours, peer):
    for name in ("points_xy", "poly_offsets", "page_offsets", "ignore"):
        assert torch.equal(getattr(ours, name), getattr(peer, name))
    assert ours.index.tolist() == peer.index.tolist() and np.array_equal(ours.matrix, peer.matrix)
    assert len(peer.points_xy) > 0


def level_differences(ours, peer):
    """(N, 3, H, W) absolute differences in grey levels of 255."""
    for batch in (ours, peer):
        assert batch.image.dtype == torch.float32 and batch.image.shape == (4, 3, *CANVAS)
        assert batch.image.is_contiguous(memory_format=torch.channels_last)
    return (ours.image - peer.image).abs() * torch.tensor(STD).float()[:, None, None]


@pytest.mark.parametrize("augment", [AugmentConfig(enabled=False), ALL], ids=["off", "full"])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_the_peer_makes_the_same_batches(tmp_path, augment, suffix):
    """Mean below 0.5 grey levels (rounding after each step), none above 4 (1/32 px on an edge of 120 levels)."""
    for ours, peer in pairs(write_pages(tmp_path / "pages", (280, 340), suffix=suffix), augment):
        assert_same_labels(ours, peer)
        difference = level_differences(ours, peer)
        assert difference.mean() < 0.5 and difference.max() <= 4.01


def test_a_strong_shrink_differs_by_the_filter_only(tmp_path):
    """A box (OpenCV's INTER_AREA) against DALI's triangle: mean below 4 grey levels, the means of pages below 0.5."""
    for ours, peer in pairs(write_pages(tmp_path / "pages", (840, 1020)), AugmentConfig(enabled=False), 2):
        assert_same_labels(ours, peer)
        assert level_differences(ours, peer).mean() < 4
        means = [(batch.image * torch.tensor(STD).float()[:, None, None]).mean((1, 2, 3)) for batch in (ours, peer)]
        assert (means[0] - means[1]).abs().max() < 0.5


def test_workers_change_nothing_and_end(tmp_path):
    index = write_pages(tmp_path / "pages", (280, 340))
    given = {"image_size": CANVAS, "batch_size": 4, "augment": ALL, "seed": 7}
    alone, two = opencv_loader(index, workers=0, **given), opencv_loader(index, workers=2, **given)
    for _ in range(5):
        assert torch.equal(next(alone).image, next(two).image)
    assert two.steps_per_epoch == 2 and two.wait_seconds > 0
    two.close()
    with pytest.raises(AssertionError, match="closed"):
        next(two)


@pytest.mark.parametrize("data", [b"", b"no image" * 9])
def test_a_bad_file_is_named(tmp_path, data):
    index = write_pages(tmp_path / "pages", (280, 340), count=4)
    index.path(2).write_bytes(data)
    made = opencv_loader(index, image_size=CANVAS, batch_size=4, augment=ALL, seed=7, workers=0)
    with pytest.raises(UserError, match=r"cannot decode .*2\.jpg"):
        next(made)


BARE = """
import sys
for name in ("nvidia", "PIL", "shapely", "scipy", "pyclipper", "omegaconf", "triton", "timm"):
    sys.modules[name] = None
import cv2, numpy as np
from pathlib import Path
from bench.peers.opencv_loader import opencv_loader
from pipelines.augment import AugmentConfig
from pipelines.batch import Batch
from pipelines.geometry import pack

class Pages:
    size_wh, orientation = np.array([[90, 120]] * 4, np.int32), np.ones(4, np.uint8)
    __len__ = lambda self: 4
    path = lambda self, i: Path("page.png")
    labels = lambda self, i: pack([np.array([[10, 10], [50, 10], [50, 30], [10, 30]])], np.zeros(1, bool))
    num_bytes = lambda self, i: Path("page.png").stat().st_size

cv2.imwrite("page.png", np.full((120, 90, 3), 200, np.uint8))
made = opencv_loader(Pages(), image_size=(128, 96), batch_size=2, augment=AugmentConfig(), seed=0)
batch = next(made)
made.close()
print(tuple(batch.image.shape), len(batch.ignore))
"""


def test_numpy_torch_and_opencv_are_enough(tmp_path):
    """No DALI, no Pillow, no index on disk: it stands in for DALI where that is missing."""
    done = subprocess.run(
        [sys.executable, "-c", BARE], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == "(2, 3, 128, 96) 2", done.stderr


def test_torchs_dataloader_pins_every_tensor_of_a_batch(monkeypatch):
    """As it does on a GPU: unpinned, 315 MB of pages a step would be waited for."""
    from torch.utils.data._utils.pin_memory import pin_memory

    image, points, ignore = torch.rand(1, 3, 4, 4), torch.rand(4, 2), torch.tensor([True])
    tensors = (image, points, torch.tensor([0, 4]), torch.tensor([0, 1]), ignore)
    batch = Batch(*tensors, np.arange(1), np.zeros((1, 2, 3)))
    seen = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, *device: seen.append(tensor) or tensor)
    pinned = pin_memory(batch)
    assert isinstance(pinned, Batch) and all(a is b for a, b in zip(seen, tensors, strict=True))
