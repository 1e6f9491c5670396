import pytest
import torch
from loss_examples import by_kernels, example

from kernels.db_loss import binary_map, pixels
from kernels.db_targets import DBTargets
from tests.conftest import DEVICE


def layouts(x, y):
    """(name, x, y, whether the kernels must read them as they are)."""
    pair, many = torch.stack((x, y), 1), torch.stack((x, y, x, y, x), 1)
    yield "two channels", *pair.unbind(1), True
    yield "channels_last", *pair.contiguous(memory_format=torch.channels_last).unbind(1), True
    yield "five channels", *many.contiguous(memory_format=torch.channels_last)[:, 2:4].unbind(1), True
    yield "one of each", pair[:, 0], many.contiguous(memory_format=torch.channels_last)[:, 1], True
    yield "a crop", torch.nn.functional.pad(x, (1, 2))[..., 1:-2], y, False
    yield "transposed", x.mT.contiguous().mT, y.mT.contiguous().mT, False


@pytest.mark.parametrize(
    "shape",
    [
        (2, 23, 31),
        (4, 1, 9),
        (4, 9, 1),
        *(pytest.param(shape, marks=pytest.mark.slow) for shape in [(1, 7, 13), (3, 16, 160)]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strides_change_no_bit(shape, dtype):
    x, y, targets = example(shape, dtype, positive=0.3)
    want = by_kernels(x, y, targets)
    drawn = binary_map(x, y, implementation="triton")
    for name, a, b, direct in layouts(x, y):
        pages = pixels.lay_out(a, b)
        assert (pages.x is a and pages.y is b) or not direct, name
        got = by_kernels(a, b, targets)
        assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1]), name
        assert all(torch.equal(c, d) and c.is_contiguous() for c, d in zip(got[2], want[2])), name
        assert torch.equal(binary_map(a, b, implementation="triton"), drawn), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the interpreter would copy 4.3 GB at every launch")
def test_a_page_beyond_2_to_the_31_elements():
    """Only the pages' addresses are far apart."""
    x, y, targets = example((2, 5, 7), torch.bfloat16)
    if torch.cuda.mem_get_info()[0] < 5e9:
        pytest.skip("needs 5 GB of free GPU memory")
    far = torch.empty(2**31 + 100, dtype=torch.bfloat16, device=DEVICE).as_strided((2, 5, 7), (2**31 + 48, 7, 1))
    far.copy_(x)
    got, want = by_kernels(far, y, targets), by_kernels(x, y, targets)
    assert torch.equal(got[0], want[0]) and torch.equal(got[2][0], want[2][0])


def test_targets_of_any_stride():
    x, y, targets = example()
    got = by_kernels(x, y, DBTargets(*(field.mT.contiguous().mT for field in targets)))
    assert torch.equal(got[0], by_kernels(x, y, targets)[0])
