"""detection.ensemble: the mean is taken where every map shows the same pixels."""

import contextlib
import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from engine.config.load import load_config
from engine.detection import ensemble_file
from engine.detection.ensemble import Ensemble, Member, onto
from engine.detection.maps import prob_batches
from engine.distributed import start
from pipelines.geometry import compose, invert, letterbox
from pipelines.index.bare import BareIndex
from tests.conftest import TINY


def _bright(image):
    """A detector whose logits are the brightness of each pixel: every shift of its map is the mean's doing."""
    return image.mean(1, keepdim=True)


@pytest.fixture
def spot(tmp_path):
    """A page of 150 x 200 px with one smooth bright spot at (61.3, 120.8), and its index."""
    y, x = np.mgrid[0:200, 0:150] + 0.5
    value = 255 * np.exp(-((x - 61.3) ** 2 + (y - 120.8) ** 2) / (2 * 18.0**2))
    Image.fromarray(np.repeat(value.round().astype(np.uint8)[..., None], 3, 2)).save(tmp_path / "spot.png")
    return BareIndex([tmp_path / "spot.png"])


def _middle(ensemble, pages, config):
    """The spot's place in source pixels: the centroid of the mean map above its background."""
    with contextlib.closing(prob_batches(ensemble, pages, config, start(config.trainer.device))) as batches:
        ((batch, maps),) = list(batches)
    assert tuple(maps.shape[1:]) == ensemble.canvas
    y, x = np.mgrid[0 : maps.shape[1], 0 : maps.shape[2]] + 0.5
    weight = np.maximum(torch.logit(maps[0].double(), 1e-9).cpu().numpy() - 0.5, 0)
    canvas = np.array([[(weight * x).sum(), (weight * y).sum()]]) / weight.sum()
    matrix = invert(batch.matrix[0])
    return (canvas @ matrix[:, :2].T + matrix[:, 2])[0]


def _member(canvas, forward=_bright, weight=1.0, *settings):
    config, _ = load_config([*TINY, f"eval.image_size=[{canvas[0]},{canvas[1]}]", *settings])
    return Member(str(canvas), config, forward, weight)


@pytest.mark.parametrize("flips", ["none", "h", "v", "hv"])
def test_flips_and_other_canvases_do_not_move_the_map(spot, flips):
    alone = Ensemble([_member((256, 192))])
    config = ensemble_file.joint_config(alone)
    reference = _middle(alone, spot, config)
    assert np.abs(reference - [61.3, 120.8]).max() < 0.05, "8 bits a pixel"
    flipped = dataclasses.replace(alone, flips=flips)
    assert np.abs(_middle(flipped, spot, config) - reference).max() < 1e-4
    for other in ((256, 256), (224, 192), (192, 160)):  # margins elsewhere, other roundings, smaller
        both = Ensemble([_member((256, 192)), _member(other)], flips)
        assert both.canvas == max((256, 192), other, key=np.prod)
        assert np.abs(_middle(both, spot, config) - reference).max() < 0.01, other


def test_scales_do_not_move_the_map(spot):
    alone = Ensemble([_member((256, 192))])
    config = ensemble_file.joint_config(alone)
    reference = _middle(alone, spot, config)
    for scales in ((1.0, 0.75), (1.0, 1.25), (1.0, 2.0), (0.8, 1.0, 1.25)):
        scaled = dataclasses.replace(alone, scales=scales)
        assert np.abs(_middle(scaled, spot, config) - reference).max() < 0.01, scales


def test_the_warp_is_exact_for_ramps_and_zero_beyond_the_canvas():
    """Bilinear sampling reproduces linear maps, so a map of x (in source pixels) must stay one: no half pixel moves."""
    size = (150, 200)
    for view, target in (((96, 128), (256, 256)), ((256, 192), (224, 320)), ((512, 384), (128, 96))):
        to_source = invert(letterbox(size, view))
        y, x = np.mgrid[0 : view[0], 0 : view[1]] + 0.5
        for axis in (0, 1):
            ramp = to_source[axis, 0] * x + to_source[axis, 1] * y + to_source[axis, 2]
            reference = letterbox(size, target)
            to_view = compose(letterbox(size, view), invert(reference))[None]
            found = onto(torch.from_numpy(ramp)[None].float(), to_view, target)[0].numpy()
            v, u = np.mgrid[0 : target[0], 0 : target[1]] + 0.5
            source = (
                np.einsum("ij,jhw->ihw", invert(reference)[:, :2], np.stack([u, v])) + invert(reference)[:, 2:, None]
            )
            inner = ((source > 4) & (source < np.array(size)[:, None, None] - 4)).all(0)
            assert inner.any() and np.abs(found - source[axis])[inner].max() < 0.01
    ones = onto(torch.ones(1, 64, 64), np.array([[[1.0, 0, -32], [0, 1, 0]]]), (64, 128))[0]
    assert ones[:, 32:96].eq(1).all() and ones[:, :32].eq(0).all() and ones[:, 96:].eq(0).all()


def test_a_model_with_itself_is_itself_and_weights_weigh(spot):
    one = _member((256, 192))
    config = ensemble_file.joint_config(Ensemble([one]))
    ranks = start(config.trainer.device)

    def maps(forward):
        with contextlib.closing(prob_batches(forward, spot, config, ranks)) as batches:
            return next(m.cpu() for _, m in batches)

    plain = maps(_bright)
    assert torch.equal(maps(Ensemble([one])), plain)
    assert torch.equal(maps(Ensemble([one, one])), plain)
    dark = dataclasses.replace(one, forward=lambda image: _bright(image) - 2)
    mixed = maps(Ensemble([dataclasses.replace(one, weight=3.0), dark]))
    assert torch.allclose(mixed, (3 * plain + maps(dark.forward)) / 4, atol=1e-6)
