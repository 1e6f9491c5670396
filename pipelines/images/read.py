"""Image headers: size, EXIF orientation, and bounds on pixels and scans, all before a picture is decoded."""

import mmap
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pipelines.errors import UserError
from pipelines.images.foreign import HEAD_BYTES, foreign
from pipelines.images.jpeg import count_scans
from pipelines.limits import DEFAULT, Limits

EXIF_ORIENTATION = 0x0112
_NEW_SUBFILE_TYPE = 254
# What DALI decodes too (MPO opens as a JPEG), never with an outside program: Pillow starts Ghostscript for an EPS.
PILLOW_FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "PPM", "JPEG2000")
# Text chunks of a PNG that may hold an orientation: ImageMagick's profile and XMP.
_TURNING_TEXTS = (b"Raw profile type exif", b"XML:com.adobe.xmp")

SEVERAL_PAGES = "has several pages or frames, of which the first is read; save each as a file of its own"
_LOOKED_AT = 8  # pages of a TIFF, to tell a second one from the smaller copies of the first

UNDECODABLE = (OSError, SyntaxError, ValueError, EOFError)  # what Pillow's decoders raise for damage


class Header(NamedTuple):
    """What a file says about itself. `width`, `height` are oriented pixels; `problem` is "" for a good header.

    `several`: it has more pages or frames than the one that is read.
    """

    width: int
    height: int
    orientation: int
    mtime_ns: int
    num_bytes: int
    problem: str = ""
    detail: str = ""
    several: bool = False


@contextmanager
def pixel_limit(max_pixels: int) -> Iterator[None]:
    """Lets Pillow open up to `max_pixels` pixels without a warning. Callers check the size themselves.

    Process-wide while it lasts (Pillow's limit is a module global), so it belongs around a whole run.
    """
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", module=r"PIL\.")  # of damaged EXIF data, without the file's name
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def read_header(path: Path, limits: Limits = DEFAULT) -> Header:
    """Reads a file's header only; of a JPEG that comes in several scans the whole file, to count them.

    Problems: `missing`, `unreadable`, `too-large` (more pixels than allowed), `too-many-scans`; never raises for a bad
    file.
    """
    try:
        stat = path.stat()
    except OSError as error:
        return Header(0, 0, 1, 0, 0, "missing", error.strerror or "cannot be opened")
    told = (stat.st_mtime_ns, stat.st_size)
    if not path.is_file():
        return Header(0, 0, 1, *told, "missing", "not a file")
    try:
        width, height, orientation, scans, several = _look(path, limits)
    except Image.DecompressionBombError:
        return Header(0, 0, 1, *told, "too-large", f"more than twice the {_megapixels(limits.pixels)} allowed")
    except UnidentifiedImageError:
        return Header(0, 0, 1, *told, "unreadable", _stranger(path))
    # Pillow's plugins raise these for malformed headers (SyntaxError is its own idiom for "broken").
    except (OSError, SyntaxError, ValueError, EOFError, OverflowError) as error:
        return Header(0, 0, 1, *told, "unreadable", str(error))
    if width * height > limits.pixels:
        detail = f"{width}x{height} is more than the {_megapixels(limits.pixels)} allowed"
        return Header(width, height, orientation, *told, "too-large", detail)
    if scans > limits.scans:
        detail = f"a JPEG of more than the {limits.scans} scans allowed, each one pass over the page"
        return Header(width, height, orientation, *told, "too-many-scans", detail)
    return Header(width, height, orientation, *told, several=several)


