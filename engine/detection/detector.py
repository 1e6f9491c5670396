"""A trained detector as an object: images in, text regions out, without a loader.

    from engine.predict import Detector

    detector = Detector("runs/mine")                      # or a checkpoint; device="cpu", "post.bin_thresh=0.2"
    polygons, scores = detector.detect("receipt.jpg")     # (4, 2) float32 x, y in source pixels each; (k,) float32
    pages = detector.detect_batch([array, "b.png", Image.open("c.jpg")])

A page is placed on the canvas as evaluation places it: an antialiased shrink, then one bilinear warp
(`pipelines.geometry`). On a CPU the canvas equals the DALI graph's if the page is shrunk less than 1.5 times. Otherwise
it differs by a grey level here and there, and by several in the outermost pixels of the page: beyond the border DALI
counts the border pixel.
"""

import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from engine.detection.ensemble import Ensemble, Member
from engine.detection.open import open_detector
from engine.detection.postprocess import detect
from engine.distributed import Ranks
from pipelines import geometry
from pipelines.errors import UserError
from pipelines.graph import MEAN, STD
from pipelines.images.read import SEVERAL_PAGES, UNDECODABLE, as_rgb, on_white, pixel_limit, read_header, read_rgb

logger = logging.getLogger(__name__)


class Regions(NamedTuple):
    """Text regions of one image, best first."""

    polygons: list[np.ndarray]  # (4, 2) float32 x, y in upright source pixels; with post.shape=polygon (n, 2)
    scores: np.ndarray  # (k,) float32, descending


Picture = np.ndarray | Image.Image | str | Path


class Detector:
    """A checkpoint ready to detect.

    Calls from several threads are safe: they share the weights only; files are decoded one at a time.

    Args:
        path: run folder (its best checkpoint, else its last), checkpoint, or an ensemble's file or folder.
        settings: `section.key=value` each, over the checkpoint's own.
        device: auto (the GPU when there is one), cpu, cuda or cuda:N.

    Raises:
        UserError: no checkpoint, a damaged one, an unknown setting, no such device.
    """

    def __init__(self, path: str | Path, *settings: str, device: str = "auto") -> None:
        settings = (*settings, f"trainer.device={device.partition(':')[0]}", "trainer.compile=false")
        self.device = _device(device)
        opened = open_detector(path, settings, Ranks(0, 0, 1, self.device))
        self.config, found = opened.config, opened.load()
        # A model alone is an ensemble of one, whose mean is that one's map to the bit.
        self._ensemble = found if isinstance(found, Ensemble) else Ensemble([Member(str(path), self.config, found)])
        self._reading = threading.Lock()  # Pillow's limit on pixels is a global of the process

    def detect(self, image: Picture) -> Regions:
        """Text regions of one image; see `detect_batch`."""
        return self.detect_batch([image])[0]

    def detect_batch(self, images: Sequence[Picture]) -> list[Regions]:
        """Text regions of images, `eval.batch_size` at a time in the network.

        Args:
            images: of each kind: a path; a PIL image (EXIF orientation is applied to both); an array of (H, W, 3) uint8
                RGB, (H, W) grey or (H, W, 4) RGBA. What is transparent is laid on white.

        Raises:
            UserError: a file that cannot be read, an array of another shape or type, too many pixels.
        """
        size = self.config.eval.batch_size
        return [found for k in range(0, len(images), size) for found in self._detect(images[k : k + size])]

    def _detect(self, images: Sequence[Picture]) -> list[Regions]:
        pages = [self._read(image) for image in images]
        sizes_wh = np.array([page.shape[1::-1] for page in pages])
        canvases, matrices = {}, {}
        for hw in self._ensemble.canvases:
            matrices[hw] = np.array([geometry.letterbox((int(w), int(h)), hw) for w, h in sizes_wh])
            placed = [place(page, matrix, hw) for page, matrix in zip(pages, matrices[hw], strict=True)]
            canvases[hw] = normalised(torch.from_numpy(np.stack(placed)).to(self.device))
        maps, to_canvas = self._ensemble.maps(canvases, matrices), matrices[self._ensemble.canvas]
        found = detect(maps, to_canvas, sizes_wh, self.config.post, self.config.trainer.kernels)  # sync: the result
        return [Regions(page.polygons, page.scores) for page in found]

    def _read(self, image: Picture) -> np.ndarray:
        """(H, W, 3) uint8 RGB, upright."""
        limits = self.config.data.limits
        if isinstance(image, (str, Path)):
            with self._reading:
                page = read_rgb(Path(image), limits)
                with pixel_limit(limits.pixels):
                    several = read_header(Path(image), limits).several
            if several:
                logger.warning("%s: %s", image, SEVERAL_PAGES)
            return page
        if isinstance(image, Image.Image):
            _check_size(image.width * image.height, limits.pixels)  # before it is decoded
            return _decoded(image)
        page = _as_rgb(image)
        _check_size(page.shape[0] * page.shape[1], limits.pixels)
        return page


