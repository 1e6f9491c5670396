"""Files that go bad under a run: real processes, files damaged while they train.

The thorough ones are slow; tests/pipelines/test_quarantine.py shows batch for batch that a bad page is the same
wherever and whenever it is found.
"""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from engine import distributed
from engine.checkpoint import store
from engine.config.load import load_config
from engine.data import open_pages
from engine.detection.open import load_detector
from engine.evaluation.judge import evaluate
from engine.run.log import read_metrics
from engine.training import bad_pages
from pipelines.errors import UserError
from pipelines.index.build import ConcatIndex, build
from pipelines.synthetic.receipts import write_dataset
from tests.conftest import ROOT, TINY, run_module

PAGES = 24


# 12 steps an epoch, 48 in all; a step takes some 50 ms
SETTINGS = (*TINY, "trainer.max_epochs=4", "data.max_bad_share=0.25", "eval.every_epochs=2")


@pytest.fixture
def data(tmp_path):
    """Settings that name a training and a validation set of their own, and the training images."""
    train = write_dataset(tmp_path / "train", PAGES, 0, 120, 150, 1)
    val = write_dataset(tmp_path / "val", 4, 1, 120, 150, 1)
    images = sorted((tmp_path / "train" / "images").iterdir())
    return (f"data.train={train}", f"data.val={val}", f"run_root={tmp_path / 'runs'}"), images


