"""A sheet to draw on, and how it becomes a small PNG: what the pictures of studies and comparisons share.

    figure = sheet(8, 5)                                 # inches
    plain(figure.add_subplot())
    save(figure, path)

Colours are Okabe and Ito's, told apart by all common kinds of colour blindness.
"""

from pathlib import Path
from typing import Any

import numpy as np

BLUE, ORANGE, GREEN, RED, SKY, GREY, BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#8A8F94", "#1B1F24",
)  # fmt: skip
DPI = 100


def sheet(width: float, height: float) -> Any:
    """An empty figure of so many inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)  # not pyplot: no display is looked for and no global state is kept
    return figure


def plain(axes: Any) -> None:
    """A light grid, and no frame at the top and to the right."""
    axes.grid(alpha=0.2)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def save(figure: Any, path: Path) -> None:
    """A PNG with a palette: a third of the size. Maximum coverage, as median cut turns a lone red mark orange."""
    from PIL import Image

    figure.set_dpi(DPI)
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    Image.fromarray(np.ascontiguousarray(pixels)).quantize(256, Image.Quantize.MAXCOVERAGE).save(path, optimize=True)
