import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipelines.annotations.read import read_source
from pipelines.errors import UserError
from pipelines.synthetic import fonts, receipts
from pipelines.synthetic.receipts import ensure, write_dataset
from pipelines.synthetic.text import compose

SIZE = (320, 256)


def render_page(*args, **options):
    """RGB (H, W, 3) uint8, polygons and texts of a page."""
    data, polygons, texts = receipts.render_page(*args, **options)
    return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB), polygons, texts


def filled(polygons, hw):
    """Mask of polygons in pixel-edge coordinates (OpenCV's are centres)."""
    mask = np.zeros(hw, np.uint8)
    for polygon in polygons:
        cv2.fillPoly(mask, [np.round((polygon - 0.5) * 256).astype(np.int32)], 255, cv2.LINE_8, 8)
    return mask > 0


@pytest.mark.parametrize("hw", [SIZE, (64, 64), (640, 480), (96, 700), (700, 64)])
@pytest.mark.parametrize("difficulty", [0.0, 0.5, 1.0])
def test_pages_have_text_inside_the_page(hw, difficulty):
    for index in range(6):
        page, polygons, texts = render_page(3, index, *hw, difficulty)
        assert page.shape == (*hw, 3) and page.dtype == np.uint8
        assert len(polygons) == len(texts) >= 1 and all(texts)
        for polygon in polygons:
            assert polygon.shape == (4, 2) and polygon.dtype == np.float32
            assert (polygon >= 0).all() and (polygon <= hw[::-1]).all()
            # Clockwise on screen from the top left, so the signed area is positive.
            x, y = polygon.T
            assert np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)) > 0
            assert polygon[0, 0] < polygon[1, 0] and polygon[0, 1] < polygon[3, 1]


def test_text_is_never_too_small_to_learn():
    """DB training ignores text whose short side is under 8 px; a lone digit may be narrower, but no line is lower."""
    for index in range(40):
        for polygon in render_page(5, index, *SIZE, 1.0)[1]:
            wide = np.linalg.norm(polygon[1] - polygon[0]) > 12
            assert not wide or min(cv2.minAreaRect(polygon)[1]) >= 8


def test_deterministic_and_independent_of_order():
    first = render_page(11, 4, *SIZE)
    render_page(11, 5, *SIZE)
    again = render_page(11, 4, *SIZE)
    assert np.array_equal(first[0], again[0]) and first[2] == again[2]
    np.testing.assert_array_equal(first[1], again[1])
    for other in (render_page(12, 4, *SIZE), render_page(11, 5, *SIZE)):
        assert not np.array_equal(first[0], other[0]) and first[2] != other[2]


def text_sheet(index):
    """A printed sheet with text only, so that every drop of ink belongs to a box."""
    rng = np.random.default_rng(index)
    family = fonts.families()[index % 6]
    printer = receipts._Printer(rng, receipts._Plan((500, 600), 20, 14, family, np.eye(3)))
    for row in compose(rng, 25):
        if row.kind == "text" and not printer.row(row):
            break
    return np.asarray(printer.image), printer.quads


@pytest.mark.parametrize("index", range(6))
def test_boxes_hold_exactly_the_ink(index):
    ink, quads = text_sheet(index)
    inside = np.zeros_like(ink)
    for quad in quads:
        (left, top), (right, bottom) = quad[0].astype(int), quad[2].astype(int)
        box = ink[top:bottom, left:right]
        inside[top:bottom, left:right] = 1
        # Ink in the outermost columns: the box is tight, not only large enough.
        assert box[:, 0].any() and box[:, -1].any()
    assert ink[inside == 0].sum() == 0


def test_boxes_of_a_row_do_not_overlap():
    for index in range(6):
        count = sum(filled([quad], (600, 500)).astype(int) for quad in text_sheet(index)[1])
        assert (count <= 1).mean() > 0.999


def test_text_boxes_are_dark_on_light():
    """The page shows text where the polygons say: boxes vary far more than the paper beside them."""
    page, polygons, _ = render_page(2, 0, 640, 480, 0.2)
    grey = cv2.cvtColor(page, cv2.COLOR_RGB2GRAY).astype(np.float32)
    for polygon in polygons:
        region = grey[filled([polygon], grey.shape)]
        assert region.max() - region.min() > 40


def test_dataset_reads_back_equal(tmp_path):
    path = write_dataset(tmp_path / "set", 3, 7, *SIZE, workers=2)
    made = read_source(path)
    name, root, pages = made.format, made.root, made.pages
    assert name == "contest" and root == tmp_path / "set" / "images" and len(pages) == 3
    for index, page in enumerate(pages):
        rgb, polygons, texts = render_page(7, index, *SIZE)
        assert (page.width, page.height) == SIZE[::-1] and page.texts == texts
        np.testing.assert_allclose(page.polygons, polygons, atol=5.1e-4)
        stored = cv2.cvtColor(cv2.imread(str(root / page.path)), cv2.COLOR_BGR2RGB)
        np.testing.assert_array_equal(stored, rgb)


def digest(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def test_worker_count_changes_nothing(tmp_path):
    for workers in (1, 3):
        write_dataset(tmp_path / str(workers), 5, 1, 96, 96, workers)
    assert digest(tmp_path / "1") == digest(tmp_path / "3")


def test_ensure_writes_once_and_completely(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: ensure(tmp_path, 4, 0, 96, 96, 1), range(4)))
    assert len(set(paths)) == 1 and len(list(tmp_path.iterdir())) == 1
    assert len(json.loads(paths[0].read_text())["images"]) == 4
    stamp = paths[0].stat().st_mtime_ns
    assert ensure(tmp_path, 4, 0, 96, 96).stat().st_mtime_ns == stamp
    assert ensure(tmp_path, 4, 1, 96, 96).parent != paths[0].parent


def test_a_failed_render_leaves_nothing(tmp_path, monkeypatch):
    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError):
        ensure(tmp_path, 2, 0, 96, 96, 1)
    assert list(tmp_path.iterdir()) == []


def test_bad_requests_are_refused(tmp_path):
    for call, words in (
        (lambda: render_page(0, 0, 32, 320), "at least 64"),
        (lambda: render_page(0, 0, 320, 320, 1.5), "0 to 1"),
        (lambda: render_page(0, 0, 320, 320, fonts="comic"), "bundled, system, hangul"),
        (lambda: write_dataset(tmp_path / "x", 0, 0, 320, 320), "at least 1"),
    ):
        with pytest.raises(UserError, match=words):
            call()


def test_hangul_pages_or_a_clear_refusal():
    try:
        fonts.families("hangul")
    except UserError as error:
        assert "install" in str(error)
        pytest.skip("no Hangul font on this machine")
    _, polygons, texts = render_page(0, 0, *SIZE, fonts="hangul")
    assert polygons and any("가" <= letter <= "힣" for text in texts for letter in text)
