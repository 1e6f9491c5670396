"""`pipelines.dataset split`: every page is validated once, copies never on both sides, texts evenly shared."""

import io
import json

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from pipelines.dataset import main
from pipelines.errors import UserError
from pipelines.index.build import build, load, subset
from pipelines.split import assign, find_copies, fold_folders, split
from pipelines.synthetic import receipts as synthetic


@pytest.fixture(scope="module")
def receipts(tmp_path_factory):
    """Twelve pages, among them a byte copy of the first and a smaller, darker JPEG of the second."""
    folder = tmp_path_factory.mktemp("receipts")
    path = synthetic.ensure(folder, 10, 7, 300, 240)
    data = json.loads(path.read_text())
    images = path.parent / "images"
    names = sorted(data["images"])
    first, second = (Image.open(images / name) for name in names[:2])
    (images / "same.jpg").write_bytes((images / names[0]).read_bytes())
    small = ImageEnhance.Brightness(second.convert("RGB")).enhance(0.8).resize((second.width // 2, second.height // 2))
    small.save(images / "small.jpg", quality=40)
    for copy, name in (("same.jpg", names[0]), ("small.jpg", names[1])):
        data["images"][copy] = data["images"][name]
    assert first.size == (240, 300)
    path.write_text(json.dumps(data))
    return path, names


def test_each_page_is_validated_once_and_copies_stay_together(receipts, tmp_path, capsys):
    source, names = receipts
    assert main(["split", str(source), "--folds", "3", "--out", str(tmp_path / "folds"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((tmp_path / "folds" / "split.json").read_text())
    groups = sorted(sorted(path.rpartition("/")[2] for path in group) for group in result["copies"])
    assert groups == sorted([[names[0], "same.jpg"], [names[1], "small.jpg"]])
    whole = build(source, tmp_path / "whole")
    every, texts = [], []
    folders = fold_folders(tmp_path / "folds")
    assert [folder.name for folder in folders] == ["fold_0", "fold_1", "fold_2"]
    for folder, told in zip(folders, result["folds"], strict=True):
        train, val = load(folder / "train"), load(folder / "val")
        held = {val.name(i) for i in range(len(val))}
        assert not held & {train.name(i) for i in range(len(train))} and len(train) + len(val) == 12
        for pair in ((names[0], "same.jpg"), (names[1], "small.jpg")):
            assert len(held & set(pair)) in (0, 2)
        every += sorted(held)
        texts.append(val.num_usable)
        assert told == {"pages": len(val), "texts": val.num_usable}
    assert sorted(every) == sorted(whole.name(i) for i in range(len(whole)))
    assert sum(texts) == whole.num_usable and max(texts) < 1.5 * min(texts)


def test_a_subset_is_the_same_pages(receipts, tmp_path):
    index = build(receipts[0], tmp_path / "whole")
    some = subset(index, np.array([5, 0, 11]), tmp_path / "some")
    for i, row in enumerate((5, 0, 11)):
        assert some.path(i) == index.path(row) and some.path(i).is_file() and some.texts(i) == index.texts(row)
        assert some.num_bytes(i) == index.num_bytes(row) and some.ignore(i).tolist() == index.ignore(row).tolist()
        assert some.size_wh[i].tolist() == index.size_wh[row].tolist()
        for a, b in zip(some.polygons(i), index.polygons(row), strict=True):
            assert np.array_equal(a, b)


def test_the_same_seed_gives_the_same_folds_and_another_seed_others(receipts, tmp_path):
    index = build(receipts[0], tmp_path / "whole")
    held = []
    for number, seed in enumerate((0, 0, 1)):
        split(index, tmp_path / str(number), 4, seed)
        held.append([load(folder / "val").paths for folder in fold_folders(tmp_path / str(number))])
    assert held[0] == held[1] != held[2]


def test_copies_of_copies_are_one_group_and_broken_or_blank_pages_are_like_no_other(tmp_path):
    y, x = np.mgrid[0:200, 0:160]
    picture = Image.fromarray((127 + 80 * np.sin(x / 9) * np.cos(y / 13)).astype(np.uint8))
    picture.save(tmp_path / "a.png")
    picture.resize((80, 100)).save(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes((tmp_path / "b.png").read_bytes())
    turned = Image.Exif()
    turned[0x0112] = 6
    picture.rotate(90, expand=True).save(tmp_path / "d.jpg", quality=95, exif=turned)  # upright once the tag is read
    for name, grey in (("e.png", 200), ("f.png", 90)):
        Image.new("L", (160, 200), grey).save(tmp_path / name)
    (tmp_path / "g.png").write_bytes((tmp_path / "a.png").read_bytes()[:300])
    file = io.BytesIO()
    picture.rotate(180).save(file, "PNG")
    (tmp_path / "h.png").write_bytes(file.getvalue())
    paths = sorted(tmp_path.iterdir())
    assert find_copies(paths).tolist() == [0, 0, 0, 0, 4, 5, 6, 7]
    assert find_copies(paths, 1.01).tolist() == [0, 1, 1, 3, 4, 5, 6, 7]
    with pytest.raises(UserError, match="cannot be read"):
        find_copies([tmp_path / "gone.png"])


def test_assign_balances_texts():
    rng = np.random.default_rng(0)
    texts = rng.integers(5, 90, 200)
    groups = np.arange(200)
    groups[100:110] = 100
    fold = assign(groups, texts, 5, 0)
    assert len(set(fold[100:110])) == 1 and set(fold) == set(range(5))
    loads = np.bincount(fold, texts)
    assert loads.max() - loads.min() < 10


@pytest.mark.parametrize(
    "folds, similarity, words",
    [
        (1, 0.975, "must be at least 2"),
        (11, 0.975, "there are 10 different pages"),
        (2, -1.0, "there are 1 different pages"),
    ],
)
def test_errors_name_the_mend(receipts, tmp_path, capsys, folds, similarity, words):
    out = tmp_path / "folds"
    arguments = [str(receipts[0]), "--folds", str(folds), "--similarity", str(similarity), "--out", str(out)]
    assert main(["split", *arguments]) == 2
    assert words in capsys.readouterr().err and not out.exists()


def test_a_taken_folder_is_refused_before_any_work(receipts, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert main(["split", str(receipts[0]), "--out", str(tmp_path)]) == 2
    assert "is not empty" in capsys.readouterr().err and (tmp_path / "file").read_text() == "mine"
