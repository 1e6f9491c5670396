"""Probability maps of pages: batch by batch from the network, or all of them in a store.

    for batch, maps in prob_batches(forward, pages, config, ranks):      # maps (n, H, W) float32, on the device
        ...
    with store_maps(forward, pages, config, ranks) as store:             # all pages, 8 bits a pixel
        store.maps([0, 7])

Work that looks at all pages many times (`engine.tune`) uses the store: its memory is bounded.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path
from typing import IO, Protocol, runtime_checkable

import numpy as np
import torch

from engine.config import Config
from engine.config.load import canvas_hw
from engine.console import reason
from engine.data import loader_options
from engine.distributed import Ranks
from engine.model.forward import run_network
from pipelines.batch import Batch
from pipelines.errors import UserError
from pipelines.index.pages import Pages
from pipelines.loader import EvalLoader, eval_loader
from pipelines.quarantine import BadPages

RAM_BYTES = 1 << 30  # 655 maps of 1280x1280, the contest's 404 validation pages among them; more go to a file

Network = Callable[[torch.Tensor], torch.Tensor]  # in evaluation mode: image (N, 3, H, W) -> logits (N, 1, H, W)
MapBatches = Generator[tuple[Batch, torch.Tensor], None, None]  # pages, and their maps (n, H, W) float32


@runtime_checkable
class ManyViews(Protocol):
    """What needs pages on several canvases, so it makes its own batches: `engine.detection.ensemble.Ensemble`."""

    def prob_batches(self, pages: Pages, config: Config, ranks: Ranks, bad: BadPages) -> MapBatches:
        """As the function of this name."""


Forward = Network | ManyViews


def prob_maps(network: Network, image: torch.Tensor, config: Config) -> torch.Tensor:
    """image (N, 3, H, W) on the device -> prob_map (N, H, W) float32, the sigmoid taken in float32."""
    with torch.inference_mode():
        logits = run_network(network, image, config)
        assert isinstance(logits, torch.Tensor)  # in training there are several
        return torch.sigmoid(logits[:, 0].float())


def prob_batches(
    forward: Forward, pages: Pages, config: Config, ranks: Ranks, bad: BadPages | None = None
) -> MapBatches:
    """Yields (batch, its maps (n, H, W) float32 on the device) of this rank's pages, in order.

    Nothing here waits for the device. Close it (`contextlib.closing`) where it is not read to its end.

    Args:
        forward: model in evaluation mode on `ranks.device`, or an `Ensemble` of `detection.ensemble`.
        ranks: rank r takes rows r, r + world_size, ...
        bad: what becomes of pages that cannot be read, and which are known; such a page is a black one. None = the
            first is refused.

    Raises:
        UserError: a page cannot be read and is refused.
    """
    bad = bad or BadPages()
    if isinstance(forward, ManyViews):
        yield from forward.prob_batches(pages, config, ranks, bad)
        return
    with contextlib.closing(page_loader(pages, canvas_hw(config), config, ranks, bad)) as loader:
        for batch in loader:
            image = batch.image.to(ranks.device, non_blocking=True)
            if config.trainer.compile:
                image = _filled(image, config.eval.batch_size)
            yield batch, prob_maps(forward, image, config)[: len(batch.index)]


def page_loader(pages: Pages, canvas: tuple[int, int], config: Config, ranks: Ranks, bad: BadPages) -> EvalLoader:
    """This rank's pages, letterboxed on a canvas (height, width); other arguments as for `prob_batches`. Close it."""
    return eval_loader(
        pages,
        image_size=canvas,
        batch_size=config.eval.batch_size,
        rank=ranks.rank,
        world_size=ranks.world_size,
        options=loader_options(config, ranks),
        bad=bad,
    )


def _filled(image: torch.Tensor, batch_size: int) -> torch.Tensor:
    """(n, 3, H, W) in channels_last -> (batch_size, 3, H, W) in channels_last, grey pages last.

    A graph is compiled for every size and layout; zeros in the plain layout would make the result's plain too.
    """
    missing = batch_size - len(image)
    if not missing:
        return image
    grey = image.new_zeros(missing, *image.shape[2:], image.shape[1]).permute(0, 3, 1, 2)
    return torch.cat([image, grey])


