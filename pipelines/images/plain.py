"""Pages that DALI reads wrongly or not at all, decoded by Pillow and handed to DALI as plain pixels.

    readable(data, orientation, width * height)    # a JPEG as it is; a page with transparency as a PPM file, on white

DALI leaves transparency out, and what is transparent is mostly black beneath. Of TIFFs it reads grey ones with
transparency as noise, refuses those of one bit without a BitsPerSample field, and writes red lines about good ones (fax
pages where 0 is white, CMYK). All else it decodes itself, in its own threads.
"""

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipelines.images.read import PILLOW_FORMATS, UNDECODABLE, as_rgb, pixel_limit

NOTHING = np.zeros(0, np.uint8)
# From the upright picture back to the stored one: the loader turns all pages by their EXIF orientation.
_LAID_BACK = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}  # fmt: skip


def readable(data: np.ndarray, orientation: int, pixels: int) -> np.ndarray:
    """(bytes,) uint8 of an image file as DALI is to get them; empty when Pillow cannot decode what DALI must not.

    Args:
        data: (bytes,) uint8 of a file that is no JPEG (which would be opened for nothing).
        orientation: EXIF orientation 1 to 8, as the index has it.
        pixels: that the page has; a larger one goes to DALI as it is, where its size is found to be wrong.
    """
    with pixel_limit(pixels):
        try:
            with Image.open(io.BytesIO(data.tobytes()), formats=PILLOW_FORMATS) as image:
                if image.width * image.height > pixels or not (image.format == "TIFF" or image.has_transparency_data):
                    return data
                page = Image.fromarray(as_rgb(image))
        except (Image.DecompressionBombError, UnidentifiedImageError):
            return data
        except UNDECODABLE:
            return NOTHING
    page = page.transpose(_LAID_BACK[orientation]) if orientation in _LAID_BACK else page
    return np.frombuffer(b"P6 %d %d 255\n" % page.size + page.tobytes(), np.uint8)