def damage(path, how):
    size = path.stat().st_size
    if how == "vanished":
        path.unlink()
    elif how == "emptied":
        path.write_bytes(b"")
    elif how == "truncated":
        os.truncate(path, size // 2)
    elif how == "corrupt":  # as many bytes as before, no marker of a JPEG left
        path.write_bytes(np.random.default_rng(0).integers(0, 255, size, np.uint8).tobytes())
    elif how == "replaced":
        Image.new("RGB", (60, 50)).save(path)
    elif how == "replaced, same bytes":
        small = path.with_suffix(".new")
        Image.new("RGB", (60, 50)).save(small, "JPEG")
        with small.open("ab") as file:
            file.write(bytes(size - small.stat().st_size))
        small.replace(path)


HOWS = ("vanished", "emptied", "truncated", "corrupt", "replaced", "replaced, same bytes")


def start(*settings, log):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    return subprocess.Popen([sys.executable, "-m", "engine.train", *settings], env=environment, stderr=log, stdout=log)


def wait_for_step(process, run, step):
    """Until the run's metrics show a step; it must still be running then."""
    deadline = time.monotonic() + 300
    while True:
        metrics = run / "metrics.jsonl"
        steps = [r["step"] for r in read_metrics(metrics) if r["kind"] == "train"] if metrics.exists() else []
        if steps and steps[-1] >= step:
            break
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert process.poll() is None, "ended before anything was damaged"


def weights(run):
    return safetensors.torch.load_file(run / "checkpoints" / "last" / "model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_files_that_go_bad_under_a_run_do_not_end_it(tmp_path, data, workers):
    settings, images = data
    run, log = tmp_path / "runs" / "run", tmp_path / "log"
    with log.open("w") as file:
        process = start(*SETTINGS, *settings, "name=run", f"data.workers={workers}", log=file)
        wait_for_step(process, run, 6)
        process.send_signal(signal.SIGSTOP)  # all at the same step, however busy the machine
        for path, how in zip(images[::4], HOWS):
            damage(path, how)
        vanished = tmp_path / "val" / "images" / sorted(p.name for p in (tmp_path / "val" / "images").iterdir())[2]
        vanished.unlink()
        process.send_signal(signal.SIGCONT)
        assert process.wait(600) == 0, log.read_text()[-3000:]
    said = log.read_text()
    print(said[-3000:])
    named = json.loads((run / "bad_pages.json").read_text())
    assert named.keys() == {str(path) for path in images[::4][: len(HOWS)]}
    for path in named:
        assert said.count(f"{path}: ") == 1 and f"rank 0: {path}: {named[path]}; another page" in said
    assert said.count(f"rank 0: {vanished}: No such file or directory; judged as a page without detections") == 1
    records = read_metrics(run / "metrics.jsonl")
    assert [r["step"] for r in records if r["kind"] == "train"] == list(range(1, 49))
    assert [r["bad_images"] for r in records if r["kind"] == "validation"] == [1.0, 1.0]
    assert said.count("1 validation page cannot be read: this evaluation counts neither") == 2
    state = json.loads((run / "checkpoints" / "last" / "state.json").read_text())
    assert state["step"] == 48 and state["best"] == -1 and state["stale"] == 0 and state["score"] is None
    assert state["scores"]["bad_images"] == 1 and not (run / "checkpoints" / "best").exists()


def test_a_page_that_cannot_be_read_for_a_moment_costs_one_evaluation(trained, tmp_path, data, caplog):
    settings, _ = data
    path = store.locate(trained)
    config = load_config([settings[1], "post.bin_thresh=0.05", "post.box_thresh=0"], base=store.load_settings(path))[0]
    alone = distributed.Ranks(0, 0, 1, torch.device("cpu"))
    pages, model = open_pages(config, config.data.val, alone), load_detector(path, config, alone)
    image = pages.path(2)

    def scores():
        found = evaluate(model, pages, config, alone).scores
        return {name: found[name] for name in ("hmean", "recall", "score", "bad_images")}

    whole = scores()
    assert whole["bad_images"] == 0 and whole["recall"] > 0
    for _ in range(2):
        image.rename(image.with_suffix(".hidden"))
        assert scores()["bad_images"] == 1
        image.with_suffix(".hidden").rename(image)
        assert scores() == whole
    assert caplog.text.count("judged as a page without detections") == 1  # the same fault is named once


@pytest.mark.slow
def test_an_evaluation_with_a_bad_page_is_no_best(tmp_path, data):
    settings, _ = data
    run, log = tmp_path / "runs" / "run", tmp_path / "log"
    with log.open("w") as file:
        process = start(*SETTINGS, *settings, "name=run", "models.optimizer.lr=0.003", log=file)
        wait_for_step(process, run, 26)  # evaluated at 24
        next((tmp_path / "val" / "images").iterdir()).unlink()
        assert process.wait(600) == 0, log.read_text()[-3000:]
    first, second = (r for r in read_metrics(run / "metrics.jsonl") if r["kind"] == "validation")
    assert (first["bad_images"], second["bad_images"]) == (0, 1) and second["best"] == first["score"]
    state = json.loads((run / "checkpoints" / "last" / "state.json").read_text())
    assert (state["step"], state["best"], state["stale"], state["score"]) == (48, first["score"], 0, None)
    assert (run / "checkpoints" / "best").resolve().name == "step_00000024"


@pytest.mark.slow
def test_above_the_share_the_run_stops_with_the_list(tmp_path, data):
    settings, images = data
    run, log = tmp_path / "runs" / "run", tmp_path / "log"
    with log.open("w") as file:
        process = start(*SETTINGS, *settings, "name=run", "data.max_bad_share=0.05", log=file)
        wait_for_step(process, run, 3)
        for path in images[::3]:
            path.unlink()
        assert process.wait(600) == 2, log.read_text()[-3000:]
    (line,) = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
    assert "3 of 24 pages cannot be read, above data.max_bad_share=0.05" in line and line.count("No such file") == 3


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_resume_with_bad_files_ends_with_the_same_weights(tmp_path, data, workers):
    """The first run opens the data and leaves a checkpoint; then files go bad, two of 24."""
    settings, images = data
    one = [*SETTINGS, *settings, f"data.workers={workers}", "data.max_bad_share=0.08", "resume=auto"]
    for name in ("whole", "killed"):
        run_module("engine.train", *one, f"name={name}", "trainer.max_steps=1", cwd=tmp_path, timeout=600, check=True)
    damage(images[3], "corrupt")
    damage(images[11], "vanished")
    done = run_module("engine.train", *one, "name=whole", cwd=tmp_path, timeout=600, check=True)
    assert f"{images[11]}: No such file" in done.stderr and f"{images[3]}: cannot be decoded" in done.stderr
    run = tmp_path / "runs" / "killed"
    with (tmp_path / "log").open("w") as file:
        process = start(*one, "name=killed", "trainer.checkpoint_every_steps=7", log=file)
        wait_for_step(process, run, 30)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = run_module("engine.train", *one, "name=killed", cwd=tmp_path, timeout=600, check=True)
    assert "resumed from" in done.stdout + done.stderr
    assert same(weights(run), weights(tmp_path / "runs" / "whole"))


def test_what_a_checkpoint_knows_of_bad_pages_is_taken_over(tmp_path, data):
    """Rows of the epoch that is under way are listed, but read again; between two epochs all are put out of use."""
    index = build(tmp_path / "train", tmp_path / "index")
    pages = ConcatIndex([index])
    pages.bad.update({7: "empty file", 2: "cannot be decoded"})
    for over in (False, True):
        saved = json.loads(json.dumps(bad_pages.gathered(pages, epoch_over=over)))
        assert saved == [[2, index.name(2), "cannot be decoded", over], [7, index.name(7), "empty file", over]]
        resumed = ConcatIndex([index])
        bad_pages.restore(resumed, saved, tmp_path)
        assert resumed.bad == pages.bad and resumed.unread == pages.unread == ({2, 7} if over else set())
    others = ConcatIndex([build(tmp_path / "val", tmp_path / "other")])
    bad_pages.restore(
        others, [[2, "another.jpg", "", True], [999, index.name(2), "", True], [-1, "", "", True]], tmp_path
    )
    assert not others.bad and not others.unread
    for wrong in (3, [1, "a.jpg", "", 1], ["1", "a.jpg", "", True], [1, "a.jpg", ""], None):
        with pytest.raises(UserError, match=r"damaged .*bad_pages has"):
            bad_pages.restore(pages, [wrong], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_files_bad_for_one_epoch_stay_out_in_a_run_and_after_a_resume(tmp_path, data, workers):
    """They are whole again in the second epoch, where one run is under way and the other starts again."""
    settings, images = data
    one = [*SETTINGS, *settings, f"data.workers={workers}", "data.max_bad_share=0.08", "resume=auto"]
    for name in ("whole", "again"):
        run_module("engine.train", *one, f"name={name}", "trainer.max_steps=1", cwd=tmp_path, timeout=600, check=True)
    before = {path: path.read_bytes() for path in (images[3], images[11])}
    times = {path: path.stat() for path in before}

    def mend():
        for path, content in before.items():
            path.with_suffix(".new").write_bytes(content)
            path.with_suffix(".new").replace(path)
            os.utime(path, ns=(times[path].st_atime_ns, times[path].st_mtime_ns))

    damage(images[3], "corrupt")
    damage(images[11], "vanished")
    with (tmp_path / "log").open("w") as file:
        process = start(*one, "name=whole", log=file)
        wait_for_step(process, tmp_path / "runs" / "whole", 14)
        mend()
        assert process.wait(600) == 0, (tmp_path / "log").read_text()[-3000:]
    damage(images[3], "corrupt")
    damage(images[11], "vanished")
    first = [*one, "name=again", "trainer.max_steps=12"]
    done = run_module("engine.train", *first, cwd=tmp_path, timeout=600, check=True)
    assert f"{images[11]}: No such file" in done.stderr and f"{images[3]}: cannot be decoded" in done.stderr
    listed = (tmp_path / "runs" / "again" / "bad_pages.json").read_text()
    mend()
    done = run_module("engine.train", *one, "name=again", cwd=tmp_path, timeout=600, check=True)
    assert "resumed from" in done.stdout + done.stderr and str(images[3]) not in done.stderr
    assert listed == (tmp_path / "runs" / "again" / "bad_pages.json").read_text()
    assert same(weights(tmp_path / "runs" / "again"), weights(tmp_path / "runs" / "whole"))


@pytest.mark.slow
def test_two_ranks_take_the_same_substitutes_as_one(tmp_path, data):
    settings, images = data
    exact = ("trainer.precision=float64", "models.optimizer.name=sgd", "models.optimizer.lr=0.01")
    both = [*SETTINGS, *settings, *exact, "resume=auto", "trainer.max_epochs=1", "eval.every_epochs=1"]
    for name, more, ranks in (("one", ["trainer.accumulate=2"], 0), ("two", [], 2)):
        steps = ["trainer.max_steps=1", f"name={name}", *more]
        run_module("engine.train", *both, *steps, ranks=ranks, cwd=tmp_path, timeout=600, check=True)
    for path, how in zip(images[::4], HOWS):
        damage(path, how)
    run_module("engine.train", *both, "name=one", "trainer.accumulate=2", cwd=tmp_path, timeout=600, check=True)
    done = run_module("engine.train", *both, "name=two", ranks=2, cwd=tmp_path, timeout=600, check=True)
    found = [json.loads((tmp_path / "runs" / name / "bad_pages.json").read_text()) for name in ("one", "two")]
    assert found[0] == found[1]
    for path in found[1]:
        assert "; another page takes its place" in done.stderr and path in done.stderr
    one, two = (weights(tmp_path / "runs" / name) for name in ("one", "two"))
    norms = ("running_mean", "running_var", "num_batches_tracked")
    compared = [k for k in one if not k.endswith(norms)]
    assert len(compared) > 100 and max((one[k] - two[k]).abs().max().item() for k in compared) <= 1e-12