class MapStore:
    """Maps of N pages as round(255 p) in bounded memory: up to `ram_bytes` in RAM, more in a temporary file.

    The file lies in the system's temporary folder (TMPDIR) and has no name: however the process ends, it is gone.
    A context manager. Values read back are within 1/510 of those stored; NaN is stored as 0.

    Args:
        pages: N. hw: height and width of a map in pixels.
        ram_bytes: more than that goes to the file.

    Raises:
        UserError: the temporary folder has no room.
    """

    def __init__(self, pages: int, hw: tuple[int, int], ram_bytes: int = RAM_BYTES) -> None:
        shape = (pages, *hw)
        self.matrices = np.zeros((pages, 2, 3))  # float64 upright source pixels to canvas pixels
        self.sizes_wh = np.zeros((pages, 2), np.int32)  # of the source pages
        self._file: IO[bytes] | None = None  # None: the maps are in RAM
        if np.prod(shape, dtype=np.int64) <= ram_bytes:
            self.bytes = np.zeros(shape, np.uint8)
        else:
            self._file = _unnamed(int(np.prod(shape, dtype=np.int64)))
            self.bytes = np.memmap(self._file, np.uint8, "r+", shape=shape)

    def __len__(self) -> int:
        return len(self.bytes)

    def put(self, rows: np.ndarray, maps: torch.Tensor, matrices: np.ndarray, sizes_wh: np.ndarray) -> None:
        """Keeps maps (n, H, W) of any device as those of `rows`, with (n, 2, 3) matrices and (n, 2) page sizes.

        Reading the device is a sync, of a quarter of the float maps' bytes.
        """
        rounded = maps.float().nan_to_num(0.0).clamp(0.0, 1.0).mul(255).round_().to(torch.uint8)
        self.bytes[rows] = rounded.cpu().numpy()
        self.matrices[rows], self.sizes_wh[rows] = matrices, sizes_wh

    def maps(self, rows: np.ndarray | list[int]) -> torch.Tensor:
        """Maps of some pages, (n, H, W) float32 on the CPU: multiples of 1/255."""
        return torch.from_numpy(np.asarray(self.bytes[np.asarray(rows, np.int64)])).float().div_(255)

    def close(self) -> None:
        """Gives memory and file back."""
        self.bytes = self.bytes[:0].copy()  # the last reference to the mapped file
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> "MapStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _unnamed(size: int) -> IO[bytes]:
    """An open temporary file of `size` bytes that has no name; its room is reserved, as a map of a hole would crash."""
    folder = Path(tempfile.gettempdir())
    try:
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 closed by its store
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError:
            file.close()
            raise
    except OSError as error:
        words = f"{folder}: no room for {size / 2**30:.1f} GiB of probability maps ({reason(error)})"
        raise UserError(f"{words}; name another folder with TMPDIR") from None
    return file


def store_maps(
    forward: Forward,
    pages: Pages,
    config: Config,
    ranks: Ranks,
    tell: Callable[[int, int], None] = lambda done, total: None,
    ram_bytes: int = RAM_BYTES,
) -> MapStore:
    """The maps of all pages in a store; the caller closes it. For one rank.

    Args:
        forward, pages, config, ranks: as for `prob_batches`.
        tell: called with pages done and their number after every batch.

    Raises:
        UserError: a page cannot be read, or there is no room.
    """
    assert ranks.world_size == 1
    with contextlib.ExitStack() as undo:
        store = undo.enter_context(MapStore(len(pages), canvas_hw(config), ram_bytes))
        batches = undo.enter_context(contextlib.closing(prob_batches(forward, pages, config, ranks)))
        done = 0
        for batch, maps in batches:
            store.put(batch.index, maps, batch.matrix, pages.size_wh[batch.index])
            done += len(batch.index)
            tell(done, len(pages))
        undo.pop_all()  # the batches are read to their end
    return store
