"""A training made ready for its first step."""

import contextlib

from engine.config.load import load_config
from engine.data import build_train_loader, open_data
from engine.distributed import start
from engine.training.state import build
from tests.conftest import DEVICE, TINY


@contextlib.contextmanager
def ready(tmp_path, *settings):
    config, _ = load_config([*TINY, f"run_root={tmp_path}", f"trainer.device={DEVICE}", *settings])
    ranks = start(config.trainer.device)
    data = open_data(config, ranks)
    state = build(config, ranks)
    state.model.train()
    loader = build_train_loader(config, data.train, ranks, 0, 0)
    with contextlib.closing(loader):
        yield config, ranks, state, loader
