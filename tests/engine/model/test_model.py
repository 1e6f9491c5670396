"""The detector: shapes, initialisation, weights from files, frozen parts."""

import dataclasses
import os
import subprocess
import sys

import pytest
import safetensors.torch
import timm
import torch

from engine.config.cautions import warnings
from engine.config.load import load_config
from engine.distributed import Ranks
from engine.export import __main__ as export
from engine.model import build_model, frozen_norms_to_eval, parameter_groups, synchronise_norms
from engine.model.encoder import build_encoder
from engine.training.state import build
from pipelines.errors import UserError
from tests.conftest import ROOT

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


def test_hrnet_with_and_without_its_incre_heads():
    assert build_encoder("hrnet_w18_small").channels == [128, 256, 512, 1024]
    plain = build_encoder("hrnet_w18_small", hrnet_incre_head=False)
    maps = plain(torch.randn(1, 3, 64, 64))
    assert [m.shape[1] for m in maps] == plain.channels == [16, 32, 64, 128]
    assert [m.shape[-1] for m in maps] == [16, 8, 4, 2]


def test_w44_encoder_has_the_published_channels():
    with torch.device("meta"):
        features = timm.create_model("hrnet_w44", features_only=True, out_indices=(1, 2, 3, 4))
    assert features.feature_info.channels() == [128, 256, 512, 1024]


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


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_encoder_weights_from_a_timm_file(tmp_path, suffix):
    source = timm.create_model("lcnet_035", pretrained=False)
    path = tmp_path / "weights.safetensors"
    if suffix == ".safetensors":
        safetensors.torch.save_file(source.state_dict(), path)
    else:
        torch.save({"state_dict": source.state_dict()}, tmp_path / "weights.pth")
        with pytest.raises(UserError, match=r"engine\.export --import .*weights\.pth --out weights\.safetensors"):
            build_model(_config(f"models.encoder.weights={tmp_path / 'weights.pth'}"))
        assert export.main(["--import", str(tmp_path / "weights.pth"), "--out", str(path)]) == 0
    model = build_model(_config(f"models.encoder.weights={path}"))
    torch.testing.assert_close(model.encoder.conv_stem.weight, source.conv_stem.weight)
    assert torch.equal(model.encoder.blocks[2][0].conv_dw.weight, source.blocks[2][0].conv_dw.weight)


def test_weights_that_do_not_fit_are_named(tmp_path):
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file(timm.create_model("resnet18").state_dict(), path)
    with pytest.raises(UserError, match=r"of the encoder's \d+ tensors"):
        build_model(_config(f"models.encoder.weights={path}"))
    (tmp_path / "broken.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        build_model(_config(f"models.encoder.weights={tmp_path / 'broken.safetensors'}"))
    with pytest.raises(UserError, match="no such weights file"):
        build_model(_config("models.encoder.weights=nowhere.safetensors"))


def test_unknown_encoder_and_wrong_strides():
    with pytest.raises(UserError, match="timm has no such model"):
        build_encoder("hrnet_w4")
    with pytest.raises(UserError, match="its maps have strides"):
        build_encoder("vit_tiny_patch16_224")


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


def test_encoders_that_cannot_serve_are_refused_and_tags_are_taken():
    with pytest.raises(UserError, match=r"any size|not \(N, C, H, W\)"):
        build_encoder("swin_tiny_patch4_window7_224")
    assert len(build_encoder("lcnet_050.ra2_in1k").channels) == 4


def test_a_hub_out_of_reach_ends_in_one_line():
    code = (
        "import os; os.environ['HF_HUB_OFFLINE'] = '1'\n"
        "from engine.model.encoder import build_encoder\n"
        "from pipelines.errors import UserError\n"
        "try: build_encoder('lcnet_050', weights='timm')\n"
        "except UserError as error: print(error)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": "/nonexistent"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert (
        done.stdout.startswith("models.encoder.weights=timm: cannot get pretrained weights") and "PATH" in done.stdout
    )
    assert done.stdout.count("\n") == 1


def test_weights_of_a_part_are_not_taken_silently(tmp_path):
    state = timm.create_model("lcnet_035").state_dict()
    state.pop("conv_stem.weight")
    safetensors.torch.save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(UserError, match=r"conv_stem\.weight"):
        build_model(_config(f"models.encoder.weights={tmp_path / 'part.safetensors'}"))


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


def test_synchronised_norms_need_gpus_and_ranks():
    config = _config("trainer.sync_bn=true")
    cpu = torch.device("cpu")
    with pytest.raises(UserError, match=r"SyncBatchNorm needs GPUs; use trainer.precise_bn"):
        build(config, Ranks(0, 0, 2, cpu))
    alone = build(config, Ranks(0, 0, 1, cpu))
    assert not any(isinstance(m, torch.nn.SyncBatchNorm) for m in alone.model.modules())
    words = "trainer.sync_bn=True has no effect: there is one rank"
    assert [words in warnings(config, ranks) for ranks in (0, 1, 2)] == [False, True, False]


def test_no_activation_copies_its_input():
    """In place, hard-swish copies its input for the gradient; ReLU does not."""
    encoder = build_encoder("lcnet_035")
    kinds = {type(m).__name__.lower(): m.inplace for m in encoder.modules() if hasattr(m, "inplace")}
    assert kinds["hardswish"] is False
    assert all(m.inplace for m in build_encoder("resnet18").modules() if hasattr(m, "inplace"))
    with torch.profiler.profile() as seen:
        encoder.train()(torch.randn(2, 3, 64, 64))
    assert not [event.key for event in seen.key_averages() if event.key == "aten::clone"]


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_nearest_upsampling_of_the_decoder_is_torchs(levels):
    factor = 2**levels
    decoder = build_model(_config()).double().decoder
    x = torch.randn(2, 5, 6, 4, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()
    size = torch.Size((6 * factor, 4 * factor))
    results = decoder._resize(x, size, levels), torch.nn.functional.interpolate(x, size=size, mode="nearest")
    gradient = torch.randn(results[0].shape, dtype=torch.float64).to(memory_format=torch.channels_last)
    assert torch.equal(*results)
    got, want = (torch.autograd.grad(y, x, gradient)[0] for y in results)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-14)
    assert got.is_contiguous(memory_format=torch.channels_last)
    odd = decoder._resize(x, torch.Size((13, 9)), 1)
    assert torch.equal(odd, torch.nn.functional.interpolate(x, size=(13, 9), mode="nearest"))
