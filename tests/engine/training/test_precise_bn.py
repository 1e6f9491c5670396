"""Precise BatchNorm: statistics against a float64 computation, ranks, resume, and what the last checkpoint holds."""

import contextlib
import json

import pytest
import safetensors.torch
import torch
from torch import nn

from engine import evaluate, train
from engine.config.load import load_config
from engine.data import build_train_loader, open_data
from engine.distributed import start
from engine.model import build_model
from engine.run.log import read_metrics
from engine.training import precise_bn, resume
from engine.training.state import build
from tests.conftest import TINY, run_module

STATISTICS = ("running_mean", "running_var")
# An untrained network finds little above the usual thresholds.
LOOSE = ("post.bin_thresh=0.05", "post.box_thresh=0", "post.min_size_px=1", "post.min_unclipped_px=1")


def _tensors(run, part: str = "model", which: str = "last") -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run / "checkpoints" / which / f"{part}.safetensors")


def _same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def _state(run) -> dict:
    return json.loads((run / "checkpoints" / "last" / "state.json").read_text())


def _expected(model: nn.Module, images: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Means over batches of the mean and variance of what enters each norm, taken by hand in float64."""
    seen: dict[str, list[torch.Tensor]] = {}

    def hook(name):
        def note(_, inputs):
            x = inputs[0].double()
            seen.setdefault(f"{name}.running_mean", []).append(x.mean((0, 2, 3)))
            seen.setdefault(f"{name}.running_var", []).append(x.var((0, 2, 3), unbiased=True))

        return note

    handles = [
        m.register_forward_pre_hook(hook(name)) for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)
    ]
    model.train()
    with torch.no_grad():
        for image in images:
            model(image)
    for handle in handles:
        handle.remove()
    return {key: torch.stack(values).mean(0) for key, values in seen.items()}


@pytest.mark.parametrize("encoder", ["lcnet_035", "resnet10t"])
@pytest.mark.parametrize(("precision", "close"), [("float64", 1e-12), ("float32", 1e-4)])
def test_statistics_equal_a_float64_computation(encoder, precision, close):
    """lcnet has timm's BatchNormAct2d, resnet torch's BatchNorm2d, in decoder and head there are torch's."""
    config, _ = load_config([*TINY, f"models.encoder.name={encoder}", f"trainer.precision={precision}"])
    torch.manual_seed(0)
    model = build_model(config).to(torch.float64 if precision == "float64" else torch.float32)
    other = build_model(config).to(next(model.parameters()).dtype)
    images = [torch.randn(2, 3, 64, 96).mul(k + 1).to(next(model.parameters()).dtype) for k in range(3)]
    expected = [_expected(m, images) for m in (model, other)]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    momentum = [m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    precise_bn.estimate([model, other], precise_bn.trained_norms(model), images, config)
    for detector, wanted in zip((model, other), expected, strict=True):
        found = {k: v for k, v in detector.state_dict().items() if k.endswith(STATISTICS)}
        assert found.keys() == wanted.keys() and len(found) > 30
        for key, value in wanted.items():
            assert torch.allclose(found[key].double(), value, rtol=close, atol=close), key
    after = model.state_dict()
    assert all(torch.equal(after[k], before[k]) for k in before if not k.endswith(STATISTICS)), "counters and weights"
    assert momentum == [m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert not any(m.training for m in model.modules())


def test_dropout_is_off_and_frozen_norms_stay_fixed(tmp_path):
    config, _ = load_config([*TINY, "models.encoder.freeze=stem"])
    torch.manual_seed(0)
    model = build_model(config)
    model.head.prob.insert(3, nn.Dropout(0.5))  # between the first norm and the second
    names = precise_bn.trained_norms(model)
    frozen = [
        f"{name}.running_mean"
        for name, m in model.named_modules()
        if isinstance(m, nn.BatchNorm2d) and not m.weight.requires_grad
    ]
    assert frozen and len(names) > 15
    images = [torch.randn(2, 3, 64, 96) for _ in range(2)]
    start_ = {k: v.clone() for k, v in model.state_dict().items()}
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        precise_bn.estimate([model], names, images, config)
        found.append({k: v.clone() for k, v in model.state_dict().items()})
    assert _same(*found), "a random dropout would show"
    assert all(torch.equal(found[0][key], start_[key]) for key in frozen)
    assert not torch.equal(found[0]["head.prob.5.running_mean"], start_["head.prob.5.running_mean"])


SETTINGS = (*TINY, "trainer.precise_bn=3", "trainer.ema=true", "trainer.ema_decay=0.5", *LOOSE)


@pytest.fixture(scope="module")
def precise(tmp_path_factory):
    """The run folder of a tiny training with an average that ended with precise statistics."""
    folder = tmp_path_factory.mktemp("precise")
    assert train.main([*SETTINGS, "name=run", f"run_root={folder}"]) == 0
    return folder / "run"


def test_the_last_checkpoint_holds_the_statistics_and_was_judged_with_them(precise, tmp_path):
    state = _state(precise)
    assert (state["step"], state["precise_step"]) == (8, 8) and state["scores"] is not None
    validations = [r for r in read_metrics(precise / "metrics.jsonl") if r["kind"] == "validation"]
    assert [r["step"] for r in validations] == [4, 8, 8], "as ever, and once more at the end"
    config, _ = load_config([*SETTINGS, f"run_root={precise.parent}"])
    ranks = start(config.trainer.device)
    data = open_data(config, ranks)
    with contextlib.closing(build_train_loader(config, data.train, ranks, 2, 0)) as loader:
        images = [next(loader).image for _ in range(3)]
    for part in ("model", "ema"):
        tensors = _tensors(precise, part)
        model = build_model(config)
        model.load_state_dict(tensors)
        for key, value in _expected(model, images).items():
            assert torch.allclose(tensors[key].double(), value, rtol=1e-4, atol=1e-4), (part, key)
    source = max(
        (precise.parent / ".synthetic").rglob("*.json"), key=lambda p: -len(json.loads(p.read_text())["images"])
    )
    out = tmp_path / "scores.json"
    last = (precise / "checkpoints" / "last").resolve()
    assert evaluate.main([f"checkpoint={last}", f"data.val={source}", f"output={out}"]) == 0
    scores = json.loads(out.read_text())
    counted = ("images", "chars_gt", "chars_pred", "chars_hit", "hmean")
    assert scores["chars_pred"] > 0 and [scores[k] for k in counted] == [state["scores"][k] for k in counted]


PARTS = ("model", "ema", "optimizer")


def test_an_interrupted_run_ends_with_the_same_bits(precise, tmp_path):
    """Stopped in the middle of an epoch, where the statistics were renewed and saved too; then to the end."""
    command = [*SETTINGS, "name=cut", f"run_root={tmp_path}", "resume=auto"]
    assert train.main([*command, "trainer.max_steps=3"]) == 0
    assert (_state(tmp_path / "cut")["step"], _state(tmp_path / "cut")["precise_step"]) == (3, 3)
    assert train.main(command) == 0
    assert all(_same(_tensors(precise, part), _tensors(tmp_path / "cut", part)) for part in PARTS)


def test_a_finished_run_gets_them_once(precise, tmp_path):
    """As after a kill between the last step and the renewal: the weights are there, the statistics are not."""
    command = [*SETTINGS, "name=late", f"run_root={tmp_path}", "resume=auto"]
    assert train.main([*command, "trainer.precise_bn=0"]) == 0
    assert _state(tmp_path / "late")["precise_step"] == -1
    before = _tensors(tmp_path / "late", "ema")
    assert train.main(command) == 0
    after = _tensors(tmp_path / "late", "ema")
    assert {k for k in after if not torch.equal(after[k], before[k])} == {k for k in after if k.endswith(STATISTICS)}
    assert all(_same(_tensors(precise, part), _tensors(tmp_path / "late", part)) for part in PARTS)
    names = sorted(p.name for p in (tmp_path / "late" / "checkpoints").iterdir())
    assert train.main(command) == 0
    assert sorted(p.name for p in (tmp_path / "late" / "checkpoints").iterdir()) == names


def test_patience_ends_with_them_too(tmp_path):
    settings = ["models.optimizer.lr=0", "models.scheduler.name=constant", "trainer.patience=1", "trainer.max_epochs=9"]
    assert train.main([*TINY, "name=patient", f"run_root={tmp_path}", *settings, "trainer.precise_bn=1"]) == 0
    state = _state(tmp_path / "patient")
    assert state["epoch"] < 9 and state["precise_step"] == state["step"] and state["scores"] is not None


def test_a_checkpoint_from_before_the_option_can_be_resumed(tmp_path, monkeypatch):
    config, _ = load_config([*TINY, f"run_root={tmp_path}"])
    ranks = start(config.trainer.device)
    train_state = build(config, ranks)
    data = open_data(config, ranks)
    state = {"step": 4, "epoch": 1, "samples_in_epoch": 0, "best": 0.5, "best_epoch": 1, "stale": 0, "minutes": 0.1}
    monkeypatch.setattr(resume.store, "load_state", lambda *_: {**state, "global_batch": 2})
    monkeypatch.setattr(
        resume.store, "load_part", lambda _, part: train_state.model.state_dict() if part == "model" else {}
    )
    monkeypatch.setattr(resume.store, "load_optimizer", lambda *_: None)
    position = resume.restore(train_state, tmp_path, config, ranks, data)
    assert (position.step, position.precise_step) == (4, -1)


@pytest.mark.slow
def test_two_ranks_equal_one_rank_with_the_same_batches(tmp_path):
    exact = (
        "trainer.precision=float64",
        "models.optimizer.name=sgd",
        "models.optimizer.lr=0.01",
        "trainer.max_steps=3",
    )
    one = [*TINY, *exact, "name=one", f"run_root={tmp_path}", "trainer.accumulate=2", "trainer.precise_bn=4"]
    assert train.main(one) == 0
    two = [*TINY, *exact, "name=two", f"run_root={tmp_path}", "trainer.precise_bn=2"]
    run_module("engine.train", *two, ranks=2, cwd=tmp_path, check=True)
    single, double = _tensors(tmp_path / "one"), _tensors(tmp_path / "two")
    compared = [k for k in single if not k.endswith("num_batches_tracked")]
    assert sum(k.endswith(STATISTICS) for k in compared) > 30
    assert max((single[k] - double[k]).abs().max().item() for k in compared) <= 1e-12