def _stranger(path: Path) -> str:
    """What a file is in which Pillow sees none of PILLOW_FORMATS."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        return error.strerror or "cannot be opened"
    return (foreign(head) or "no image format recognised") if head else "empty file"


def _look(path: Path, limits: Limits) -> tuple[int, int, int, int, bool]:
    """Width and height (oriented pixels), orientation 1 to 8, scans, and whether there are more pages.

    Raises what Pillow raises for a bad image.
    Of an image of too many pixels only the size as stored is real, and nothing more of it is read.
    """
    with Image.open(path, formats=PILLOW_FORMATS) as image:
        assert image.fp is not None  # it was just opened
        width, height = image.size
        if width * height > limits.pixels:
            return width, height, 1, 1, False
        exif = image.getexif() if image.format != "PNG" or _turned_late(image.fp) else Image.Image.getexif(image)
        orientation = exif.get(EXIF_ORIENTATION, 1)
        if not isinstance(orientation, int) or not 1 <= orientation <= 8:
            orientation = 1
        if orientation >= 5 and image.format != "TIFF":  # of these Pillow gives the oriented size already
            width, height = height, width
        scans = 1
        if image.format in ("JPEG", "MPO"):  # mapped: a large file takes no memory
            with mmap.mmap(image.fp.fileno(), 0, access=mmap.ACCESS_READ) as data:
                scans = count_scans(data, limits.scans)
        several = _more_pages(image)  # last: it leaves a TIFF at another page
    return width, height, orientation, scans, several


def _more_pages(image: Image.Image) -> bool:
    """Whether there is a page behind the first; the further pictures of an MPO, a camera's, and a TIFF's smaller copies
    (bit 0 of NewSubfileType) are none."""
    if image.format != "TIFF":
        return image.format in ("PNG", "WEBP") and getattr(image, "n_frames", 1) > 1
    try:
        for number in range(1, _LOOKED_AT):
            image.seek(number)
            if not int(image.tag_v2.get(_NEW_SUBFILE_TYPE, 0)) & 1:  # type: ignore[attr-defined]  # a TiffImageFile
                return True
    except (*UNDECODABLE, TypeError, OverflowError):  # EOFError: that was all; others: no page that could be read
        pass
    return False


def _turned_late(file: IO[bytes]) -> bool:
    """Whether a PNG file has a chunk that may turn it behind its pixels, where Pillow finds it by decoding them only.

    Else that is spared: it takes 36 ms for 2 Mpx, and before this 0.1 ms. Chunks in front are read by `open`.
    """
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at, behind = 8, False
        while at + 8 <= len(data):
            length, kind = struct.unpack_from(">I4s", data, at)
            if behind and (kind == b"eXIf" or data[at + 8 : at + 32].startswith(_TURNING_TEXTS)):
                return True
            behind = behind or kind == b"IDAT"
            at += 12 + length
    return False


def _megapixels(pixels: int) -> str:
    return f"{pixels / 1e6:g} megapixels"


def read_rgb(path: Path, limits: Limits = DEFAULT) -> np.ndarray:
    """One image for drawing: uint8 RGB (H, W, 3), upright. UserError if missing, beyond the limits or damaged."""
    with pixel_limit(limits.pixels):
        header = read_header(path, limits)
        if header.problem:
            raise UserError(f"{path}: {header.problem} ({header.detail})")
        try:
            # Not by its path, by which Pillow maps the pixels of a TIFF, and garbles one that is to be turned.
            with path.open("rb") as file, Image.open(file, formats=PILLOW_FORMATS) as image:
                return as_rgb(image)
        except UNDECODABLE as error:
            raise UserError(f"{path}: cannot be decoded ({error})") from None


def as_rgb(image: Image.Image) -> np.ndarray:
    """An image of Pillow's as (H, W, 3) uint8 RGB, EXIF orientation applied, laid on white where it is transparent.

    Grey of 16 bits is scaled as DALI does it, to the bit, and floats are 0 to 1; Pillow's own conversion cuts at 255: a
    white page.

    Raises:
        what is in UNDECODABLE: the file is damaged, of which Pillow may tell only now, or has other pixels.
    """
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")
    image = ImageOps.exif_transpose(image)
    if sixteen:
        values = np.asarray(image).astype(np.uint32)
        grey = ((values + 128) // 257).astype(np.uint8)
        grey[values == image.info.get("transparency", -1)] = 255
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        return np.repeat(_of_floats(np.asarray(image))[:, :, None], 3, axis=2)
    return on_white(image) if image.has_transparency_data else np.asarray(image.convert("RGB"))


def _of_floats(values: np.ndarray) -> np.ndarray:
    if values.dtype != np.float32 or not (values.min() >= 0 and values.max() <= 1):
        raise ValueError("pixels of 32 bits that are no floats of 0 to 1; save it with 8 bits")
    return np.rint(values * 255).astype(np.uint8)


def on_white(image: Image.Image) -> np.ndarray:
    """A transparent image of Pillow's as (H, W, 3) uint8 RGB on white paper.

    Where all of it is clear, nobody meant it (screenshots, bitmaps): its colours are the page.
    """
    rgba = image.convert("RGBA")
    if rgba.getchannel("A").getextrema() == (0, 0):
        return np.asarray(rgba)[:, :, :3]
    page = Image.new("RGBA", rgba.size, "white")
    page.alpha_composite(rgba)
    return np.asarray(page)[:, :, :3]
