"""Files that are no image we read, named by their first bytes: a HEIC called .jpg, a web page in a picture's place.

foreign(b"%PDF-1.7")    # "a PDF, which is not read: convert its pages to JPEG or PNG"
"""

# Of files that people mean as pages; in a folder they are listed, so that they are named and not passed over.
SUFFIXES = (".heic", ".heif", ".avif", ".gif", ".jxl", ".pdf")
HEAD_BYTES = 64
_CONVERT = "which is not read: convert it to JPEG or PNG"
_STARTS = {
    b"GIF8": f"a GIF, {_CONVERT}",
    b"%PDF": "a PDF, which is not read: convert its pages to JPEG or PNG",
    b"\xff\x0a": f"a JPEG XL, {_CONVERT}",
    b"\0\0\0\x0cJXL ": f"a JPEG XL, {_CONVERT}",
    b"8BPS": f"a Photoshop file, {_CONVERT}",
    b"AT&TFORM": f"a DjVu, {_CONVERT}",
    b"%!PS": f"a PostScript file, {_CONVERT}",
    b"\xc5\xd0\xd3\xc6": f"a PostScript file, {_CONVERT}",
    b"<svg": f"an SVG, {_CONVERT}",
    b"<!doctype html": "a web page, saved in the place of an image: download it again",
    b"<html": "a web page, saved in the place of an image: download it again",
    b"version https://git-lfs": "a Git LFS pointer, not the image: run `git lfs pull`",
}
# ISO/IEC 23008-12, AV1 Image File Format: the brands of an `ftyp` box.
_BRANDS = {b"avif": "an AVIF", b"avis": "an AVIF", b"heic": "a HEIC", b"heix": "a HEIC", b"hevc": "a HEIC",
           b"heim": "a HEIC", b"heis": "a HEIC", b"mif1": "a HEIC", b"msf1": "a HEIC"}  # fmt: skip


def foreign(head: bytes) -> str:
    """What a file is and how to mend it, by its first HEAD_BYTES; "" when that is not known."""
    if head[4:8] == b"ftyp":
        brands = [head[k : k + 4] for k in range(8, len(head) - 3, 4)]
        # `mif1` is any image of the family, so what is said beside it counts first.
        named = sorted((brand for brand in brands if brand in _BRANDS), key=lambda brand: brand in (b"mif1", b"msf1"))
        return f"{_BRANDS[named[0]]}, {_CONVERT}" if named else ""
    start = head.lstrip().lower() if head.lstrip()[:1] == b"<" else head
    return next((what for begin, what in _STARTS.items() if start.startswith(begin)), "")
