"""What is trained: the model with the weights that it starts from."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from engine import train
from engine.config.cautions import warnings
from engine.config.load import load_config
from engine.distributed import Ranks
from engine.training.state import build
from pipelines.errors import UserError
from tests.conftest import TINY


def _weights(run: Path, part: str = "model") -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run / "checkpoints" / "last" / f"{part}.safetensors")


def test_init_from_starts_a_new_run_from_a_whole_detector(trained, tmp_path):
    settings = [*TINY, f"run_root={tmp_path}", "trainer.max_steps=1", "models.optimizer.lr=0", "models.optimizer.eps=1"]
    assert train.main([*settings, "name=tuned", f"init_from={trained}", "models.scheduler.eta_min=0"]) == 0
    tuned, source = _weights(tmp_path / "tuned"), _weights(trained)
    best = safetensors.torch.load_file(trained / "checkpoints" / "best" / "model.safetensors")
    trainable = [k for k in source if k.endswith("weight")]
    assert all(torch.equal(tuned[k], best[k]) for k in trainable)


SMALL = ["preset=demo", "models.encoder.name=lcnet_035", "models.decoder.inner_channels=8"]


def _config(*items):
    return load_config([*SMALL, *items])[0]


def test_synchronised_norms_need_gpus_and_ranks():
    config = _config("trainer.sync_bn=true")
    cpu = torch.device("cpu")
    with pytest.raises(UserError, match=r"SyncBatchNorm needs GPUs; use trainer.precise_bn"):
        build(config, Ranks(0, 0, 2, cpu))
    alone = build(config, Ranks(0, 0, 1, cpu))
    assert not any(isinstance(m, torch.nn.SyncBatchNorm) for m in alone.model.modules())
    words = "trainer.sync_bn=True has no effect: there is one rank"
    assert [words in warnings(config, ranks) for ranks in (0, 1, 2)] == [False, True, False]
