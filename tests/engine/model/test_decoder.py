"""The feature pyramid."""

import pytest
import torch

from engine.config.load import load_config
from engine.model import build_model

SMALL = ["preset=demo", "models.encoder.name=lcnet_035", "models.decoder.inner_channels=8"]


def _config(*items):
    return load_config([*SMALL, *items])[0]


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_nearest_upsampling_of_the_decoder_is_torchs(levels):
    factor = 2**levels
    decoder = build_model(_config()).double().decoder
    x = torch.randn(2, 5, 6, 4, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()
    size = torch.Size((6 * factor, 4 * factor))
    results = decoder._resize(x, size, levels), torch.nn.functional.interpolate(x, size=size, mode="nearest")
    gradient = torch.randn(results[0].shape, dtype=torch.float64).to(memory_format=torch.channels_last)
    assert torch.equal(*results)
    got, want = (torch.autograd.grad(y, x, gradient)[0] for y in results)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-14)
    assert got.is_contiguous(memory_format=torch.channels_last)
    odd = decoder._resize(x, torch.Size((13, 9)), 1)
    assert torch.equal(odd, torch.nn.functional.interpolate(x, size=(13, 9), mode="nearest"))
