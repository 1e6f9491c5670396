import pytest
import torch

from kernels import runtime
from kernels.db_targets import db_targets
from kernels.db_targets.op import _targets_op
from tests.conftest import DEVICE
from tests.kernels.db_targets.test_reference import DEFAULTS, GOOD, box, csr


def test_threshold_type_is_bfloat16_unless_asked():
    tensors = [tensor.to(DEVICE) for tensor in csr([[GOOD]])]
    assert db_targets(*tensors, height=33, width=50, implementation="triton").thresh_map.dtype == torch.bfloat16
    given = db_targets(*csr([[GOOD]]), height=33, width=50, implementation="reference", thresh_dtype=torch.float16)
    assert given.thresh_map.dtype == torch.float16


def test_wrong_offsets_on_a_cpu_are_named():
    points, poly_offsets, page_offsets, ignore = csr([[GOOD]])
    for implementation in ("reference", "triton") if runtime.INTERPRETED else ("reference",):
        with pytest.raises(ValueError, match="poly_offsets must rise from 0 to 4"):
            db_targets(points, poly_offsets + 1, page_offsets, ignore, height=7, width=9, implementation=implementation)


@pytest.mark.parametrize("implementation", ["reference", "triton"])
def test_operator_is_sound_and_traceable(implementation):
    tensors = [tensor.to(DEVICE) for tensor in csr([[box(6, 4, 20, 9)], []])]
    numbers = [DEFAULTS[name] for name in ("shrink_ratio", "thresh_min", "thresh_max", "min_text_size_px", "mode")]
    torch.library.opcheck(_targets_op, (*tensors, 7, 13, *numbers, torch.bfloat16, implementation == "triton"))

    def targets(*tensors):
        return db_targets(*tensors, height=7, width=13, implementation=implementation)

    compiled = torch.compile(targets, fullgraph=True, backend="aot_eager")
    for layout in ([[box(6, 4, 20, 9)], []], [[box(6, 4, 20, 9)] * 2, [], []]):
        tensors = [tensor.to(DEVICE) for tensor in csr(layout)]
        for a, b in zip(compiled(*tensors), targets(*tensors), strict=True):
            assert torch.equal(a, b)
