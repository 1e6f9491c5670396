"""The encoder: maps, weights from elsewhere, and what is refused."""

import os
import socket
import subprocess
import sys
import threading

import pytest
import safetensors.torch
import timm
import torch

from engine.config.load import load_config
from engine.export import __main__ as export
from engine.model import build_model
from engine.model.encoder import build_encoder
from pipelines.errors import UserError
from tests.conftest import ROOT

SMALL = ["preset=demo", "models.encoder.name=lcnet_035", "models.decoder.inner_channels=8"]


def _config(*items):
    return load_config([*SMALL, *items])[0]


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


def test_a_silent_hub_is_asked_once_and_quietly(monkeypatch, capfd, tmp_path):
    """Its client alone tries each of two files six times: 50 s and 22 lines."""
    from huggingface_hub import constants

    asked = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up():
            while True:
                try:
                    asked.append(server.accept()[0].close())
                except OSError:
                    return

        threading.Thread(target=hang_up, daemon=True).start()
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(UserError, match=f"{address} does not answer"):
            build_encoder("lcnet_050", weights="timm")
        server.shutdown(socket.SHUT_RDWR)
    assert len(asked) == 1 and not constants.HF_HUB_OFFLINE
    assert capfd.readouterr() == ("", "")


def test_weights_of_a_part_are_not_taken_silently(tmp_path):
    state = timm.create_model("lcnet_035").state_dict()
    state.pop("conv_stem.weight")
    safetensors.torch.save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(UserError, match=r"conv_stem\.weight"):
        build_model(_config(f"models.encoder.weights={tmp_path / 'part.safetensors'}"))


def test_no_activation_copies_its_input():
    """In place, hard-swish copies its input for the gradient; ReLU does not."""
    encoder = build_encoder("lcnet_035")
    kinds = {type(m).__name__.lower(): m.inplace for m in encoder.modules() if hasattr(m, "inplace")}
    assert kinds["hardswish"] is False
    assert all(m.inplace for m in build_encoder("resnet18").modules() if hasattr(m, "inplace"))
    with torch.profiler.profile() as seen:
        encoder.train()(torch.randn(2, 3, 64, 64))
    assert not [event.key for event in seen.key_averages() if event.key == "aten::clone"]
