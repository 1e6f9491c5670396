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


def test_images_elsewhere_are_named_by_data_root(tmp_path):
    spec = write_pages(tmp_path / "pages", [(100, 100), (200, 100)])
    (tmp_path / "pages" / "img").rename(tmp_path / "elsewhere")
    ranks = Ranks(0, 0, 1, torch.device("cpu"))

    def opened(*more):
        config, _ = load_config([*TINY, f"run_root={tmp_path / 'runs'}", *more])
        return open_pages(config, [spec], ranks, "train")

    with pytest.raises(UserError):
        opened()
    assert opened(f"data.root={tmp_path / 'elsewhere'}").path(0) == tmp_path / "elsewhere" / "0.png"


def test_what_is_odd_in_a_source_is_said_once(tmp_path, capsys):
    spec = write_pages(tmp_path / "pages", [(100, 100), (200, 100)])
    (tmp_path / "pages" / "gt" / "0.txt").write_text("10,10,50,10,50,30,10,30,word\n10,40,50,40\n", encoding="utf-8")
    config, _ = load_config([*TINY, f"run_root={tmp_path / 'runs'}"])
    pages = open_pages(config, [spec], Ranks(0, 0, 1, torch.device("cpu")), "train")
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"note: data.train={spec}: 1 masked, 1 bad line" in err and "dataset check" in err
    assert pages.num_usable == 2
