"""Image headers: size, EXIF orientation, and a bound on pixels, all before a picture is decoded."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pipelines.errors import UserError

EXIF_ORIENTATION = 0x0112
# A 14k x 14k scan; 200 Mpx of RGB are 600 MB, more than any receipt or page needs.
DEFAULT_MAX_PIXELS = 200_000_000


class Header(NamedTuple):
    """What a file says about itself. `width`, `height` are oriented pixels; `problem` is "" for a good header."""

    width: int
    height: int
    orientation: int
    mtime_ns: int
    num_bytes: int
    problem: str = ""
    detail: str = ""


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


def oriented_size(width: int, height: int, orientation: int) -> tuple[int, int]:
    """Size after EXIF orientation; 5 to 8 swap the sides."""
    return (height, width) if orientation >= 5 else (width, height)


def read_header(path: Path, max_pixels: int = DEFAULT_MAX_PIXELS) -> Header:
    """Reads a file's header only. Problems: `missing`, `unreadable`, `too-large`; never raises for a bad file."""
    try:
        stat = path.stat()
    except OSError as error:
        return Header(0, 0, 1, 0, 0, "missing", error.strerror or "cannot be opened")
    told = (stat.st_mtime_ns, stat.st_size)
    if not path.is_file():
        return Header(0, 0, 1, *told, "missing", "not a file")
    try:
        with Image.open(path) as image:
            width, height = image.size
            tiff = image.format == "TIFF"  # of these Pillow gives the oriented size already
            orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    except Image.DecompressionBombError:
        return Header(0, 0, 1, *told, "too-large", f"more than twice --max-pixels {max_pixels}")
    except UnidentifiedImageError:
        return Header(0, 0, 1, *told, "unreadable", "empty file" if not stat.st_size else "no image format recognised")
    # Pillow's plugins raise these for malformed headers (SyntaxError is its own idiom for "broken").
    except (OSError, SyntaxError, ValueError, EOFError, OverflowError) as error:
        return Header(0, 0, 1, *told, "unreadable", str(error))
    if not isinstance(orientation, int) or not 1 <= orientation <= 8:
        orientation = 1
    if not tiff:
        width, height = oriented_size(width, height, orientation)
    if width * height > max_pixels:
        detail = f"{width}x{height} is more than --max-pixels {max_pixels}"
        return Header(width, height, orientation, *told, "too-large", detail)
    return Header(width, height, orientation, *told)


def read_rgb(path: Path, max_pixels: int = DEFAULT_MAX_PIXELS) -> np.ndarray:
    """Decodes one image for drawing: uint8 RGB (H, W, 3), EXIF orientation applied.

    Raises:
        UserError: missing, larger than `max_pixels`, or not decodable.
    """
    header = read_header(path, max_pixels)
    if header.problem:
        raise UserError(f"{path}: {header.problem} ({header.detail})")
    try:
        with pixel_limit(max_pixels), Image.open(path) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UserError(f"{path}: cannot be decoded ({error})") from None
