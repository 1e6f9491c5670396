"""The detector: shapes, initialisation, weights from files, frozen parts."""

import dataclasses

import pytest
import torch

from engine.config.load import load_config
from engine.model import build_model, frozen_norms_to_eval, parameter_groups, synchronise_norms

SMALL = ["preset=demo", "models.encoder.name=lcnet_035", "models.decoder.inner_channels=8"]


def _config(*items):
    return load_config([*SMALL, *items])[0]


@pytest.mark.parametrize("items", [(), ("models.decoder.upsample=bilinear", "models.head.smooth=true")])
def test_logits_have_full_resolution_and_thresholds_only_in_training(items):
    model = build_model(_config(*items))
    image = torch.randn(2, 3, 64, 96)
    assert [logits.shape for logits in model.train()(image)] == [(2, 1, 64, 96)] * 2
    with torch.inference_mode():
        assert model.eval()(image).shape == (2, 1, 64, 96)


def test_baseline_start_of_head_and_decoder():
    model = build_model(_config())
    norm = model.head.prob[1]
    assert torch.all(norm.weight == 1) and torch.allclose(norm.bias, torch.tensor(1e-4))
    conv = model.decoder.laterals[3][0].weight
    assert conv.std().item() == pytest.approx((2 / conv[0].numel()) ** 0.5, rel=0.1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("items", [(), ("models.head.smooth=true", "models.head.hidden_channels=64")])
def test_maps_start_near_their_priors(items, seed):
    """Confidently wrong maps take long to unlearn, and under OHEM the way back may end in a constant map."""
    torch.manual_seed(seed)
    model = build_model(_config(*items)).train()
    logits = torch.cat(model(torch.randn(2, 3, 96, 96)), dim=1).detach()
    prob, thresh = logits.sigmoid().unbind(1)
    assert prob.mean() == pytest.approx(0.1, abs=0.05) and thresh.mean() == pytest.approx(0.5, abs=0.1)
    assert logits.std((0, 2, 3)).max() < 0.8, "the baseline's start has 2 to 5"


def test_freezing_and_groups():
    config = _config("models.encoder.freeze=all", "models.decoder.lr_scale=0.1", "models.decoder.decay_scale=0")
    model = build_model(config)
    groups = parameter_groups(model, config)
    assert [g["name"] for g in groups] == ["decoder", "head"]
    assert groups[0]["lr_scale"] == 0.1 and groups[0]["weight_decay"] == 0
    frozen_norms_to_eval(model.train())
    assert not model.encoder.bn1.training and model.head.prob[1].training
    stem = build_model(_config("models.encoder.freeze=stem"))
    frozen = {n for n, p in stem.encoder.named_parameters() if not p.requires_grad}
    assert "conv_stem.weight" in frozen and not any("blocks" in name for name in frozen)


def test_channels_last_is_set_explicitly():
    assert build_model(_config()).encoder.blocks[1][0].conv_pw.weight.is_contiguous(memory_format=torch.channels_last)
    assert dataclasses.is_dataclass(_config())


@pytest.mark.parametrize("name", ["hrnet_w18_small", "resnet18", "regnetx_002", "convnext_atto"])
def test_the_stem_is_what_comes_before_the_first_stage(name):
    model = build_model(_config("models.encoder.freeze=stem", f"models.encoder.name={name}"))
    frozen = {n.split(".")[0] for n, p in model.encoder.named_parameters() if not p.requires_grad}
    assert frozen and all(n.startswith(("conv", "bn", "stem")) for n in frozen)
    assert sum(p.requires_grad for p in model.encoder.parameters()) > 20


@pytest.mark.parametrize("name", ["lcnet_035", "hrnet_w18_small", "regnetx_002"])
def test_synchronised_norms_are_the_same_network_in_evaluation(name):
    """lcnet and regnet have timm's norms with activation, HRNet torch's; decoder (in this preset) and head torch's."""
    model = build_model(_config("models.encoder.freeze=stem", f"models.encoder.name={name}")).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
    image = torch.randn(1, 3, 64, 64)
    norms = sum(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())
    expected, keys, parameters = model(image), list(model.state_dict()), [id(p) for p in model.parameters()]
    converted = synchronise_norms(model)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in converted.modules())
    assert sum(isinstance(m, torch.nn.SyncBatchNorm) for m in converted.modules()) == norms > 20
    assert torch.equal(converted(image), expected)
    assert list(converted.state_dict()) == keys and [id(p) for p in converted.parameters()] == parameters
    frozen_norms_to_eval(converted.train())
    resting = [m for m in converted.modules() if isinstance(m, torch.nn.SyncBatchNorm) and not m.training]
    assert resting and not any(m.weight.requires_grad for m in resting)
