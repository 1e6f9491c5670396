"""Real maps with made-up texts, which the tests of this room share."""

import numpy as np
import pytest
import torch

from bench import receipts
from engine.detection.maps import MapStore

HEIGHT, WIDTH = 640, 640  # of a receipt's upper half: 90 ms instead of 200 a growth of polygons


class Receipts:
    """The upper halves of the six receipts as annotated pages; texts are as long as their lines are."""

    def polygons(self, row):
        """Lines that are wholly on the half."""
        return [line for line in receipts.lines()[row] if line[:, 1].max() < HEIGHT]

    def texts(self, row):
        """Made-up transcriptions: the repository keeps none."""
        return ["x" * max(1, int(np.ptp(line[:, 0]) / 12)) for line in self.polygons(row)]

    def ignore(self, row):
        """Every ninth line does not matter."""
        return np.arange(len(self.polygons(row))) % 9 == 8

    def __len__(self):
        return 6


@pytest.fixture(scope="module")
def real():
    """(store, pages) of the six receipts; the pages are larger than their maps, by another factor each."""
    with MapStore(6, (HEIGHT, WIDTH)) as store:
        maps = torch.from_numpy(np.stack(receipts.prob_maps())[:, :HEIGHT])
        matrices = np.array([[[1.0, 0, 0], [0, 1, 0]]] * 6)
        store.put(np.arange(6), maps, matrices, np.full((6, 2), (WIDTH, HEIGHT)))
        yield store, Receipts()
