"""`engine.predict.Detector` against `engine.predict` and against DALI's graph."""

import json
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from engine import predict
from engine.detection.detector import normalised, place
from engine.detection.results import LINES
from engine.ensemble import __main__ as ensemble
from engine.predict import Detector
from pipelines import geometry
from pipelines.errors import UserError
from pipelines.images.read import EXIF_ORIENTATION, read_rgb
from pipelines.index.bare import BareIndex
from pipelines.loader import eval_loader
from tests.conftest import DEVICE

MANY = ("post.box_thresh=0", "post.bin_thresh=0.05")  # the tiny detector is sure of nothing


@pytest.fixture(scope="module")
def pages(trained, tmp_path_factory):
    """PNGs of the tiny detector's pages: decoders agree on them to the last bit."""
    folder = tmp_path_factory.mktemp("pages")
    for k, path in enumerate(sorted((trained.parent / ".synthetic").rglob("*.jpg"))[:5]):
        Image.open(path).save(folder / f"{k}.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def detector(trained):
    return Detector(trained, *MANY)


@pytest.mark.parametrize("size, largest", [((90, 70), 0), ((300, 180), 1)], ids=["one warp", "resized first"])
def test_the_canvas_is_the_one_of_the_evaluation_graph(tmp_path, size, largest):
    """In grey levels, on noise, the worst there is. One warp: the same OpenCV call.

    Behind a resize DALI's outermost pixels of the page count the border pixel for those beyond it; ours leave them out.
    """
    rgb = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    canvas = (128, 96)
    batch = next(iter(eval_loader(BareIndex([tmp_path / "a.png"]), image_size=canvas, batch_size=1)))
    matrix = geometry.letterbox(size[::-1], canvas)
    mine = normalised(torch.from_numpy(place(rgb, matrix, canvas))[None])
    assert np.array_equal(batch.matrix[0], matrix) and mine.stride() == batch.image.stride()
    levels = (mine - batch.image)[0].abs() * torch.tensor([0.229, 0.224, 0.225])[:, None, None] * 255
    (left, top), (right, bottom) = np.rint(geometry.apply(matrix, np.array([[0, 0], size[::-1]]))).astype(int)
    inside = levels[:, top + 1 : bottom - 1, left + 1 : right - 1]
    assert inside.max() <= largest + 1e-3 and inside.mean() < 0.05
    assert levels.max() <= (40 if largest else 1e-3)


def test_the_same_regions_as_the_command(trained, pages, detector, tmp_path):
    out = tmp_path / "out"
    assert predict.main([*map(str, pages), "--checkpoint", str(trained), "--out", str(out), *MANY]) == 0
    lines = [json.loads(line) for line in (out / LINES).read_text().splitlines()]
    found = detector.detect_batch(pages)
    assert len(found) == len(lines) and sum(len(page.scores) for page in found) > 0
    for page, line in zip(found, lines, strict=True):
        assert len(page.polygons) == len(page.scores) == len(line["regions"])
        for polygon, score, region in zip(page.polygons, page.scores, line["regions"], strict=True):
            assert polygon.dtype == np.float32 and polygon.shape == (4, 2)
            # The command rounds to a hundredth; a GPU's decoder and warp are others.
            atol = 0.006 if DEVICE == "cpu" else 1.0
            np.testing.assert_allclose(polygon, region["points"], rtol=0, atol=atol)
            assert score == pytest.approx(region["score"], abs=1e-5 if DEVICE == "cpu" else 0.02)


def _same(a, b):
    return len(a.polygons) == len(b.polygons) and all(map(np.array_equal, a.polygons, b.polygons))


def test_every_kind_of_image_gives_the_same(pages, detector, tmp_path):
    rgb = np.asarray(Image.open(pages[0]).convert("RGB"))
    polygons, scores = expected = detector.detect(pages[0])
    assert len(polygons) and (np.diff(scores) <= 0).all()
    alpha = np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)])
    for image in (str(pages[0]), rgb, alpha, Image.fromarray(rgb), Image.fromarray(alpha), np.asfortranarray(rgb)):
        assert _same(detector.detect(image), expected)
    grey = np.asarray(Image.open(pages[0]).convert("L"))
    assert _same(detector.detect(grey), detector.detect(np.dstack([grey] * 3)))
    turned, exif = Image.fromarray(np.rot90(rgb).copy()), Image.Exif()
    exif[EXIF_ORIENTATION] = 6  # turn by 90 degrees clockwise to see it upright
    turned.save(tmp_path / "turned.png", exif=exif)
    for image in (tmp_path / "turned.png", Image.open(tmp_path / "turned.png")):
        assert _same(detector.detect(image), expected)
    assert detector.detect_batch([]) == []


