import pytest
import torch
from loss_examples import DTYPES, SHAPES, ULPS, example

from kernels.db_loss import binary_map
from tests.conftest import DEVICE


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_binary_map(shape, dtype):
    x, y, _ = example(shape, dtype)
    exact = (50 * (x.double().sigmoid() - y.double().sigmoid())).sigmoid()
    plain = binary_map(x, y, implementation="reference")
    got = binary_map(x[:, None].requires_grad_(), y[:, None], implementation="triton")
    assert got.shape == plain.shape == shape and got.dtype == plain.dtype == torch.float32 and not got.requires_grad
    assert (got - exact).abs().max() <= 2 * (plain - exact).abs().max() + ULPS
    soft = (x.double().sigmoid() - y.double().sigmoid()).sigmoid()
    torch.testing.assert_close(binary_map(x, y, db_k=1.0, implementation="triton").double(), soft, rtol=ULPS, atol=0)


def test_binary_map_example_and_errors():
    x, y = torch.zeros(1, 1, 1, device=DEVICE), torch.full((1, 1, 1), -0.4, device=DEVICE)
    assert binary_map(x, y, implementation="triton").item() == pytest.approx(0.9929, abs=5e-5)
    for change, message in (({"db_k": 0.0}, "db_k"), ({"implementation": "fast"}, "implementation")):
        with pytest.raises(ValueError, match=f"binary_map: .*{message}"):
            binary_map(x, y, **change)
    with pytest.raises(ValueError, match="binary_map: thresh_logits must be"):
        binary_map(x, torch.zeros(1, 2, 1, device=DEVICE))
