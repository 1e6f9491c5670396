import io

import pytest
from bombs import GOOD, jpeg, many_scans, png_bomb, png_chunks
from PIL import Image, PngImagePlugin

from pipelines.errors import UserError
from pipelines.images.jpeg import count_scans
from pipelines.images.read import EXIF_ORIENTATION, pixel_limit, read_header, read_rgb
from pipelines.limits import DEFAULT, Limits


def test_scans_are_counted_and_plain_files_not_read_through(tmp_path):
    assert count_scans(GOOD, 100) == 1
    progressive = jpeg(Image.new("RGB", (64, 64)), progressive=True)
    assert count_scans(progressive, 100) == progressive.count(b"\xff\xda") == 10
    assert count_scans(progressive, 4) == 5  # no further than it takes
    assert count_scans(GOOD[: GOOD.index(b"\xff\xda") + 20], 100) == 1  # nothing after the scan's header is needed
    for cut in range(0, len(progressive), 7):
        assert count_scans(progressive[:cut], 100) <= 10  # never an error
    thumbnail = jpeg(Image.new("RGB", (64, 64)), exif=b"Exif\0\0" + many_scans(200))
    assert count_scans(thumbnail, 100) == 1  # the scans of an embedded picture are not decoded
    (tmp_path / "a.jpg").write_bytes(many_scans(88))
    assert not read_header(tmp_path / "a.jpg").problem  # 10 less 4 of colour, and 88: below 100
    assert read_header(tmp_path / "a.jpg", Limits(scans=20)).problem == "too-many-scans"


def test_a_png_is_not_decoded_for_its_header(tmp_path, monkeypatch):
    """That took 735 MiB for 193 Mpx before they were refused, and 36 ms for 2 Mpx."""
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda image: pytest.fail("decoded"))
    path = tmp_path / "a.png"
    path.write_bytes(png_bomb(12_000))
    with pixel_limit(DEFAULT.pixels):
        assert read_header(path).problem == "too-large"
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    for turned in (False, True):
        Image.new("RGB", (40, 30)).save(path, **({"exif": exif} if turned else {}))
        assert read_header(path)[:3] == ((30, 40, 6) if turned else (40, 30, 1))


@pytest.mark.parametrize("kind", ["eXIf", "iTXt"])
def test_an_orientation_behind_the_pixels_of_a_png_counts(tmp_path, kind):
    file = io.BytesIO()
    Image.new("RGB", (40, 30)).save(file, "PNG")
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    xmp = b"XML:com.adobe.xmp\0\0\0\0\0" + b'<x tiff:Orientation="6"/>'
    body = {"eXIf": exif.tobytes()[6:], "iTXt": xmp}[kind]
    (tmp_path / "a.png").write_bytes(file.getvalue()[:-12] + png_chunks((kind.encode(), body), (b"IEND", b"")))
    assert read_header(tmp_path / "a.png")[:3] == (30, 40, 6)
    assert read_rgb(tmp_path / "a.png").shape == (40, 30, 3)


def test_a_raised_page_limit_holds_for_pictures_too(tmp_path, recwarn, monkeypatch):
    Image.new("RGB", (60, 50)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow refuses above twice it
    assert read_rgb(tmp_path / "a.png", Limits(pixels=3000)).shape == (50, 60, 3) and not recwarn.list
    with pytest.raises(UserError, match="too-large"):
        read_rgb(tmp_path / "a.png", Limits(pixels=2999))
