"""The loop: what a run leaves, resume after SIGKILL, ranks against accumulation, limits."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from engine import train
from engine.checkpoint import store
from engine.run.log import read_metrics
from pipelines.errors import UserError
from tests.conftest import ROOT, TINY, run_module


def _weights(run: Path, part: str = "model") -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run / "checkpoints" / "last" / f"{part}.safetensors")


def _same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_a_run_leaves_everything_a_user_looks_for(trained):
    names = {p.name for p in trained.iterdir()}
    assert {
        "config.yaml",
        "run.json",
        "metrics.jsonl",
        "checkpoints",
        "overlays",
        "curves.png",
        "summary.json",
    } <= names
    assert len(list((trained / "overlays").glob("*.jpg"))) == 1
    records = read_metrics(trained / "metrics.jsonl")
    assert [r["step"] for r in records if r["kind"] == "train"] == list(range(1, 9))
    first = records[0]
    assert {"loss", "prob_loss", "thresh_loss", "binary_loss", "grad_norm", "lr", "data_wait_share"} <= first.keys()
    assert first["loss"] == pytest.approx(
        5 * first["prob_loss"] + 10 * first["thresh_loss"] + first["binary_loss"], rel=1e-4
    )
    validations = [r for r in records if r["kind"] == "validation"]
    assert len(validations) == 2 and {"hmean", "precision", "recall", "hmean_macro"} <= validations[0].keys()
    state = json.loads((trained / "checkpoints" / "last" / "state.json").read_text())
    assert (state["step"], state["epoch"], state["samples_in_epoch"], state["global_batch"]) == (8, 2, 0, 2)


def test_the_same_command_gives_the_same_weights_and_a_taken_name_is_refused(trained, tmp_path):
    assert train.main([*TINY, "name=again", f"run_root={tmp_path}"]) == 0
    assert _same(_weights(trained), _weights(tmp_path / "again"))
    with pytest.raises(UserError, match="exists already"):
        train.main([*TINY, "name=again", f"run_root={tmp_path}"])


def test_max_steps_stops_in_the_middle_of_an_epoch_and_resume_ends_with_the_same_weights(trained, tmp_path):
    command = [*TINY, "name=cut", f"run_root={tmp_path}", "resume=auto"]
    assert train.main([*command, "trainer.max_steps=3"]) == 0
    state = json.loads((tmp_path / "cut" / "checkpoints" / "last" / "state.json").read_text())
    assert (state["step"], state["epoch"], state["samples_in_epoch"]) == (3, 0, 6)
    assert train.main(command) == 0
    assert _same(_weights(trained), _weights(tmp_path / "cut"))
    assert _same(_weights(trained, "optimizer"), _weights(tmp_path / "cut", "optimizer"))
    steps = [r["step"] for r in read_metrics(tmp_path / "cut" / "metrics.jsonl") if r["kind"] == "train"]
    assert steps == list(range(1, 9))


def test_sigkill_in_the_middle_of_an_epoch_then_the_same_command_ends_with_bit_identical_weights(trained, tmp_path):
    command = [*TINY, "name=run", f"run_root={tmp_path}", "resume=auto", "trainer.checkpoint_every_steps=1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", "engine.train", *command], env=environment)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("run/checkpoints/step_0000000[1-3]")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    state = store.load_state(store.newest(tmp_path / "run" / "checkpoints"))
    assert 0 < state["step"] < 8, "killed too late to show anything"
    assert train.main(command) == 0
    assert _same(_weights(trained), _weights(tmp_path / "run"))
    assert _same(_weights(trained, "optimizer"), _weights(tmp_path / "run", "optimizer"))


EXACT = ("trainer.precision=float64", "models.optimizer.name=sgd", "models.optimizer.lr=0.01", "trainer.max_steps=3")


def test_two_ranks_equal_one_rank_that_accumulates_the_same_two_micro_batches(tmp_path):
    one = [*TINY, *EXACT, "name=one", f"run_root={tmp_path}", "trainer.accumulate=2"]
    assert train.main(one) == 0
    run_module("engine.train", *TINY, *EXACT, "name=two", f"run_root={tmp_path}", ranks=2, cwd=tmp_path, check=True)
    single, double = _weights(tmp_path / "one"), _weights(tmp_path / "two")
    norms = ("running_mean", "running_var", "num_batches_tracked")
    compared = [k for k in single if not k.endswith(norms)]
    assert len(compared) > 100
    worst = max((single[k] - double[k]).abs().max().item() for k in compared)
    moved = max((single[k] - _start(k)).abs().max().item() for k in compared[:1])
    assert worst <= 1e-12 and moved > 1e-6


def _start(key: str) -> torch.Tensor:
    """The tensor before the first step: the seed decides it."""
    from engine.config.load import load_config
    from engine.distributed import seed_everything
    from engine.model import build_model

    seed_everything(0, False)
    return build_model(load_config([*TINY, *EXACT])[0]).double().state_dict()[key]


@pytest.mark.slow  # 22 s; two ranks against one are in test_scoring.py
def test_evaluation_on_1_2_and_3_ranks_gives_the_identical_hmean(trained, tmp_path):
    source = next((trained.parent / ".synthetic").rglob("*.json"))
    scores = []
    for ranks in (1, 2, 3):
        out = tmp_path / f"{ranks}.json"
        settings = (f"checkpoint={trained}", f"data.val={source}", f"output={out}", f"run_root={tmp_path}")
        run_module("engine.evaluate", *settings, "post.box_thresh=0.1", ranks=ranks, cwd=tmp_path, check=True)
        scores.append(json.loads(out.read_text()))
    for key in ("hmean", "precision", "recall", "hmean_macro", "images"):
        assert scores[0][key] == scores[1][key] == scores[2][key]
    assert {"seconds", "images_per_second"} <= scores[0].keys()


def test_minutes_and_patience_end_a_run(tmp_path):
    assert train.main([*TINY, "name=short", f"run_root={tmp_path}", "trainer.max_minutes=0.000001"]) == 0
    state = json.loads((tmp_path / "short" / "checkpoints" / "last" / "state.json").read_text())
    assert state["step"] <= 1 and state["scores"] is not None
    settings = ["models.optimizer.lr=0", "models.scheduler.name=constant", "trainer.patience=1", "trainer.max_epochs=9"]
    assert train.main([*TINY, "name=patient", f"run_root={tmp_path}", *settings]) == 0
    state = json.loads((tmp_path / "patient" / "checkpoints" / "last" / "state.json").read_text())
    assert state["epoch"] < 9 and state["stale"] == 1


def test_frozen_batch_norms_stay_fixed_also_after_checkpoints_in_an_epoch(tmp_path):
    settings = [*TINY, "name=frozen", f"run_root={tmp_path}", "models.encoder.freeze=all", "trainer.max_epochs=1"]
    assert train.main([*settings, "trainer.checkpoint_every_steps=1"]) == 0
    after = _weights(tmp_path / "frozen")
    name = "encoder.bn1.running_mean"
    assert torch.equal(after[name], torch.zeros_like(after[name]))
    assert after["head.prob.1.running_mean"].abs().sum() > 0


def test_an_epoch_of_fewer_steps_than_log_every_leaves_a_record(tmp_path):
    """4 steps an epoch and a line every 20: no loss was ever written."""
    assert train.main([*TINY, "name=few", f"run_root={tmp_path}", "trainer.log_every=20"]) == 0
    records = [r for r in read_metrics(tmp_path / "few" / "metrics.jsonl") if r["kind"] == "train"]
    assert [(r["step"], r["epoch"]) for r in records] == [(4, 0), (8, 1)] and all(r["loss"] > 0 for r in records)
    assert train.main([*TINY, "name=some", f"run_root={tmp_path}", "trainer.log_every=3", "trainer.max_steps=7"]) == 0
    records = [r for r in read_metrics(tmp_path / "some" / "metrics.jsonl") if r["kind"] == "train"]
    assert [r["step"] for r in records] == [3, 6]
    assert train.main([*TINY, "name=one", f"run_root={tmp_path}", "trainer.log_every=3", "trainer.max_steps=1"]) == 0
    records = [r for r in read_metrics(tmp_path / "one" / "metrics.jsonl") if r["kind"] == "train"]
    assert [r["step"] for r in records] == [1]
