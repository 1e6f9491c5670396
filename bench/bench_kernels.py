"""The Triton kernels on a GPU, 16 pages of 1280 x 1280: microseconds a batch, GB/s of the bytes they must move, memory.

`python -m bench.gpu` compares them with their peers and the byte floor; here they are compared with their past.
"""

if __name__ == "__main__":
    raise SystemExit("error: rows for pytest: run `pytest bench/bench_kernels.py`")


import pytest
import torch

from bench.gpu.cases import time_cases

PAGES, SIDE = 16, 1280
ROWS = [  # op, what (as in `bench.gpu.cases`), dtype of the input
    ("db_targets", "kernels", "float32"),
    ("db_loss", "kernels", "bfloat16"),
    ("db_loss", "kernels, float32 logits", "float32"),
    ("find_quads", "kernels", "bfloat16"),
    ("find_quads", "kernels, slow scores", "bfloat16"),
    ("label", "kernels", "bool"),
]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: kernels have no speed elsewhere")
@pytest.mark.parametrize("op, what, dtype", ROWS, ids=[f"{op}, {what}" for op, what, _ in ROWS])
def test_kernel(measure, op, what, dtype):
    cases = time_cases(torch.device("cuda"), PAGES, SIDE)
    case = next(case for case in cases if (case.op, case.what) == (op, what))
    measure(
        op,
        f"{PAGES} pages {SIDE}x{SIDE}, {what}",
        case.call,
        impl="kernels",
        dtype=dtype,
        moved_bytes=case.bytes,
        images=0 if case.bytes else PAGES,
        device="cuda",
    )
