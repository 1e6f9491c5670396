"""data.max_page_mpx: an outlier is refused when the data is opened."""

import pytest
import torch
from PIL import Image

from engine.config.load import load_config
from engine.data import open_pages
from engine.distributed import Ranks
from pipelines.errors import UserError
from tests.conftest import TINY


def write_pages(folder, sizes):
    (folder / "img").mkdir(parents=True)
    (folder / "gt").mkdir()
    for i, size in enumerate(sizes):
        Image.new("RGB", size).save(folder / "img" / f"{i}.png")
        (folder / "gt" / f"{i}.txt").write_text("10,10,50,10,50,30,10,30,word\n", encoding="utf-8")
    return str(folder)


@pytest.mark.parametrize("key", ["train", "val", "test"])
def test_a_page_above_the_limit_is_named(tmp_path, key):
    spec = write_pages(tmp_path / "pages", [(100, 100), (400, 300), (200, 100), (300, 300)])
    ranks = Ranks(0, 0, 1, torch.device("cpu"))

    def opened(limit):
        config, _ = load_config([*TINY, f"data.max_page_mpx={limit}", f"run_root={tmp_path / 'runs'}"])
        return open_pages(config, [spec], ranks, key)

    assert len(opened(0.12)) == 4  # at the limit
    with pytest.raises(UserError) as caught:
        opened(0.08)
    text = str(caught.value)
    assert "\n" not in text and "1.png: 400x300 pixels are 0.12 megapixels" in text
    assert "data.max_page_mpx=0.08 (2 such pages)" in text
