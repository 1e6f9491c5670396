"""Fonts for the synthetic receipts: those bundled with matplotlib (the same everywhere), or the system's."""

import functools
import importlib.util
from pathlib import Path

from PIL import ImageFont

from pipelines.errors import UserError

FONT_SETS = ("bundled", "system", "hangul")
# Upright text faces of matplotlib's font folder with a full ASCII set, as (regular, bold) pairs.
BUNDLED = (
    ("DejaVuSansMono.ttf", "DejaVuSansMono-Bold.ttf"),
    ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf"),
    ("DejaVuSerif.ttf", "DejaVuSerif-Bold.ttf"),
    ("STIXGeneral.ttf", "STIXGeneralBol.ttf"),
    ("cmtt10.ttf", "cmtt10.ttf"),
    ("cmss10.ttf", "cmss10.ttf"),
)
SYSTEM_FOLDERS = (
    Path("/usr/share/fonts"),
    Path("/usr/local/share/fonts"),
    Path("/Library/Fonts"),
    Path("/System/Library/Fonts"),
    Path.home() / ".local/share/fonts",
    Path.home() / ".fonts",
)
ASCII_PROBE = "AZaz09.,:%#"
HANGUL_PROBE = "가나한글뷁원"


@functools.lru_cache(maxsize=512)
def font(path: str, size: int) -> ImageFont.FreeTypeFont:
    """A face at a pixel size. Basic layout: the same glyph positions with and without the raqm library."""
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


def capital_px(path: str, size: int) -> int:
    """Height of a capital letter, pixels."""
    return -int(font(path, size).getbbox("H", anchor="ls")[1])


@functools.lru_cache(maxsize=512)
def least_size(path: str, capital: int) -> int:
    """The smallest size whose capitals are at least `capital` pixels high (faces differ: 0.61 to 0.73 of it)."""
    size = capital
    while capital_px(path, size) < capital:
        size += 1
    return size


def covers(path: str, letters: str) -> bool:
    """Whether a face draws every letter as something else than its box for unknown characters."""
    try:
        face = font(path, 24)
        unknown = bytes(face.getmask("\U0010fffe"))
        return all(bytes(face.getmask(letter)) not in (unknown, b"") for letter in letters)
    except OSError:  # a bitmap or damaged font file
        return False


def _bundled() -> tuple[tuple[str, str], ...]:
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or spec.origin is None:
        raise UserError("matplotlib is not installed; the synthetic receipts use its bundled fonts")
    folder = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"
    found = [
        (str(folder / a), str(folder / b)) for a, b in BUNDLED if (folder / a).is_file() and (folder / b).is_file()
    ]
    if not found:
        raise UserError(f"{folder}: no fonts; install matplotlib from its own package, or use fonts=system")
    return tuple(found)


def _system(probe: str) -> tuple[tuple[str, str], ...]:
    paths = [p for folder in SYSTEM_FOLDERS if folder.is_dir() for p in folder.rglob("*")]
    names = sorted(str(p) for p in paths if p.suffix.lower() in (".ttf", ".otf", ".ttc"))
    return tuple((name, name) for name in names if covers(name, probe))


@functools.lru_cache
def families(fonts: str = "bundled") -> tuple[tuple[str, str], ...]:
    """(regular, bold) font files to draw with, in a fixed order; UserError where there is none.

    fonts: `bundled` (matplotlib's: pages are the same on every machine), `system` (those and every installed Latin
    font) or `hangul` (installed fonts with Hangul only; the texts are Korean too). The last two depend on the machine.
    """
    if fonts not in FONT_SETS:
        raise UserError(f"fonts {fonts!r}: allowed is {', '.join(FONT_SETS)}")
    if fonts == "bundled":
        return _bundled()
    if fonts == "system":
        return tuple(dict.fromkeys(_bundled() + _system(ASCII_PROBE)))
    found = _system(HANGUL_PROBE + ASCII_PROBE)
    if not found:
        raise UserError("no installed font has Hangul; install one (e.g. fonts-nanum or fonts-noto-cjk)")
    return found