def test_a_transparent_page_is_laid_on_white(pages, detector, tmp_path):
    """As a path, a picture and an array; ink on clear paper was black on black."""
    rgb = np.asarray(Image.open(pages[0]).convert("RGB"))
    clear = np.dstack([rgb, 255 - rgb.min(2)])
    page = Image.fromarray(clear)
    white = np.asarray(Image.alpha_composite(Image.new("RGBA", page.size, "white"), page).convert("RGB"))
    expected = detector.detect(white)
    page.save(tmp_path / "a.png")
    for image in (tmp_path / "a.png", page, clear):
        assert _same(detector.detect(image), expected)


def test_the_first_of_several_pages_is_named(pages, detector, tmp_path, caplog):
    first, second = Image.open(pages[0]), Image.open(pages[1])
    first.save(tmp_path / "scan.tif", save_all=True, append_images=[second])
    assert _same(detector.detect(tmp_path / "scan.tif"), detector.detect(pages[0]))
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"{tmp_path}/scan.tif: has several pages or frames, of which the first is read")


def test_grey_of_16_bits_is_what_the_command_sees(pages, detector, tmp_path):
    """Pillow's own conversion cuts at 255, and the page is white."""
    grey = np.asarray(Image.open(pages[0]).convert("L"))
    Image.fromarray(grey).save(tmp_path / "8.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16.png")
    images = [tmp_path / "16.png", tmp_path / "8.png"]
    eight, sixteen = (read_rgb(path) for path in images)
    assert np.array_equal(eight, sixteen)
    one, other = next(iter(eval_loader(BareIndex(images), image_size=(128, 96), batch_size=2))).image
    assert torch.equal(one, other)
    expected = detector.detect(grey)
    assert len(expected.polygons)
    for image in (images[0], Image.open(images[0])):
        assert _same(detector.detect(image), expected)


def test_settings_of_the_call(trained, pages):
    assert not len(Detector(trained, "post.box_thresh=1").detect(pages[0]).scores)
    many = Detector(trained, *MANY, "post.shape=polygon", device="cpu").detect(pages[0])
    assert {polygon.shape[1] for polygon in many.polygons} == {2} and max(map(len, many.polygons)) > 4


def test_what_is_no_image_is_refused_in_one_line(detector, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    Image.effect_noise((40, 40), 50).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:300])
    for image, words in [
        (np.zeros((8, 8, 3), np.float32), r"array \(8, 8, 3\) of float32 is no image"),
        (np.zeros((8, 8, 2), np.uint8), "is no image"),
        (np.zeros((0, 8, 3), np.uint8), "an image of 0 pixels"),
        (None, "NoneType is no image"),
        (tmp_path / "a.png", "a.png: unreadable"),
        (tmp_path / "nowhere.png", "nowhere.png: missing"),
        (tmp_path / "cut.png", "cut.png: cannot be decoded"),
        (Image.open(tmp_path / "cut.png"), "cut.png: cannot be decoded"),
    ]:
        with pytest.raises(UserError, match=words) as caught:
            detector.detect(image)
        assert "\n" not in str(caught.value)


def test_pages_above_the_limit_are_refused(trained):
    small = Detector(trained, "data.max_page_mpx=0.01")
    for image in (np.zeros((200, 200, 3), np.uint8), Image.new("L", (200, 200))):
        with pytest.raises(UserError, match="40000 pixels"):
            small.detect(image)


def test_threads_get_what_one_thread_gets(pages, detector):
    expected = [detector.detect(page) for page in pages]
    found = {}

    def work(k):
        found[k] = [detector.detect(page) for page in pages]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(_same(a, b) for pages_of in found.values() for a, b in zip(pages_of, expected, strict=True))


def test_an_ensemble_is_a_detector_and_predicts(trained, pages, tmp_path):
    val = next((trained.parent / ".synthetic").rglob("*.json"))
    made = [f"data.val={val}", "--flips", "h", "--scales", "1,1.5", "--out", str(tmp_path / "ensemble")]
    assert ensemble.main([str(trained), *made, *MANY]) == 0
    out, file = tmp_path / "out", tmp_path / "ensemble" / "ensemble.yaml"
    command = [*map(str, pages), "--checkpoint", str(file), "--out", str(out), *MANY]
    assert predict.main(command) == 0
    lines = [json.loads(line) for line in (out / LINES).read_text().splitlines()]
    both = Detector(file.parent, *MANY).detect_batch(pages)
    plain = Detector(trained, *MANY).detect_batch(pages)
    assert all(abs(a.scores[0] - b.scores[0]) > 1e-6 for a, b in zip(both, plain, strict=True)), "the views count"
    for line, found in zip(lines, both, strict=True):
        assert len(line["regions"]) == len(found.polygons) > 0
        for region, polygon in zip(line["regions"], found.polygons, strict=True):
            assert np.abs(np.array(region["points"]) - polygon).max() < 0.1
    file.write_text(file.read_text().replace("flips: h", "flips: none"))
    with pytest.raises(UserError, match="checkpoint"):  # another detector than the lines are from
        predict.main([*command, "--resume"])
