"""Pixels: what the graph makes of an image, against Pillow, OpenCV and numpy."""

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from pipelines import geometry, graph, loader
from pipelines.augment import AugmentConfig, draw
from pipelines.index.bare import BareIndex
from pipelines.index.build import build
from pipelines.source import NOISE_UNIT, SampleMaker, is_tone

PIXELS_ALIKE = {
    "brightness_p": 0.0, "hsv_p": 0.0, "sharpen_p": 0.0, "blur_p": 0.0, "noise_p": 0.0, "shadow_p": 0.0, "fog_p": 0.0,
}  # fmt: skip


def levels(batch, n=0):
    """(H, W, 3) float grey levels of 255 of page n, the normalisation undone."""
    return batch.image[n].permute(1, 2, 0).numpy() * np.array(graph.STD) + np.array(graph.MEAN)


def smooth(width, height, seed=0):
    """An RGB page of soft blobs: any resampling gives nearly the same."""
    small = np.random.default_rng(seed).integers(0, 255, (height // 20 + 2, width // 20 + 2, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def load_one(path, canvas=(256, 256)):
    pages = loader.eval_loader(BareIndex([path]), image_size=canvas, batch_size=1)
    (batch,) = list(pages)
    pages.close()
    return batch


def page_part(batch, size_wh):
    """The part of the canvas that the letterboxed page covers."""
    (x0, y0), (x1, y1) = np.rint(geometry.apply(batch.matrix[0], np.array([[0, 0], size_wh]))).astype(int)
    return levels(batch)[y0:y1, x0:x1]


def assert_like_pillow(path, canvas=(256, 256), mean=0.5, largest=20.0):
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I;16"):
            upright = Image.fromarray((np.asarray(upright) // 257).astype(np.uint8))
        upright = upright.convert("RGB")
    got = page_part(load_one(path, canvas), upright.size)
    expected = upright.resize((got.shape[1], got.shape[0]), Image.Resampling.BILINEAR)
    # an enlarged page fades into the padding over half a source pixel
    rim = int(np.ceil(got.shape[0] / upright.size[1] / 2))
    difference = np.abs(got - np.asarray(expected, np.float64))[rim:-rim, rim:-rim]
    assert difference.mean() < mean and difference.max() < largest


@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        ("rgb.jpg", "RGB", {"quality": 95}),
        ("grey.jpg", "L", {"quality": 95}),
        ("cmyk.jpg", "CMYK", {"quality": 95}),
        ("progressive.jpg", "RGB", {"quality": 95, "progressive": True}),
        ("rgb.png", "RGB", {}),
        ("grey.png", "L", {}),
        ("bit.png", "1", {}),
        ("palette.png", "P", {}),
        ("alpha.png", "RGBA", {}),
        ("grey_alpha.png", "LA", {}),
        ("rgb.webp", "RGB", {"quality": 95}),
        ("rgb.bmp", "RGB", {}),
        ("rgb.tif", "RGB", {}),
    ],
)
def test_formats_are_as_pillow_reads_them(tmp_path, name, mode, options):
    smooth(160, 240).convert(mode).save(tmp_path / name, **options)
    assert_like_pillow(tmp_path / name)


def test_16_bit_and_transparent_png(tmp_path):
    grey = np.asarray(smooth(160, 240).convert("L")).astype(np.uint16) * 257
    Image.fromarray(grey).save(tmp_path / "16.png")
    assert_like_pillow(tmp_path / "16.png")
    pixels = np.array(smooth(160, 240).convert("RGBA"))
    pixels[:100, :, 3] = 0  # white paper shows there
    Image.fromarray(pixels).save(tmp_path / "transparent.png")
    assert levels(load_one(tmp_path / "transparent.png"))[2:90, 50:200].min() > 254


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("page.jpg", "page.png", "page.tif"):
        smooth(160, 240).save(tmp_path / name, exif=exif, quality=95)
        assert_like_pillow(tmp_path / name)


def test_a_page_of_35_megapixels_and_one_of_60_pixels(tmp_path):
    smooth(5000, 7000).save(tmp_path / "large.jpg", quality=80)
    assert_like_pillow(tmp_path / "large.jpg", (320, 256), mean=0.7)
    smooth(60, 60).save(tmp_path / "small.png")
    assert_like_pillow(tmp_path / "small.png", (256, 320), mean=0.7)
    smooth(3, 900).save(tmp_path / "line.png")
    batch = load_one(tmp_path / "line.png")
    assert np.isfinite(batch.image.numpy()).all() and levels(batch).max() > 50


def test_a_strong_shrink_is_antialiased(tmp_path):
    board = (np.indices((1280, 1280)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(board).save(tmp_path / "board.png")
    inside = levels(load_one(tmp_path / "board.png", (320, 320)))[4:-4, 4:-4]
    assert np.abs(inside - 127.5).max() < 4  # one bilinear warp gives 0 and 255 here, or beats of them


STRONG = AugmentConfig(
    hflip=0.5, rotate_deg=30.0, rotate_p=1.0, scale_min=0.8, scale_max=1.5, aspect=1.3, shift=0.1, **PIXELS_ALIKE
)


def write_pages(folder, pages):
    """An ICDAR folder of (name, rgb, polygons) and its index."""
    (folder / "img").mkdir()
    (folder / "gt").mkdir()
    for name, rgb, polygons in pages:
        Image.fromarray(rgb).save(folder / "img" / f"{name}.png")
        rows = [",".join(f"{v:.3f}" for v in p.ravel()) + ",word" for p in polygons]
        (folder / "gt" / f"{name}.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return build(folder, folder / "index")


def train_batches(index, config, count=1, canvas=(256, 320), batch_size=2, **options):
    made = loader.train_loader(index, image_size=canvas, batch_size=batch_size, augment=config, seed=5, **options)
    batches = [next(made) for _ in range(count)]
    made.close()
    return batches


def test_the_warp_is_opencvs_with_centres_at_one_half(tmp_path):
    """Period 20 px, amplitude 100: half a pixel of misplacement would be 15 levels."""
    y, x = np.mgrid[:300, :220]
    wave = 127.5 + 60 * np.sin(x * (2 * np.pi / 20)) + 60 * np.cos(y * (2 * np.pi / 17))
    rgb = np.repeat(np.rint(np.clip(wave, 0, 255)).astype(np.uint8)[:, :, None], 3, 2)
    index = write_pages(tmp_path, [(str(i), rgb, []) for i in range(4)])
    for batch in train_batches(index, STRONG, 2):
        for n in range(2):
            inverse = geometry.invert(batch.matrix[n])
            row, column = np.mgrid[:256, :320]
            at = geometry.apply(inverse, np.stack([column.ravel() + 0.5, row.ravel() + 0.5], 1)).reshape(256, 320, 2)
            expected = cv2.remap(rgb, *np.moveaxis((at - 0.5).astype(np.float32), 2, 0), cv2.INTER_LINEAR)
            inner = np.all((at > 1) & (at < np.array([219, 299])), axis=2)
            outer = np.any((at < -1) | (at > np.array([221, 301])), axis=2)
            got = levels(batch, n)
            assert inner.sum() > 5000 and np.abs(got - expected)[inner].max() < 2.5  # OpenCV's weights have 5 bits
            assert np.abs(got[outer]).max(initial=0) < 1e-3  # padding is black


def depth(polygon, shape):
    """Signed distance (inside positive) of pixel centres to the nearest edge line of a convex polygon, pixels."""
    y, x = np.indices(shape) + 0.5
    area = sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(polygon, np.roll(polygon, -1, 0)))
    sides = []
    for a, b in zip(polygon, np.roll(polygon, -1, 0)):
        normal = np.array([-(b - a)[1], (b - a)[0]]) / np.linalg.norm(b - a) * np.sign(area)
        sides.append((x - a[0]) * normal[0] + (y - a[1]) * normal[1])
    return np.min(sides, axis=0)


def test_image_and_polygons_never_drift_apart(tmp_path):
    """Bright quads on a dark page: after any warp, what is bright is what the polygons hold, to one pixel."""
    rng = np.random.default_rng(1)
    pages = []
    for i in range(4):
        size = 3.0 if i == 3 else 1.0  # so large goes through the antialiased resize
        quads = []
        for row in range(6):
            for column in range(2):
                turn = rng.uniform(-0.15, 0.15)
                r = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
                half = rng.uniform([35, 8], [45, 14])
                centre = np.array([60 + 110 * column, 30 + 50 * row]) + rng.uniform(-3, 3, 2)
                quads.append(((np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half) @ r.T + centre) * size)
        shape = (int(300 * size), int(230 * size))
        fine = np.zeros((shape[0] * 8, shape[1] * 8), np.uint8)
        cv2.fillPoly(fine, [np.rint(q * 8 - 0.5).astype(np.int32) for q in quads], 255)
        coverage = cv2.resize(fine, shape[::-1], interpolation=cv2.INTER_AREA)
        rgb = np.repeat(coverage[:, :, None], 3, 2)
        pages.append((str(i), rgb, [q.astype(np.float32) for q in quads]))
    index = write_pages(tmp_path, pages)
    seen = 0
    for batch in train_batches(index, STRONG, 4):
        points, offsets = batch.points_xy.numpy(), batch.poly_offsets.numpy()
        for n in range(2):
            polygons = [points[offsets[p] : offsets[p + 1]] for p in range(*batch.page_offsets[n : n + 2].tolist())]
            inside = np.max([depth(p, (256, 320)) for p in polygons], axis=0)
            bright = levels(batch, n)[:, :, 0] > 127.5
            assert bright[inside > 1].all() and not bright[inside < -1].any()
            iou = (bright & (inside > 0)).sum() / (bright | (inside > 0)).sum()
            assert iou > 0.96
            seen += len(polygons)
    assert seen > 60


@pytest.fixture(scope="module")
def soft_index(tmp_path_factory):
    rgb = np.asarray(smooth(200, 260, seed=3))
    quad = np.array([[20, 20], [90, 20], [90, 40], [20, 40]], np.float32)
    return write_pages(tmp_path_factory.mktemp("soft"), [(str(i), rgb, [quad]) for i in range(4)])


@pytest.fixture(scope="module")
def untouched(soft_index):
    (batch,) = train_batches(soft_index, AugmentConfig(**PIXELS_ALIKE))
    return batch


def with_only(soft_index, **changes):
    config = AugmentConfig(**{**PIXELS_ALIKE, **changes})
    (batch,) = train_batches(soft_index, config)
    return config, batch


@pytest.mark.parametrize("hsv_p", [0.0, 1.0])
def test_colour_is_the_drawn_matrix(soft_index, untouched, hsv_p):
    config, batch = with_only(soft_index, brightness_p=1.0, hsv_p=hsv_p, brightness=0.3)
    np.testing.assert_array_equal(batch.index, untouched.index)
    for n, row in enumerate(batch.index):
        colour = draw(config, 5, 0, int(row)).colour
        assert is_tone(colour) == (hsv_p == 0)
        expected = np.clip(levels(untouched, n) @ colour[:, :3].T + colour[:, 3], 0, 255)
        assert np.abs(levels(batch, n) - expected).max() < 0.51
        assert np.abs(levels(batch, n) - levels(untouched, n)).mean() > 1


def test_blur_and_sharpening(soft_index, untouched):
    for changes, sign in (({"blur_p": 1.0, "blur_sigma": 3.0}, 1), ({"sharpen_p": 1.0}, -1)):
        config, batch = with_only(soft_index, **changes)
        for n, row in enumerate(batch.index):
            drawn, before = draw(config, 5, 0, int(row)), levels(untouched, n)
            assert np.sign(drawn.blur_mix) == sign
            window = 2 * int(np.ceil(3 * drawn.blur_sigma)) + 1
            blurred = cv2.GaussianBlur(before, (window, window), drawn.blur_sigma, borderType=cv2.BORDER_REFLECT_101)
            expected = np.clip(before + drawn.blur_mix * (np.rint(blurred) - before), 0, 255)
            assert np.abs(levels(batch, n) - expected).max() < 1.6
            assert np.abs(levels(batch, n) - before).max() > 3


def test_noise_is_the_drawn_window_of_the_tile(soft_index, untouched):
    config, batch = with_only(soft_index, noise_p=1.0, noise_sigma=20.0)
    maker = SampleMaker(soft_index, (256, 320))
    for n, row in enumerate(batch.index):
        drawn = draw(config, 5, 0, int(row))
        noise = maker(int(row), drawn).noise
        tile = maker(int(row), drawn._replace(noise_sigma=NOISE_UNIT)).noise / NOISE_UNIT
        assert abs(tile.std() - 1) < 0.01 and abs(tile.mean()) < 0.01
        assert np.abs(noise - drawn.noise_sigma * tile).max() < 0.51
        expected = np.clip(levels(untouched, n) + noise, 0, 255)
        assert np.abs(levels(batch, n) - expected).max() < 1e-3
    assert not np.array_equal(levels(batch, 0) - levels(untouched, 0), levels(batch, 1) - levels(untouched, 1))


def test_shadow_and_fog_are_the_stretched_map(soft_index, untouched):
    config, batch = with_only(soft_index, shadow_p=1.0, fog_p=1.0)
    for n, row in enumerate(batch.index):
        light = draw(config, 5, 0, int(row)).light
        stretched = cv2.resize(light, (320, 256), interpolation=cv2.INTER_LINEAR)
        expected = np.clip(levels(untouched, n) * stretched[..., :1] + stretched[..., 1:], 0, 255)
        assert np.abs(levels(batch, n) - expected).max() < 0.6


def test_disabled_training_is_the_evaluation_image(soft_index):
    (batch,) = train_batches(soft_index, AugmentConfig(enabled=False))
    pages = loader.eval_loader(soft_index, image_size=(256, 320), batch_size=4)
    (whole,) = list(pages)
    pages.close()
    for n, row in enumerate(batch.index):
        np.testing.assert_array_equal(batch.image[n].numpy(), whole.image[int(row)].numpy())
