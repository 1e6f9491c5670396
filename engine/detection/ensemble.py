"""The mean of the probability maps of several detectors, with mirrored and scaled views, on one canvas.

    ensemble = Ensemble([Member("a", config_a, model_a), Member("b", config_b, model_b)], flips="h")
    detect_pages(ensemble, pages, config, ranks)          # takes it in a model's place

A view is one member at one size of its canvas, mirrored or not. Every size has its own letterbox, made from the pixels
of the source, so no member sees an image that was resampled twice. A mirrored map is mirrored back, and a map of
another canvas is warped onto the reference canvas by

    reference pixel -> source pixel -> view pixel:  M_view M_reference^-1,  pixel centres at i + 0.5

Only then the maps are averaged. So two boxes of one text never meet, and none has to be fused. The views run one after
another for each batch of pages: memory holds one batch of maps, and the weights of the members.
"""

import contextlib
import dataclasses

import numpy as np
import torch
import torch.nn.functional as F

from engine.config import Config
from engine.config.load import canvas_hw
from engine.config.settings import rounded
from engine.detection.maps import MapBatches, Network, page_loader, prob_maps
from engine.distributed import Ranks
from pipelines.geometry import ANTIALIAS, compose, invert, scaling
from pipelines.index.pages import Pages
from pipelines.quarantine import BadPages

FLIPS = {"none": ((),), "h": ((), (-1,)), "v": ((), (-2,)), "hv": ((), (-1,), (-2,), (-1, -2))}  # axes of each view
Canvas = tuple[int, int]  # height, width in pixels


@dataclasses.dataclass(frozen=True)
class Member:
    """One detector of an ensemble."""

    name: str
    config: Config  # its own: canvas, arithmetic
    forward: Network  # on the ranks' device
    weight: float = 1.0

    @property
    def canvas(self) -> Canvas:
        """Height and width of the canvas it is judged on."""
        return canvas_hw(self.config)


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """Members whose maps are averaged; `engine.detection.maps.prob_batches` takes it in a model's place.

    The reference canvas, on which the mean is taken and its regions are found, is the members' largest.
    """

    members: list[Member]
    flips: str = "none"
    scales: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        assert self.members and self.flips in FLIPS and 1.0 in self.scales
        assert all(member.weight > 0 for member in self.members)

    @property
    def canvas(self) -> Canvas:
        """The reference canvas; the first of several with the same area."""
        return max((member.canvas for member in self.members), key=lambda hw: hw[0] * hw[1])

    @property
    def canvases(self) -> list[Canvas]:
        """All canvases that pages are needed on, the reference first."""
        every = [scaled(member.canvas, scale) for member in self.members for scale in self.scales]
        return list(dict.fromkeys([self.canvas, *every]))

    def maps(self, images: dict[Canvas, torch.Tensor], matrices: dict[Canvas, np.ndarray]) -> torch.Tensor:
        """The mean of all views of N pages, wherever their images come from.

        Args:
            images: for each of `canvases` the pages letterboxed on it, (N, 3, h, w) on the device.
            matrices: for each of `canvases` (N, 2, 3) source to canvas pixels.

        Returns:
            (N, H, W) float32 on the device, on the reference canvas.
        """
        total, weights = torch.zeros(()), 0.0
        back = np.stack([invert(matrix) for matrix in matrices[self.canvas]])
        for member in self.members:
            for scale in self.scales:
                canvas = scaled(member.canvas, scale)
                to_view = np.stack([compose(m, b) for m, b in zip(matrices[canvas], back, strict=True)])
                total = total + member.weight * onto(self._flipped(member, images[canvas]), to_view, self.canvas)
                weights += member.weight
        return total / weights

    def _flipped(self, member: Member, image: torch.Tensor) -> torch.Tensor:
        """Mean map (N, h, w) of the mirrored views, each mirrored back."""
        views = FLIPS[self.flips]
        maps = [prob_maps(member.forward, image.flip(axes), member.config).flip(axes) for axes in views]
        return torch.stack(maps).mean(0) if len(maps) > 1 else maps[0]

    def prob_batches(self, pages: Pages, config: Config, ranks: Ranks, bad: BadPages) -> MapBatches:
        """As `engine.detection.maps.prob_batches`: (batch on the reference canvas, mean maps (n, H, W) float32).

        Args:
            config: batch size and loading; canvases and arithmetic are the members' own.
        """
        canvases = self.canvases
        with contextlib.ExitStack() as open_:
            loaders = [
                open_.enter_context(contextlib.closing(page_loader(pages, canvas, config, ranks, bad)))
                for canvas in canvases
            ]
            for batches in zip(*loaders, strict=True):
                images = [batch.image.to(ranks.device, non_blocking=True) for batch in batches]
                matrices = [batch.matrix for batch in batches]
                yield batches[0], self.maps(dict(zip(canvases, images)), dict(zip(canvases, matrices)))


def scaled(canvas: Canvas, scale: float) -> Canvas:
    """A canvas times a factor, sides rounded to multiples of 32, at least 32."""
    return rounded(canvas[0] * scale), rounded(canvas[1] * scale)


def onto(maps: torch.Tensor, to_view: np.ndarray, canvas: Canvas) -> torch.Tensor:
    """Maps of one canvas, bilinearly sampled on another; 0 where they do not reach.

    Args:
        maps: (N, h, w) float32.
        to_view: (N, 2, 3) float64, pixels of the new canvas -> pixels of the maps; both have centres at i + 0.5.
        canvas: height and width of the new one.

    Returns:
        (N, H, W); `maps` itself where nothing moves.
    """
    if tuple(maps.shape[1:]) == canvas and np.abs(to_view - np.eye(2, 3)).max() < 1e-9:
        return maps
    shrink = np.abs(to_view[:, [0, 1], [0, 1]]).max(0)  # map pixels a new pixel, along x and y
    if shrink.max() > ANTIALIAS:  # one bilinear sample would skip pixels
        h, w = maps.shape[1:]
        new_w, new_h = (max(1, round(side / max(1.0, s))) for side, s in zip((w, h), shrink))
        size = (new_h, new_w)
        maps = F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False, antialias=True)[:, 0]
        to_view = np.stack([compose(scaling(new_w / w, new_h / h), matrix) for matrix in to_view])
    h, w = maps.shape[1:]
    # affine_grid and grid_sample measure from -1 to 1 over the whole canvas (align_corners=False): u = 2 x / width - 1.
    ours = compose(scaling(canvas[1] / 2, canvas[0] / 2), np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]))
    theirs = compose(np.array([[1.0, 0.0, -1.0], [0.0, 1.0, -1.0]]), scaling(2 / w, 2 / h))
    theta = torch.from_numpy(np.stack([compose(theirs, matrix, ours) for matrix in to_view])).to(maps)
    grid = F.affine_grid(theta, [len(maps), 1, *canvas], align_corners=False)
    # border: within half a pixel of the canvas' edge a text keeps its value; past the edge there is none
    found = F.grid_sample(maps[:, None], grid, mode="bilinear", padding_mode="border", align_corners=False)[:, 0]
    return found * (grid.abs() <= 1 + 1e-6).all(-1)
