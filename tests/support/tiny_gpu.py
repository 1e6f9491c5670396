"""The sections of `bench.gpu` at a tiny size, which needs no GPU."""

from types import SimpleNamespace

from tests.conftest import DEVICE

TINY = SimpleNamespace(pages=2, side=64, encoder="lcnet_035", device=DEVICE)
ARGUMENTS = ["--pages", "2", "--side", "64", "--encoder", "lcnet_035", "--device", DEVICE]
