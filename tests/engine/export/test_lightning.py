"""The contest baseline's Lightning checkpoint becomes a detector of ours with the same maps.

The baseline is written down here anew from its description: module names and order of maps are its own, as they stand
in its checkpoints.
"""

import json

import pytest
import timm
import torch
from torch import nn

from engine.checkpoint import store
from engine.config.load import from_dict, load_config
from engine.detection.open import load_detector
from engine.distributed import Ranks
from engine.export import __main__ as export
from engine.export import lightning
from engine.export.foreign import import_file
from engine.training.state import build
from pipelines.errors import UserError
from tests.conftest import run_module

ALONE = Ranks(0, 0, 1, torch.device("cpu"))


class Pyramid(nn.Module):
    """Laterals `inners`, outputs `outers` from the coarsest map to the finest, each at stride 4."""

    def __init__(self, channels, inner, output, bias=False):
        super().__init__()
        self.inners = nn.ModuleList(nn.Conv2d(c, inner, 1, bias=bias) for c in channels)
        convolutions = [nn.Conv2d(inner, output, 3, padding=1, bias=bias) for _ in channels]
        scaled = [nn.Sequential(c, nn.Upsample(scale_factor=s)) for c, s in zip(convolutions, (8, 4, 2))]
        self.outers = nn.ModuleList([*scaled, convolutions[-1]])

    def forward(self, maps):
        laterals = [inner(x) for inner, x in zip(self.inners, maps)]
        path = [laterals[-1]]
        for lateral in laterals[-2::-1]:
            path.append(nn.functional.interpolate(path[-1], scale_factor=2) + lateral)
        return torch.cat([outer(x) for outer, x in zip(self.outers, path)], 1)


class Head(nn.Module):
    """Branches `binarize` and `thresh`, with a bias in both transposed convolutions and none in the first."""

    def __init__(self, channels, smooth=False):
        super().__init__()
        hidden = channels // 4
        self.binarize, self.thresh = self.branch(channels, hidden, False), self.branch(channels, hidden, smooth)

    def branch(self, channels, hidden, smooth):
        def double(out):
            if not smooth:
                return nn.ConvTranspose2d(hidden, out, 2, 2)
            return nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(hidden, out, 3, padding=1, bias=False))

        start = [nn.Conv2d(channels, hidden, 3, padding=1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU()]
        return nn.Sequential(*start, double(hidden), nn.BatchNorm2d(hidden), nn.ReLU(), double(1), nn.Sigmoid())

    def forward(self, x):
        return self.binarize(x), self.thresh(x)


class Backbone(nn.Module):
    """All maps of a timm model, of which the last four are taken."""

    def __init__(self, name):
        super().__init__()
        self.model = timm.create_model(name, features_only=True)

    def forward(self, x):
        return self.model(x)[-4:]


class Baseline(nn.Module):
    def __init__(self, name, inner=16, output=8, bias=False, smooth=False):
        super().__init__()
        self.encoder = Backbone(name)
        self.decoder = Pyramid(self.encoder.model.feature_info.channels()[-4:], inner, output, bias)
        self.head = Head(4 * output, smooth)

    def forward(self, image):
        return self.head(self.decoder(self.encoder(image)))


@pytest.fixture
def baseline():
    """Random weights, and statistics of the norms that are not those of a fresh network."""

    def make(name, **variant):
        torch.manual_seed(1)
        model = Baseline(name, **variant).eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 2)
        return model

    return make


def save(model, path):
    """As Lightning writes it: the module's tensors below `model.`, and the trainer's state beside them."""
    state = {f"model.{k}": v for k, v in model.state_dict().items()}
    best = {"monitor": "val/loss", "best_model_score": torch.tensor(0.5), "dirpath": "checkpoints"}
    held = {"epoch": 9, "global_step": 100, "pytorch-lightning_version": "2.1.3", "state_dict": state, "loops": {}}
    torch.save(held | {"callbacks": {"ModelCheckpoint": best}, "optimizer_states": [{"state": {}}]}, path)
    return path


def logit(maps):
    return torch.logit(maps.double())


