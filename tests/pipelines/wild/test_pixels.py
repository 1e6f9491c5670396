"""Pages as people have them: transparent, of several pages, of kinds that are not read, TIFFs of all sorts.

Origins: a screenshot tool's RGBA PNGs, a design program's palettes with transparency, scanned fax TIFFs, an
iPhone's HEIC renamed to .jpg, a scraper that saved an error page as a picture, a repository cloned without Git LFS.
"""

import io
import json
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from pipelines import loader
from pipelines.augment import AugmentConfig
from pipelines.check import check
from pipelines.errors import UserError
from pipelines.images.foreign import SUFFIXES
from pipelines.images.listing import find_images
from pipelines.images.plain import readable
from pipelines.images.read import EXIF_ORIENTATION, read_header, read_rgb
from pipelines.index.bare import BareIndex
from pipelines.index.build import open_index

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)
AVIF = b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf" + bytes(40)
WIDTH, HEIGHT = 90, 70


def _colours():
    """(H, W, 4) uint8: black text on what is clear, some half clear, and a part that is opaque."""
    rng = np.random.default_rng(0)
    rgba = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    rgba[20:40, 10:80] = (0, 0, 0, 255)
    rgba[45:55, 10:80, :3] = rng.integers(0, 256, (10, 70, 3))
    rgba[45:55, 10:80, 3] = rng.integers(0, 256, (10, 70))
    rgba[60:, :, :] = (200, 100, 50, 255)
    return rgba


