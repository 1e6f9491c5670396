"""What is refused, or said, when the data is opened: an outlier, pages that judge nothing, pages in two sets."""

import json

import pytest
import torch
from PIL import Image

from engine import evaluate
from engine.config.load import load_config
from engine.data import open_data, open_pages
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


CPU = Ranks(0, 0, 1, torch.device("cpu"))


def labelled(folder, regions):
    """A COCO file with a page for each number of `regions`, which are crowds (ignored) where it is below 0."""
    folder.mkdir()
    images, boxes = [], []
    for k, count in enumerate(regions):
        name = f"{folder.name}{k}.png"
        Image.radial_gradient("L").rotate(40 * k + 7 * len(folder.name)).resize((100 + k, 90)).save(folder / name)
        images.append({"id": k, "file_name": name, "width": 100 + k, "height": 90})
        for _ in range(abs(count)):
            box = {"id": len(boxes), "image_id": k, "category_id": 1, "bbox": [5, 5, 40, 10], "iscrowd": int(count < 0)}
            boxes.append(box | {"segmentation": [[5, 5, 45, 5, 45, 15, 5, 15]]})
    file = folder / "labels.json"
    file.write_text(json.dumps({"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "text"}]}))
    return str(file)


def settings(tmp_path, **data):
    given = [f"data.{key}={spec}" for key, spec in data.items()]
    return [*TINY, "eval.protocol=contest", "trainer.device=cpu", f"run_root={tmp_path / 'runs'}", *given]


@pytest.mark.parametrize(("regions", "why"), [([0, 0], "no labels"), ([-2, -1, 0], "each of the 3 regions is ignored")])
@pytest.mark.parametrize("protocol", ["contest", "official"])
def test_validation_pages_that_judge_nothing_are_refused(tmp_path, regions, why, protocol):
    train, val = labelled(tmp_path / "train", [1] * 4), labelled(tmp_path / "val", regions)
    config, _ = load_config([*settings(tmp_path, train=train, val=val), f"eval.protocol={protocol}"])
    with pytest.raises(UserError) as caught:
        open_data(config, CPU)
    assert str(caught.value).startswith(f"data.val={val}: {why}, nothing can be judged") and "\n" not in str(
        caught.value
    )


def test_evaluate_refuses_them_too(tmp_path, trained):
    val = labelled(tmp_path / "val", [0])
    with pytest.raises(UserError, match="no labels, nothing can be judged"):
        evaluate.main([f"checkpoint={trained}", f"data.val={val}"])


@pytest.mark.parametrize("protocol", ["contest", "official"])
def test_a_test_split_without_labels_is_not_scored(tmp_path, capsys, protocol):
    """Its H-mean of 0.0000 said something about the model."""
    from engine import train

    paths = {key: labelled(tmp_path / key, regions) for key, regions in (("train", [1] * 4), ("test", [0, 0]))}
    given = (
        settings(tmp_path, test=paths["test"], batch_size=2)
        if protocol == "official"
        else settings(tmp_path, **paths, val=labelled(tmp_path / "val", [2, 0]))
    )
    assert train.main([*given, f"eval.protocol={protocol}", "trainer.max_epochs=1", "name=a"]) == 0
    summary = json.loads((tmp_path / "runs" / "a" / "summary.json").read_text())
    assert summary["test"] is None and summary["val"]["images"] >= 2
    text = capsys.readouterr().out
    assert "test: not scored: no labels" in text and "test: H-mean" not in text


def test_pages_of_training_among_those_that_judge_are_counted(tmp_path, capsys):
    train, val = labelled(tmp_path / "train", [1] * 4), labelled(tmp_path / "val", [1] * 3)
    (tmp_path / "val" / "val1.png").write_bytes((tmp_path / "train" / "train2.png").read_bytes())
    given = settings(tmp_path, train=train, val=val, test=train)
    open_data(load_config(given)[0], CPU)
    lines = [line for line in capsys.readouterr().err.splitlines() if "data.train too" in line]
    assert lines[0].startswith("WARNING: 1 of 3 pages of data.val are in data.train too (1 by bytes; ")
    assert lines[1].startswith("WARNING: 4 of 4 pages of data.test are in data.train too (4 by bytes; ")
    assert len(lines) == 2
