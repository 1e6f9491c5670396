import numpy as np
import torch
from loaded_pages import CANVAS, make, pages_of, take


def test_the_shape_of_a_batch(index):
    (batch,) = take(make(index, batch_size=4), 1)
    n, p, v = 4, len(batch.ignore), len(batch.points_xy)
    assert len(batch) == n and batch.image.shape == (n, 3, *CANVAS) and batch.image.dtype == torch.float32
    assert batch.image.is_contiguous(memory_format=torch.channels_last)
    assert batch.points_xy.dtype == torch.float32 and batch.points_xy.shape == (v, 2)
    assert batch.poly_offsets.dtype == batch.page_offsets.dtype == torch.int64 and batch.ignore.dtype == torch.bool
    assert batch.poly_offsets.shape == (p + 1,) and batch.poly_offsets[0] == 0 and batch.poly_offsets[-1] == v
    assert batch.page_offsets.shape == (n + 1,) and batch.page_offsets[0] == 0 and batch.page_offsets[-1] == p
    assert batch.index.shape == (n,) and batch.index.dtype == np.int64
    assert batch.matrix.shape == (n, 2, 3) and batch.matrix.dtype == np.float64
    assert torch.all(batch.poly_offsets.diff() >= 3) and batch.page_offsets.diff().sum() == p
    assert pages_of([batch.to("cpu")]) == pages_of([batch])
