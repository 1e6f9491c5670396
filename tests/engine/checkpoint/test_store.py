"""Checkpoints: bit-exact round trip, complete or absent, damage found, retention."""

import contextlib
import functools
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from engine.checkpoint import store
from engine.config.load import load_config, to_dict, to_yaml
from pipelines.errors import UserError
from tests.engine.checkpoint.conftest import trained_model


def _write(folder, step, score=None):
    model, ema, optimizer = trained_model()
    parts = store.snapshot(model, ema.model, optimizer)
    return store.write(folder, parts, {"step": step, "score": score}, "seed: 0\n")


def test_round_trip_is_bit_exact_and_training_goes_on_alike(tmp_path):
    model, ema, optimizer = trained_model()
    path = store.write(tmp_path, store.snapshot(model, ema.model, optimizer), {"step": 2}, "seed: 0\n")
    other, other_ema, other_optimizer = trained_model(steps=0)
    store.load_model(other, store.load_part(path, "model"), path)
    store.load_model(other_ema.model, store.load_part(path, "ema"), path)
    store.load_optimizer(other_optimizer, store.load_part(path, "optimizer"))
    x = torch.randn(2, 3, 8, 8)
    for m, o in ((model, optimizer), (other, other_optimizer)):
        m(x).square().sum().backward()
        o.step()
    for a, b in ((model, other), (ema.model, other_ema.model)):
        assert all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("umask, rights", [(0o022, 0o644), (0o007, 0o660)])
def test_its_files_have_the_rights_of_new_files(tmp_path, umask, rights):
    before = os.umask(umask)
    try:
        path = _write(tmp_path, 1)
    finally:
        os.umask(before)
    assert {file.name: oct(file.stat().st_mode & 0o777) for file in path.iterdir()} == {
        file.name: oct(rights) for file in path.iterdir()
    }


def test_a_flipped_byte_and_a_truncation_are_found_and_the_one_before_is_used(tmp_path, capsys):
    first, second = _write(tmp_path, 1), _write(tmp_path, 2)
    assert store.newest(tmp_path) == second
    file = second / "model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-3] ^= 1
    file.write_bytes(raw)
    assert store.newest(tmp_path) == first
    assert "does not match its checksum" in capsys.readouterr().err
    with pytest.raises(UserError, match="damaged"):
        store.locate(second)
    os.truncate(first / "optimizer.safetensors", 10)
    assert store.newest(tmp_path) is None


def test_locate_prefers_best_and_says_what_is_missing(tmp_path):
    folder = tmp_path / "checkpoints"
    one, two = _write(folder, 1), _write(folder, 2)
    store.link(folder, "last", two)
    assert store.locate(tmp_path).resolve() == two.resolve()
    store.link(folder, "best", one)
    assert store.locate(tmp_path).resolve() == one.resolve()
    assert store.locate(tmp_path, prefer="last").resolve() == two.resolve()
    with pytest.raises(UserError, match="no such folder"):
        store.locate(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no checkpoint"):
        store.locate(os.path.dirname(__file__))


def test_retention_keeps_newest_best_and_linked(tmp_path):
    for step, score in enumerate([0.9, 0.1, 0.8, 0.2, 0.3], start=1):
        path = _write(tmp_path, step, score)
        if step == 2:
            store.link(tmp_path, "best", path)
    store.prune(tmp_path, keep_last=1, keep_top_k=2)
    assert sorted(p.name for p in tmp_path.glob("step_*")) == [f"step_{n:08d}" for n in (1, 2, 3, 5)]


def test_another_model_is_refused(tmp_path):
    path = _write(tmp_path, 1)
    with pytest.raises(UserError, match="weights are of another model"):
        store.load_model(torch.nn.Linear(2, 2), store.load_part(path, "model"), path)


def test_the_resolved_configuration_comes_back(tmp_path):
    config, _ = load_config(["preset=demo", "models.optimizer.lr=0.00123"])
    model, _, optimizer = trained_model()
    path = store.write(tmp_path, store.snapshot(model, None, optimizer), {"step": 1}, to_yaml(config))
    assert store.load_settings(path) == to_dict(config)
    assert store.load_part(path, "ema") == {}


KILLED = """
import sys, torch
from pathlib import Path
from engine.checkpoint import store
parts = {"model": {f"w{i}": torch.full((1000, 50), float(i)) for i in range(20)}}
print("go", flush=True)
step = 1
while True:
    path = store.write(Path(sys.argv[1]), parts, {"step": step}, "seed: 0\\n")
    store.link(Path(sys.argv[1]), "last", path)
    store.prune(Path(sys.argv[1]), 2, 1)
    step += 1
"""


def test_sigkill_in_the_middle_of_writes_never_leaves_a_half_checkpoint(tmp_path):
    rng = random.Random(0)
    for _ in range(4):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE)
        process.stdout.readline()
        while not list(tmp_path.glob("step_*")):
            time.sleep(0.01)
        time.sleep(0.05 + 0.4 * rng.random())
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        steps = sorted(tmp_path.glob("step_*"))
        assert steps and all(store.verify(path) == "" for path in steps)
        assert store.verify(tmp_path / "last") == ""


