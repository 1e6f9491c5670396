import pytest
import torch
from loaded_pages import CANVAS, PAGES

from pipelines import loader
from pipelines.errors import UserError
from pipelines.index.bare import BareIndex


def test_bare_files(index, tmp_path):
    paths = [index.path(i) for i in (5, 2, 9)]
    pages = loader.eval_loader(BareIndex(paths), image_size=CANVAS, batch_size=2)
    batches = list(pages)
    pages.close()
    assert [batch.index.tolist() for batch in batches] == [[0, 1], [2]]
    for batch in batches:
        assert batch.points_xy.shape == (0, 2) and batch.poly_offsets.tolist() == [0] and len(batch.ignore) == 0
        assert batch.page_offsets.tolist() == [0] * (len(batch) + 1)
    whole = loader.eval_loader(index, image_size=CANVAS, batch_size=PAGES)
    (batch,) = list(whole)
    whole.close()
    assert torch.equal(batches[0].image[0], batch.image[5]) and torch.equal(batches[1].image[0], batch.image[9])
    with pytest.raises(UserError, match=r"nowhere\.png: missing"):
        BareIndex([tmp_path / "nowhere.png"])