def _check_size(pixels: int, most: int) -> None:
    if not 0 < pixels <= most:
        raise UserError(f"an image of {pixels} pixels: expected 1 to {most} (data.max_page_mpx)")


def _device(name: str) -> torch.device:
    kind, _, number = name.partition(":")
    if kind == "cpu" or (kind == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if (
        not torch.cuda.is_available()
        or not (number or "0").isdecimal()
        or int(number or 0) >= torch.cuda.device_count()
    ):
        raise UserError(f"device={name}: torch sees no such GPU here; use cpu or auto")
    return torch.device("cuda", int(number) if number else torch.cuda.current_device())


def _decoded(image: Image.Image) -> np.ndarray:
    try:
        return as_rgb(image)
    except UNDECODABLE as error:  # Image.open reads the header only
        raise UserError(f"{getattr(image, 'filename', '') or 'an image'}: cannot be decoded ({error})") from None


def _as_rgb(image: object) -> np.ndarray:
    shape: tuple[int, ...] = getattr(image, "shape", ())
    if (
        not isinstance(image, np.ndarray)
        or image.dtype != np.uint8
        or not (len(shape) == 2 or (len(shape) == 3 and shape[2] in (3, 4)))
    ):
        what = f"an array {shape} of {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
        raise UserError(
            f"{what} is no image: expected a path, a PIL image, or an array of uint8: (H, W, 3) RGB, (H, W) grey or "
            "(H, W, 4) RGBA"
        )
    if len(shape) == 2:
        return np.repeat(image[:, :, None], 3, axis=2)
    return on_white(Image.fromarray(image)) if shape[2] == 4 and image.size else image[:, :, :3]


def place(page: np.ndarray, matrix: np.ndarray, canvas_hw: tuple[int, int]) -> np.ndarray:
    """A page on the canvas, as the DALI graph of evaluation places it.

    Args:
        page: (h, w, 3) uint8.
        matrix: (2, 3) page to canvas pixels.
        canvas_hw: canvas height and width.

    Returns:
        (H, W, 3) uint8, black beside the page.
    """
    warp = geometry.plan_warp(matrix, (page.shape[1], page.shape[0]))
    if warp.resize:
        size = tuple(int(side) for side in warp.size_hw)
        tensor = torch.from_numpy(page.astype(np.float32)).permute(2, 0, 1)[None]
        small = functional.interpolate(tensor, size, mode="bilinear", antialias=True)
        page = small[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()
    # From pixels with centres at i + 0.5 to OpenCV's, at i.
    inverse = geometry.compose(geometry.translation(-0.5, -0.5), warp.inverse, geometry.translation(0.5, 0.5))
    inverse = np.concatenate([inverse, [[0, 0, 1]]])  # the perspective warp, since the graph's is one too
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpPerspective(page, inverse, canvas_hw[::-1], flags=how, borderMode=cv2.BORDER_CONSTANT)


def normalised(canvases: torch.Tensor) -> torch.Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) ImageNet-normalised, channels_last; float32, on a GPU float16 as DALI's."""
    mean, std = (torch.tensor(values, device=canvases.device) for values in (MEAN, STD))
    image = ((canvases.float() - mean) / std).permute(0, 3, 1, 2)
    return image.half() if canvases.device.type == "cuda" else image
