"""What a loader hands to training, evaluation and prediction."""

import dataclasses
from typing import Any

import numpy as np
import torch

from pipelines.geometry import Labels


@dataclasses.dataclass
class Batch:
    """Pages on the canvas with their text polygons.

    image: (N, 3, H, W) ImageNet-normalised RGB with channels_last strides; float32 on the CPU, float16 on the GPU.
    points_xy: (V, 2) float32 polygon vertices in canvas pixels (centres at i + 0.5, so the canvas spans 0..W).
    poly_offsets: (P + 1,) int64, polygon p has the vertices poly_offsets[p] : poly_offsets[p + 1].
    page_offsets: (N + 1,) int64, page n has the polygons page_offsets[n] : page_offsets[n + 1].
    ignore: (P,) bool, polygons that are neither text nor background to the loss.
    index: (N,) int64 numpy, row of each page in the index.
    matrix: (N, 2, 3) float64 numpy, upright source pixels to canvas pixels.
    """

    image: torch.Tensor
    points_xy: torch.Tensor
    poly_offsets: torch.Tensor
    page_offsets: torch.Tensor
    ignore: torch.Tensor
    index: np.ndarray
    matrix: np.ndarray

    def __len__(self) -> int:
        return self.image.shape[0]

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on `device`; the polygons go there without waiting (pinned first when it is a GPU)."""
        device = torch.device(device)
        moved: dict[str, Any] = {"image": self.image.to(device, non_blocking=True)}
        for name in ("points_xy", "poly_offsets", "page_offsets", "ignore"):
            value = getattr(self, name)
            if device.type == "cuda" and value.device.type == "cpu" and not value.is_pinned():
                value = value.pin_memory()
            moved[name] = value.to(device, non_blocking=True)
        return dataclasses.replace(self, **moved)

    def pin_memory(self) -> "Batch":
        """The same batch in pinned memory, which `.to` a GPU does not wait for; a torch DataLoader calls this."""
        names = ("image", "points_xy", "poly_offsets", "page_offsets", "ignore")
        return dataclasses.replace(self, **{name: getattr(self, name).pin_memory() for name in names})


def collate(image: torch.Tensor, labels: list[Labels], rows: np.ndarray, matrix: np.ndarray) -> Batch:
    """A batch from its pages' labels in canvas pixels, copied; the rest is taken as it is."""
    bases = np.cumsum([0] + [len(page.points) for page in labels[:-1]])
    ends = [page.offsets[1:] + base for page, base in zip(labels, bases)]
    poly_offsets = np.concatenate([np.zeros(1, np.int64), *ends])
    page_offsets = np.cumsum([0] + [len(page.ignore) for page in labels], dtype=np.int64)
    return Batch(
        image=image,
        points_xy=torch.from_numpy(np.concatenate([page.points for page in labels])),
        poly_offsets=torch.from_numpy(poly_offsets),
        page_offsets=torch.from_numpy(page_offsets),
        ignore=torch.from_numpy(np.concatenate([page.ignore for page in labels])),
        index=rows,
        matrix=matrix,
    )
