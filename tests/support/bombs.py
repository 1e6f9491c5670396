"""Images that are larger than they look, and sources of them."""

import io
import struct
import zlib

from PIL import Image

SIDE = 30_000


def png_bomb(side=SIDE):
    """A PNG that says it is 30,000 x 30,000 RGB: 2.7 GB when decoded, 100 bytes here."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunks(
        (b"IHDR", header), (b"IDAT", zlib.compress(bytes(3 * side + 1))), (b"IEND", b"")
    )


def png_chunks(*chunks):
    parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return b"".join(parts)


def jpeg(image, **options):
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def many_scans(count, side=64):
    """A progressive JPEG whose last scan comes `count` times more."""
    data = jpeg(Image.new("L", (side, side), 90), progressive=True)
    last, end = data.rfind(b"\xff\xda"), data.rfind(b"\xff\xd9")
    return data[:end] + data[last:end] * count + data[end:]


GOOD = jpeg(Image.new("RGB", (640, 480), (200, 200, 200)))