def _white(rgba):
    """The reference: straight alpha over white, rounded."""
    alpha = rgba[:, :, 3:].astype(np.float64) / 255
    return np.rint(rgba[:, :, :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


def _chunk(kind, body):
    return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")


def _with_key(png, key):
    """A PNG with a colour that is clear (tRNS)."""
    at = png.index(b"IDAT") - 4
    return png[:at] + _chunk(b"tRNS", key) + png[at:]


def _encoded(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def _transparent(case):
    """Bytes of a page, and what it is on white."""
    rgba = _colours()
    image = Image.fromarray(rgba)
    grey = np.array(image.convert("LA"))
    on_white = _white(np.dstack([grey[:, :, :1]] * 3 + [grey[:, :, 1:]]))
    opaque = np.dstack([np.repeat(rgba[:, :, :1], 3, axis=2), np.where(rgba[:, :, 0] == 0, 0, 255).astype(np.uint8)])
    if case == "RGBA.bmp":
        return cv2.imencode(".bmp", rgba[:, :, [2, 1, 0, 3]])[1].tobytes(), _white(rgba)
    if case in ("RGBA.png", "RGBA.tif", "RGBA.webp", "RGBA.jp2"):
        formats = {"png": "PNG", "tif": "TIFF", "webp": "WEBP", "jp2": "JPEG2000"}
        options = {"lossless": True, "exact": True} if case.endswith("webp") else {}
        return _encoded(image, formats[case[5:]], **options), _white(rgba)
    if case in ("LA.png", "LA.tif"):
        return _encoded(image.convert("LA"), "PNG" if case.endswith("png") else "TIFF"), on_white
    if case == "palette.png":
        palette = image.convert("P")
        page = np.array(palette.convert("RGB"))
        return _encoded(palette, "PNG", transparency=0), np.where(np.array(palette)[:, :, None] == 0, 255, page)
    if case == "16-bit alpha.png":
        return cv2.imencode(".png", rgba[:, :, [2, 1, 0, 3]].astype(np.uint16) * 257)[1].tobytes(), _white(rgba)
    if case == "16-bit grey with a clear level.png":
        levels = Image.fromarray(rgba[:, :, 0].astype(np.uint16) * 257)
        return _with_key(_encoded(levels, "PNG"), bytes(2)), _white(opaque)
    assert case == "grey with a clear level.png"
    return _with_key(_encoded(Image.fromarray(rgba[:, :, 0]), "PNG"), bytes(2)), _white(opaque)


CASES = (
    "RGBA.png", "RGBA.tif", "RGBA.webp", "RGBA.jp2", "RGBA.bmp", "LA.png", "LA.tif", "palette.png", "16-bit alpha.png",
    "16-bit grey with a clear level.png", "grey with a clear level.png",
)  # fmt: skip


def _loaded(paths):
    batches = loader.eval_loader(BareIndex(paths), image_size=(HEIGHT, WIDTH), batch_size=len(paths))
    (batch,) = list(batches)
    batches.close()
    return batch.image


@pytest.mark.parametrize("case", CASES)
def test_a_transparent_page_is_its_copy_on_white(tmp_path, capfd, case):
    data, expected = _transparent(case)
    path, copy = tmp_path / case, tmp_path / "copy.png"
    path.write_bytes(data)
    rgb = read_rgb(path)
    assert np.abs(rgb.astype(int) - expected).max() <= 1
    Image.fromarray(rgb).save(copy)
    page, white = _loaded([path, copy])
    assert torch.equal(page, white)
    assert not capfd.readouterr().err


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_a_transparent_page_is_turned_as_others_are(tmp_path, format, orientation):
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    path = tmp_path / "page"
    Image.fromarray(_colours()).save(path, format, exif=exif)
    rgb = read_rgb(path)
    Image.fromarray(rgb).save(tmp_path / "copy.png")
    page, upright = _loaded([path, tmp_path / "copy.png"])
    assert rgb.shape[:2] == ((WIDTH, HEIGHT) if orientation >= 5 else (HEIGHT, WIDTH))
    assert torch.allclose(page, upright, atol=0.02)  # through another matrix: a rounding of the last bits


def _set(folder, images):
    """A data set in the contest's JSON: one word on each page."""
    folder.mkdir(exist_ok=True)
    (folder / "images").mkdir(exist_ok=True)
    square = [[10, 20], [80, 20], [80, 40], [10, 40]]
    for name, data in images.items():
        (folder / "images" / name).write_bytes(data)
    pages = {name: {"words": {"1": {"points": square}}} for name in images}
    (folder / "train.json").write_text(json.dumps({"images": pages}))
    return folder / "train.json"


def _copies(case):
    """The set of a page in two copies, and the set of its copies on white."""
    data, _ = _transparent(case)
    return {f"{k}{case[case.index('.') :]}": data for k in range(2)}


@pytest.mark.parametrize("case", ["RGBA.png", "LA.tif"])
def test_training_sees_white_paper(tmp_path, case):
    index = open_index(_set(tmp_path / "clear", _copies(case)), cache_dir=tmp_path / "cache")
    white = {}
    for row in range(2):
        white[f"{row}.png"] = _encoded(Image.fromarray(read_rgb(index.path(row))), "PNG")
    copies = open_index(_set(tmp_path / "white", white), cache_dir=tmp_path / "cache")
    batches = []
    for pages in (index, copies):
        made = loader.train_loader(pages, image_size=(64, 64), batch_size=2, augment=AugmentConfig(), seed=3)
        batches.append(next(made))
        made.close()
    assert torch.equal(batches[0].image, batches[1].image)
    assert not check(tmp_path / "clear" / "train.json").fatal


def test_a_page_that_is_all_clear_shows_its_colours(tmp_path):
    """Nobody means that: tools that write bitmaps leave the fourth byte 0."""
    rgba = _colours()
    rgba[:, :, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "a.png")
    assert np.array_equal(read_rgb(tmp_path / "a.png"), rgba[:, :, :3])


def test_a_damaged_transparent_page_is_named(tmp_path, caplog):
    data, _ = _transparent("RGBA.png")
    index = open_index(_set(tmp_path, _copies("RGBA.png")), cache_dir=tmp_path / "cache")
    index.path(1).write_bytes(data[:80] + bytes(len(data) - 80))
    made = loader.train_loader(
        index, image_size=(64, 64), batch_size=2, augment=AugmentConfig(), seed=3, max_bad_share=0.5
    )
    next(made)
    made.close()
    assert "1.png: cannot be decoded" in caplog.text
    assert any(finding.kind in ("unreadable", "truncated") for finding in check(tmp_path / "train.json").findings)


def _tiffs():
    grey = Image.fromarray(_colours()[:, :, 0])
    rgb = Image.fromarray(_white(_colours()))
    return {
        "bit": _encoded(grey.convert("1"), "TIFF"),
        "fax, 0 is white": _encoded(grey.convert("1"), "TIFF", compression="group4", tiffinfo={262: 0}),
        "grey, 0 is white": _encoded(grey, "TIFF", tiffinfo={262: 0}),
        "CMYK": _encoded(rgb.convert("CMYK"), "TIFF"),
        "YCbCr": _encoded(rgb.convert("YCbCr"), "TIFF"),
        "LZW": _encoded(rgb, "TIFF", compression="tiff_lzw"),
        "16 bits": _encoded(Image.fromarray(np.array(grey).astype(np.uint16) * 257), "TIFF"),
        "floats": _encoded(Image.fromarray((np.array(grey) / 255).astype(np.float32)), "TIFF"),
    }


@pytest.mark.parametrize("kind", _tiffs())
def test_good_tiffs_are_read_in_silence_and_alike(tmp_path, capfd, kind):
    """DALI wrote red lines about half of these, and refused one."""
    (tmp_path / "page.tif").write_bytes(_tiffs()[kind])
    rgb = read_rgb(tmp_path / "page.tif")
    Image.fromarray(rgb).save(tmp_path / "copy.png")
    page, copy = _loaded([tmp_path / "page.tif", tmp_path / "copy.png"])
    assert torch.equal(page, copy) and rgb.min() < 10 and rgb.max() > 190
    source = _set(tmp_path / "set", {"page.tif": _tiffs()[kind]})
    assert not check(source).fatal and len(open_index(source, cache_dir=tmp_path / "cache")) == 1
    assert not capfd.readouterr().err


@pytest.mark.parametrize("values", [np.int32([[0, 70000]]), np.float32([[0, 200]]), np.float32([[0, np.nan]])])
def test_pixels_of_32_bits_that_nobody_can_scale_are_refused(tmp_path, values):
    source = _set(tmp_path, {"page.tif": _encoded(Image.fromarray(values), "TIFF")})
    with pytest.raises(UserError, match=r"page\.tif: cannot be decoded \(pixels of 32 bits .* save it with 8 bits"):
        read_rgb(tmp_path / "images" / "page.tif")
    assert check(source).fatal


def test_a_grey_map_of_16_bits_is_no_white_page(tmp_path):
    levels = np.linspace(0, 65535, 6000).astype(np.uint16).reshape(60, 100)
    (tmp_path / "a.pgm").write_bytes(b"P5 100 60 65535\n" + levels.astype(">u2").tobytes())
    assert np.array_equal(read_rgb(tmp_path / "a.pgm")[:, :, 0], (levels.astype(int) + 128) // 257)


SEVERAL = {
    "scan.tif": ("TIFF", {"save_all": True}, "RGB"),
    "animated.webp": ("WEBP", {"save_all": True}, "RGB"),
    "animated.png": ("PNG", {"save_all": True}, "RGB"),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_of_several_pages_the_first_is_read_and_that_is_said(tmp_path, name):
    format, options, mode = SEVERAL[name]
    first, second = (Image.new(mode, (WIDTH, HEIGHT), colour) for colour in ("red", "blue"))
    source = _set(tmp_path, {name: _encoded(first, format, append_images=[second], **options)})
    report = check(source)
    (finding,) = [finding for finding in report.findings if finding.kind == "several-pages"]
    assert not report.fatal and finding.path == name and "first is read; save each as a file" in finding.detail
    assert open_index(source, cache_dir=tmp_path / "cache").counts["several_pages"] == 1
    pages = BareIndex([tmp_path / "images" / name])
    assert pages.several == {0}
    assert np.abs(read_rgb(tmp_path / "images" / name)[5, 5].astype(int) - (255, 0, 0)).max() <= 3


def test_a_small_copy_in_a_tiff_is_no_second_page(tmp_path):
    file = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT)).save(
        file, "TIFF", save_all=True, append_images=[_reduced(Image.new("RGB", (9, 7)))]
    )
    (tmp_path / "a.tif").write_bytes(file.getvalue())
    header = read_header(tmp_path / "a.tif")
    assert not header.several and (header.width, header.height) == (WIDTH, HEIGHT)


def _reduced(image):
    image.encoderinfo = {"tiffinfo": {254: 1}}
    return image


STRANGERS = {
    "photo.heic": (HEIC, "a HEIC, which is not read: convert it to JPEG or PNG"),
    "photo.jpg": (HEIC, "a HEIC, which is not read: convert it to JPEG or PNG"),
    "photo.avif": (AVIF, "an AVIF, which is not read: convert it to JPEG or PNG"),
    "photo.png": (AVIF, "an AVIF, which is not read: convert it to JPEG or PNG"),
    "picture.gif": (b"GIF89a" + bytes(40), "a GIF, which is not read: convert it to JPEG or PNG"),
    "scan.pdf": (b"%PDF-1.7\n" + bytes(40), "a PDF, which is not read: convert its pages to JPEG or PNG"),
    "scan.tif": (b"%PDF-1.7\n" + bytes(40), "a PDF, which is not read: convert its pages to JPEG or PNG"),
    "page.jxl": (b"\xff\x0a" + bytes(40), "a JPEG XL, which is not read: convert it to JPEG or PNG"),
    "a.jpg": (b"<!DOCTYPE html>\n<html>404</html>", "a web page, saved in the place of an image: download it again"),
    "b.jpg": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a Git LFS pointer, not the image"),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_what_is_no_image_of_ours_is_named_with_its_mend(tmp_path, name):
    data, words = STRANGERS[name]
    good = _encoded(Image.new("RGB", (WIDTH, HEIGHT)), "JPEG")
    source = _set(tmp_path / "set", {name: data, "good.jpg": good})
    with pytest.raises(UserError, match=f"{name}: unreadable .*{words}") as error:
        open_index(source, cache_dir=tmp_path / "cache")
    assert "\n" not in str(error.value)
    (finding,) = check(source).findings
    assert (finding.path, finding.kind) == (name, "unreadable") and words in finding.detail
    with pytest.raises(UserError, match=words):
        read_rgb(tmp_path / "set" / "images" / name)
    images = find_images([str(tmp_path / "set" / "images")])
    pages = BareIndex(images, tolerate=True)
    assert len(pages) == 2 and [words in reason for reason in pages.bad.values()] == [True]


def test_a_jpeg_under_a_strangers_name_is_read(tmp_path):
    for suffix in SUFFIXES:
        Image.new("RGB", (40, 30)).save(tmp_path / f"a{suffix.upper()}", "JPEG")
    assert not BareIndex(find_images([str(tmp_path)]), tolerate=True).bad


def test_jpegs_go_to_dali_as_they_are():
    """And are loaded without Pillow."""
    code = "import sys, pipelines.source; sys.exit('PIL.Image' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    png = np.frombuffer(_encoded(Image.new("RGB", (40, 30)), "PNG"), np.uint8)
    assert readable(png, 1, 1200) is png


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JFIF"])
def test_other_suffixes_of_a_jpeg(tmp_path, suffix):
    # what a browser on Windows saves
    for name in ("img", "gt"):
        (tmp_path / "set" / name).mkdir(parents=True)
    for name in ("a", "b"):
        Image.new("RGB", (400, 300), "white").save(tmp_path / "set" / "img" / f"{name}{suffix}", "JPEG")
        (tmp_path / "set" / "gt" / f"{name}.txt").write_text(
            "10,20,110,20,110,40,10,40,A\n10,60,110,60,110,80,10,80,B\n"
        )
    assert check(tmp_path / "set").fatal == [] and len(open_index(tmp_path / "set", cache_dir=tmp_path)) == 2
