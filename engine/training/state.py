"""What is trained: the model in its compiled and distributed forms, its optimizer and its average."""

import dataclasses
from pathlib import Path

import torch

from engine.config import Config, changed
from engine.distributed import Ranks
from engine.model import DBNet, build_model, parameter_groups, synchronise_norms
from engine.model.encoder import read_tensors
from engine.model.forward import check_kernels, compiled, data_parallel
from engine.training.ema import Ema
from engine.training.optim import build_optimizer
from engine.training.skip import StepSkipper
from pipelines.errors import UserError


@dataclasses.dataclass(frozen=True)
class TrainState:
    """What is trained: the bare model, what is called (compiled, DDP), optimizer, average, and who skips bad steps."""

    model: DBNet
    forward: torch.nn.Module
    evaluated: torch.nn.Module
    optimizer: torch.optim.Optimizer
    ema: Ema | None
    skipper: StepSkipper

    @property
    def averaged(self) -> torch.nn.Module | None:
        return self.ema.model if self.ema is not None else None


def build(config: Config, ranks: Ranks, resumed: bool = False) -> TrainState:
    """Model, compiled bare and then wrapped in DDP (`engine.model.forward`), with optimizer and EMA, on its device.

    With `resumed` the weights come from a checkpoint of the run, so neither the hub nor `init_from` is asked.
    """
    check_kernels(config, ranks.device)
    synchronise = config.trainer.sync_bn and ranks.world_size > 1
    if synchronise and ranks.device.type != "cuda":
        raise UserError("trainer.sync_bn=true: torch's SyncBatchNorm needs GPUs; use trainer.precise_bn=100 instead")
    if resumed or config.init_from:
        config = changed(config, {"models.encoder.weights": ""})
    model = build_model(config)
    if config.init_from and not resumed:
        from engine.checkpoint import store  # here, so that the rest needs torch and timm only

        source = Path(config.init_from)
        if source.is_file():  # of `engine.export --import`
            part = read_tensors(source, "init_from")
        else:
            source = store.locate(config.init_from, key="init_from")
            part = store.load_part(source, "ema") or store.load_part(source, "model")
        store.load_model(model, part, source)
    model = (model.double() if config.trainer.precision == "float64" else model).to(ranks.device)
    model = synchronise_norms(model) if synchronise else model
    ema = Ema(model, config.trainer.ema_decay) if config.trainer.ema else None
    forward = evaluated = compiled(model, config)
    if ema is not None and config.eval.ema:
        evaluated = compiled(ema.model, config)
    optimizer = build_optimizer(parameter_groups(model, config), config.models.optimizer)
    skipper = StepSkipper(model, ranks)
    return TrainState(model, data_parallel(forward, config, ranks), evaluated, optimizer, ema, skipper)