def test_a_kill_in_the_middle_of_a_deletion_leaves_no_half_checkpoint(tmp_path, monkeypatch):
    for step in (1, 2, 3):
        _write(tmp_path, step)

    def killed(path, **_):
        next(path.iterdir()).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(store.shutil, "rmtree", killed)
        store.prune(tmp_path, keep_last=1, keep_top_k=1)
    assert all(store.verify(path) == "" for path in tmp_path.glob("step_*"))
    store.prune(tmp_path, keep_last=1, keep_top_k=1)
    assert [path.name for path in tmp_path.iterdir() if not path.is_symlink()] == ["step_00000003"]


def test_a_fused_optimizer_goes_on_alike_with_channels_last_weights():
    """A checkpoint has no strides; fused kernels walk weight and moments by the weight's."""
    torch.manual_seed(0)
    models = [torch.nn.Conv2d(9, 9, 3).to(memory_format=torch.channels_last) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [torch.optim.AdamW(m.parameters(), lr=0.1, fused=True) for m in models]

    def step(i, x):
        models[i](x).square().sum().backward()
        optimizers[i].step()
        optimizers[i].zero_grad()

    first, second = torch.randn(2, 1, 9, 8, 8)
    step(0, first)
    parts = store.snapshot(models[0], None, optimizers[0])
    models[1].load_state_dict(parts["model"])
    store.load_optimizer(optimizers[1], parts["optimizer"])
    for i in range(2):
        step(i, second)
    assert torch.equal(models[0].weight, models[1].weight)


def test_a_step_written_again_never_deletes_the_one_before_it_is_complete(tmp_path):
    first, second = _write(tmp_path, 7), _write(tmp_path, 7)
    assert first != second and first.is_dir() and store.newest(tmp_path) == second
    store.prune(tmp_path, keep_last=3, keep_top_k=1)
    assert not first.exists() and store.newest(tmp_path) == second


def _copy(trained, tmp_path) -> Path:
    shutil.copytree(trained, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


class Killed(BaseException):
    """No handler of the program's own knows it."""


def _dying(original, calls, moment, *arguments):
    if next(calls) == moment:
        raise Killed
    return original(*arguments)


def test_a_kill_while_writing_leaves_the_old_or_the_new(trained, tmp_path):
    """The process dies after each of the system calls that change files, one after another."""
    run = _copy(trained, tmp_path)
    path = store.locate(run).resolve()
    old = (path / "config.yaml").read_text()
    new = old.replace("box_thresh:", "box_thresh: 0.123  # was")
    seen = []
    for moment in range(40):
        calls = itertools.count()
        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Killed):
            for name in ("replace", "fsync", "chmod"):
                patch.setattr(os, name, functools.partial(_dying, getattr(os, name), calls, moment))
            store.replace_settings(path, new)
        assert store.verify(path) == "", moment
        seen.append((path / "config.yaml").read_text() == new)
        assert seen[-1] or (path / "config.yaml").read_text() == old
        if next(calls) <= moment:  # it came to its end
            break
        store.replace_settings(path, old)
    assert seen[0] is False and seen[-1] is True and 8 < len(seen) < 40
    assert "before" not in (path / "manifest.json").read_text()


def test_the_old_settings_are_excused_only_as_the_manifest_says(trained, tmp_path):
    path = store.locate(_copy(trained, tmp_path)).resolve()
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["config.yaml"]["before"] = {"bytes": 1, "sha256": "x"}
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert store.verify(path) == ""
    (path / "config.yaml").write_text((path / "config.yaml").read_text() + "\n")
    assert "config.yaml does not match" in store.verify(path)
    for wrong in (3, "x", None, [], {}):
        manifest["config.yaml"]["before"] = wrong
        (path / "manifest.json").write_text(json.dumps(manifest))
        assert store.verify(path), wrong
