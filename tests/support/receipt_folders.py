"""A folder of receipts as SROIE has them."""

from pathlib import Path

from PIL import Image

NASTY = "a\n\x1b[2J\u202egpj\udc80.jpg"  # newline, clear the screen, reversed letters, a byte that is no UTF-8


HARMLESS = r"a\n\x1b[2J\u202egpj\udc80.jpg"


def receipt_folder(folder: Path) -> Path:
    for name in ("img", "box"):
        (folder / name).mkdir(parents=True)
    for name in ("a", "b"):
        Image.new("RGB", (100, 80), "white").save(folder / "img" / f"{name}.jpg")
        (folder / "box" / f"{name}.txt").write_text("10,10,90,10,90,30,10,30,TOTAL\n")
    (folder / "ids.txt").write_text("a\nb\n")
    return folder