def test_a_lightning_checkpoint_becomes_a_run_with_the_same_maps(baseline, tmp_path, capsys):
    model, out = baseline("resnet18"), tmp_path / "run"
    source = save(model, tmp_path / "last.ckpt")
    assert export.main(["--import", str(source), "--out", str(out), "data.image_size=[64,96]", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["kind"] == "baseline" and "encoder resnet18" in result["notice"] and "[64, 96]" in result["notice"]
    path = store.locate(out)
    config = from_dict(store.load_settings(path))
    ours = load_detector(path, config, ALONE)
    image = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        prob, thresh = model(image)
        joined = ours.decoder(ours.encoder(image))
        assert (ours.head.prob(joined).sigmoid() - prob).abs().max() <= 1e-4
        assert (ours.head.thresh(joined).sigmoid() - thresh).abs().max() <= 1e-4
        # near 0 and 1 the sigmoid hides differences
        assert (ours.head.prob(joined) - logit(prob)).abs().max() <= 1e-3 * logit(prob).abs().max()
        assert (ours(image).sigmoid() - prob).abs().max() <= 1e-4 < prob.std()


def test_as_a_file_it_starts_a_training_with_the_settings_it_names(baseline, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(lightning, "ENCODERS", {"conv_stem": ("lcnet_050",)})  # the others of its family take seconds
    source, out = save(baseline("lcnet_050"), tmp_path / "last.ckpt"), tmp_path / "x.safetensors"
    assert export.main(["--import", str(source), "--out", str(out)]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "init_from takes it with" in line)
    settings = line.partition("with ")[2].split()
    model = build(load_config(["preset=demo", *settings, f"init_from={out}"])[0], ALONE).model
    assert torch.equal(model.decoder.laterals[0][0].weight, baseline("lcnet_050").decoder.inners[0].weight)


def test_an_encoder_that_is_not_found_is_asked_for(baseline, tmp_path, monkeypatch):
    monkeypatch.setattr(lightning, "ENCODERS", {"conv_stem": ("lcnet_050",)})
    source = save(baseline("lcnet_035"), tmp_path / "last.ckpt")
    with pytest.raises(UserError, match=r"name the timm model .*: models\.encoder\.name=NAME"):
        import_file(source, tmp_path / "a", [])
    assert not list(tmp_path.glob("[ab]"))
    import_file(source, tmp_path / "c", ["models.encoder.name=lcnet_035"])
    assert store.load_settings(store.locate(tmp_path / "c"))["models"]["encoder"]["name"] == "lcnet_035"
    with pytest.raises(UserError, match=r"models\.head\.smooth=true: the tensors decide"):
        import_file(source, tmp_path / "d", ["models.encoder.name=lcnet_035", "models.head.smooth=true"])


@pytest.mark.parametrize("variant, words", [({"bias": True}, "biases in its decoder"), ({"smooth": True}, "smooth")])
def test_variants_that_our_network_cannot_be_are_refused(baseline, tmp_path, variant, words):
    source = save(baseline("lcnet_035", **variant), tmp_path / "last.ckpt")
    with pytest.raises(UserError, match=f"{source}: this baseline was trained with {words}"):
        import_file(source, tmp_path / "out", [])
    assert not (tmp_path / "out").exists()


def test_a_file_that_lacks_a_tensor_is_one_line(baseline, tmp_path):
    model = baseline("lcnet_035")
    for gone in ("decoder.outers.3.weight", "head.thresh.4.running_mean", "head.binarize.6.weight"):
        torch.save({k: v for k, v in model.state_dict().items() if k != gone}, tmp_path / "cut.pt")
        with pytest.raises(UserError, match=r"is missing|tensors of this baseline are missing"):
            import_file(tmp_path / "cut.pt", tmp_path / "out", ["models.encoder.name=lcnet_035"])


def test_a_deeper_encoder_is_not_taken_for_the_shallower_one_that_is_in_it():
    tensors = timm.create_model("resnet34", features_only=True).state_dict()
    assert lightning._find_encoder(tensors, True, "") == ("resnet34", [64, 128, 256, 512])
    with pytest.raises(UserError, match="not resnet18"):
        lightning._find_encoder(tensors, True, "resnet18")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hrnet_w44", "hrnet_w18", "efficientnet_b0", "convnext_tiny"])
def test_encoders_of_entrants(baseline, tmp_path, name):
    model = baseline(name, inner=256, output=64)
    import_file(save(model, tmp_path / "last.ckpt"), tmp_path / "run", [])
    path = store.locate(tmp_path / "run")
    config = from_dict(store.load_settings(path))
    assert config.models.encoder.name == name
    ours, image = load_detector(path, config, ALONE), torch.randn(1, 3, 96, 64)
    with torch.inference_mode():
        assert (ours(image).sigmoid() - model(image)[0]).abs().max() <= 1e-4


@pytest.mark.slow
def test_the_run_is_evaluated(baseline, tmp_path):
    source = save(baseline("resnet18"), tmp_path / "last.ckpt")
    import_file(source, tmp_path / "run", ["data.image_size=64"])
    from pipelines.synthetic import receipts

    pages = receipts.write_dataset(tmp_path / "pages", 2, 5, 120, 150)
    done = run_module(
        "engine.evaluate", f"checkpoint={tmp_path / 'run'}", f"data.val={pages}", cwd=tmp_path, check=True
    )
    assert json.loads(done.stdout)["images"] == 2
