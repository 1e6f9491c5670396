"""engine.tune: the shared fast path is exact, gains are told from noise, and a checkpoint survives its rewriting."""

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from bench import receipts
from engine.checkpoint import store as checkpoint
from engine.config import PostConfig
from engine.config.load import load_config
from engine.detection.maps import MapStore
from engine.detection.postprocess import detect
from engine.evaluation.cleval import CLEval, evaluate_page
from engine.evaluation.judge import cleval_arguments
from engine.evaluation.significance import groups_of, hmeans
from engine.run.folder import Lock
from engine.tune import __main__ as tune
from engine.tune import record
from engine.tune.candidates import FILTERS, Judge
from engine.tune.search import Found, Search, deal, gain_of, grid, growth_of, least_filters, options, space, study_of
from pipelines.errors import UserError
from pipelines.index.bare import BareIndex
from tests.conftest import ROOT, TINY

HEIGHT, WIDTH = 640, 640  # of a receipt's upper half: 90 ms instead of 200 a growth of polygons


class Receipts:
    """The upper halves of the six receipts as annotated pages; texts are as long as their lines are."""

    def polygons(self, row):
        """Lines that are wholly on the half."""
        return [line for line in receipts.lines()[row] if line[:, 1].max() < HEIGHT]

    def texts(self, row):
        """Made-up transcriptions: the repository keeps none."""
        return ["x" * max(1, int(np.ptp(line[:, 0]) / 12)) for line in self.polygons(row)]

    def ignore(self, row):
        """Every ninth line does not matter."""
        return np.arange(len(self.polygons(row))) % 9 == 8

    def __len__(self):
        return 6


@pytest.fixture(scope="module")
def real():
    """(store, pages) of the six receipts; the pages are larger than their maps, by another factor each."""
    with MapStore(6, (HEIGHT, WIDTH)) as store:
        maps = torch.from_numpy(np.stack(receipts.prob_maps())[:, :HEIGHT])
        matrices = np.array([[[1.0, 0, 0], [0, 1, 0]]] * 6)
        store.put(np.arange(6), maps, matrices, np.full((6, 2), (WIDTH, HEIGHT)))
        yield store, Receipts()


def _random(rng) -> PostConfig:
    return PostConfig(
        shape=str(rng.choice(["quad", "quad", "polygon"])),
        score_mode=str(rng.choice(["fast", "slow"])),
        bin_thresh=float(rng.uniform(0.1, 0.6)),
        unclip_ratio=float(rng.uniform(0.8, 3.0)),
        connectivity=int(rng.choice([4, 8])),
        box_thresh=float(rng.uniform(0.1, 0.9)),
        min_size_px=float(rng.uniform(2, 8)),
        min_unclipped_px=float(rng.uniform(2, 14)),
        max_candidates=int(rng.choice([3, 20, 1000])),
    )


@pytest.mark.parametrize("protocol", ["official", "contest"])
def test_the_shared_path_is_exact(real, protocol):
    """Region by region and count by count what postprocess and CLEval themselves give, for random settings."""
    store, pages = real
    rng, every = np.random.default_rng(3), np.arange(6)
    judge = Judge(store, pages, protocol, least_filters(PostConfig()))
    kept = 0
    for _ in range(4):
        growth = _random(rng)
        shared = judge.growth(growth, every)
        regions = judge._finder.regions(growth, every)
        for _ in range(3):
            filters = {name: getattr(_random(rng), name) for name in FILTERS}
            post = dataclasses.replace(growth, **filters)
            expected = detect(store.maps(every), store.matrices, store.sizes_wh, post)
            counts = shared.counts(post)
            for row, page in enumerate(expected):
                which = regions[row].kept(post)
                assert len(which) == len(page.polygons)
                for a, b in zip((regions[row].polygons[i] for i in which), page.polygons, strict=True):
                    np.testing.assert_array_equal(a, b)
                result = evaluate_page(*cleval_arguments(page.polygons, row, pages, protocol))
                assert counts[row].tolist() == list(result.counts.values())
                kept += len(which)
    assert kept > 500, "nothing was compared"


@pytest.mark.parametrize("select", ["micro", "macro"])
def test_h_means_are_clevals(real, select):
    store, pages = real
    counts = Judge(store, pages, "contest", least_filters(PostConfig())).exact(
        PostConfig(min_size_px=2.0), np.arange(6)
    )
    metric = CLEval("contest")
    for row, page in enumerate(
        detect(store.maps(range(6)), store.matrices, store.sizes_wh, PostConfig(min_size_px=2.0))
    ):
        metric.add(evaluate_page(*cleval_arguments(page.polygons, row, pages, "contest")))
    key = "hmean" if select == "micro" else "hmean_macro"
    assert float(hmeans(counts, select)) == pytest.approx(metric.compute()[key], abs=1e-12)
    assert hmeans(np.zeros((0, 10)), select) == 0 and hmeans(np.zeros((4, 3, 10)), select).tolist() == [0.0] * 4


def _pages(rng, size, hit=0.9):
    """(size, 10) COUNTS of pages with 100 characters, as many predicted, and about a share of `hit` found."""
    counts = np.zeros((size, 10), np.int64)
    counts[:, 0], counts[:, 1], counts[:, 2] = 1, 100, 100
    counts[:, 4] = rng.binomial(100, hit, size)
    return counts


def test_a_planted_gain_is_told_from_noise():
    """Of 300 comparisons without any difference 2.3 % should pass as gains; of 2 points more on 66 pages nearly all."""
    rng = np.random.default_rng(0)
    alone = np.arange(66)
    chance = [gain_of(_pages(rng, 66), _pages(rng, 66), alone, "micro").real for _ in range(300)]
    planted = [gain_of(_pages(rng, 66), _pages(rng, 66, 0.92), alone, "micro").real for _ in range(100)]
    assert np.mean(chance) < 0.06 and np.mean(planted) > 0.9


def test_the_standard_error_is_that_of_a_mean():
    """With equal pages the micro H-mean is the mean of the pages', and the jackknife's error sd / sqrt(n)."""
    rng = np.random.default_rng(1)
    start, chosen = _pages(rng, 40), _pages(rng, 40, 0.93)
    gain = gain_of(start, chosen, np.arange(40), "micro")
    each = (chosen[:, 4] - start[:, 4]) / 100
    assert gain.gain == pytest.approx(each.mean())
    assert gain.standard_error == pytest.approx(each.std(ddof=1) / np.sqrt(40))
    assert not gain_of(start, start, np.arange(40), "macro").real, "no difference is no gain"
    twice = np.repeat(np.arange(40), 2)
    doubled = gain_of(start.repeat(2, 0), chosen.repeat(2, 0), twice, "micro")
    assert doubled.standard_error == pytest.approx(gain.standard_error), "a copy is no new page"


def test_copies_of_a_page_share_a_fold(tmp_path):
    """Also a copy that was saved anew: another file, nearly the same picture."""
    config, _ = load_config(["preset=demo"])
    rng = np.random.default_rng(0)
    for row in range(6):
        Image.fromarray(rng.integers(0, 255, (32, 24), np.uint8)).resize((240, 320)).save(tmp_path / f"{row}.png")
    with Image.open(tmp_path / "1.png") as picture:
        picture.resize((180, 240)).save(tmp_path / "5b.jpg", quality=60)
    pages = BareIndex(sorted(tmp_path.iterdir()))
    groups = groups_of(pages, config)
    assert groups.tolist() == [0, 1, 2, 3, 4, 5, 1]
    assert deal(groups, 3).tolist() == [0, 1, 2, 0, 1, 2, 1]
    with pytest.raises(UserError, match=r"--folds 7: data\.val has 6 different pages"):
        deal(groups, 7)


def test_what_is_tried_has_the_start_in_it():
    start = PostConfig(bin_thresh=0.03, unclip_ratio=4.0, box_thresh=0.05, min_size_px=1.5, max_candidates=7)
    assert grid(start)[0] == start and len({growth_of(post) for post in grid(start)}) == len(grid(start)) == 81
    assert all(options(name, start)[0] == getattr(start, name) for name in FILTERS)
    assert least_filters(start).min_size_px == 1.5 and least_filters(start).box_thresh == 0.05
    study = study_of([Found(start, 0.9)], space(start), start)
    assert space(start).contains(study.first) and study.trials[0].value == 0.9


def test_the_search_finds_settings_that_each_set_decides_alone(real, monkeypatch):
    """Pages outside a set play no part: with other texts there, what the set finds stays the same."""
    store, pages = real
    monkeypatch.setattr("engine.tune.search.GRID", {"bin_thresh": (0.15, 0.5), "unclip_ratio": (1.5, 2.5)})
    start = PostConfig(box_thresh=0.85, unclip_ratio=0.8)
    first, rest = np.arange(6) < 3, np.arange(6) >= 3

    class Other(Receipts):
        def polygons(self, row):
            return super().polygons(row) if row < 3 else []

    results = []
    for these in (pages, Other()):
        judge = Judge(store, these, "contest", least_filters(start))
        results.append(Search(judge, start, "micro", [first, rest], 2).run())
        before = float(hmeans(judge.exact(start, np.arange(3)), "micro"))
        found = results[-1][0].ranked[0]
        assert found.score > before + 0.01 and results[-1][0].tried > 200
        assert float(hmeans(judge.exact(found.post, np.arange(3)), "micro")) == pytest.approx(found.score, abs=1e-12)
    assert results[0][0].ranked == results[1][0].ranked and results[0][1].ranked != results[1][1].ranked


def _copy(trained, tmp_path) -> Path:
    shutil.copytree(trained, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def _val(trained) -> str:
    """The built-in validation pages, which the run was judged on."""
    return str(next((trained.parent / ".synthetic").glob("*-4x*/annotations.json")))


QUICK = {"bin_thresh": (0.2,), "unclip_ratio": (1.5,)}


def test_the_command_on_a_trained_detector(trained, tmp_path, monkeypatch, capsys):
    """JSON, what engine.evaluate says of the same settings, and no file with --no-write."""
    from engine import evaluate

    monkeypatch.setattr("engine.tune.search.GRID", QUICK)
    run, base = _copy(trained, tmp_path), ["data.val=" + _val(trained), "data.threads=1", "eval.protocol=contest"]
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    arguments = [f"checkpoint={run}", *base, "post.box_thresh=0.1", "--folds", "2", "--trials", "1", "--json"]
    assert tune.main([*arguments, "--no-write"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert not result["applied"] and result["settings_tried"] > 50 and result["start"]["box_thresh"] == 0.1
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    for which in ("start", "best"):
        post = [f"post.{key}={value}" for key, value in result[which].items()]
        assert evaluate.main([f"checkpoint={run}", *base, *post]) == 0
        assert json.loads(capsys.readouterr().out)["score"] == pytest.approx(result["hmean"][which], abs=1e-12)
    assert abs(result["hmean"]["start"] - result["hmean_8bit"]["start"]) < 0.05


def test_a_gain_is_written_and_the_run_goes_on(trained, tmp_path, monkeypatch, capsys):
    from engine import train

    monkeypatch.setattr("engine.tune.search.GRID", QUICK)
    monkeypatch.setattr(tune, "verdict", lambda tuned, real: (True, "planted"))
    run = _copy(trained, tmp_path)
    base = [f"checkpoint={run}", "data.val=" + _val(trained), "data.threads=1", "eval.protocol=contest"]
    saved_before = checkpoint.load_settings(checkpoint.locate(run))["post"]
    assert tune.main([*base, "--folds", "2", "--trials", "1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    best = checkpoint.locate(run)
    assert result["applied"] and checkpoint.verify(best) == ""
    saved = checkpoint.load_settings(best)
    assert saved["post"] == result["best"] and saved["eval"]["protocol"] == "official", "only post.* is written"
    assert json.loads((best / record.NAME).read_text())["best"] == result["best"]
    assert (run / "tune.png").stat().st_size > 5000
    assert train.main([*TINY, "name=run", f"run_root={tmp_path}", "resume=auto", "trainer.max_epochs=3"]) == 0
    assert checkpoint.load_state(run / "checkpoints" / "last")["epoch"] == 3
    assert f"note: engine.tune has written post settings into {best.resolve().name}" in capsys.readouterr().err
    assert checkpoint.load_settings(run / "checkpoints" / "last")["post"] == saved_before


class Killed(BaseException):
    """No handler of the program's own knows it."""


def _dying(original, calls, moment, *arguments):
    if next(calls) == moment:
        raise Killed
    return original(*arguments)


def test_a_kill_while_writing_leaves_the_old_or_the_new(trained, tmp_path):
    """The process dies after each of the system calls that change files, one after another."""
    run = _copy(trained, tmp_path)
    path = checkpoint.locate(run).resolve()
    old = (path / "config.yaml").read_text()
    new = old.replace("box_thresh:", "box_thresh: 0.123  # was")
    seen = []
    for moment in range(40):
        calls = itertools.count()
        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Killed):
            for name in ("replace", "fsync", "chmod"):
                patch.setattr(os, name, functools.partial(_dying, getattr(os, name), calls, moment))
            checkpoint.replace_settings(path, new)
        assert checkpoint.verify(path) == "", moment
        seen.append((path / "config.yaml").read_text() == new)
        assert seen[-1] or (path / "config.yaml").read_text() == old
        if next(calls) <= moment:  # it came to its end
            break
        checkpoint.replace_settings(path, old)
    assert seen[0] is False and seen[-1] is True and 8 < len(seen) < 40
    assert "before" not in (path / "manifest.json").read_text()


def test_the_old_settings_are_excused_only_as_the_manifest_says(trained, tmp_path):
    path = checkpoint.locate(_copy(trained, tmp_path)).resolve()
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["config.yaml"]["before"] = {"bytes": 1, "sha256": "x"}
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert checkpoint.verify(path) == ""
    (path / "config.yaml").write_text((path / "config.yaml").read_text() + "\n")
    assert "config.yaml does not match" in checkpoint.verify(path)
    for wrong in (3, "x", None, [], {}):
        manifest["config.yaml"]["before"] = wrong
        (path / "manifest.json").write_text(json.dumps(manifest))
        assert checkpoint.verify(path), wrong


def test_what_cannot_be_done_is_said(trained, tmp_path):
    run, val = _copy(trained, tmp_path), "data.val=" + _val(trained)
    for arguments, words in (
        ([f"checkpoint={run}"], "data.val=PATH is missing"),
        ([val], "checkpoint=PATH is missing"),
        ([f"checkpoint={run}", val, "--trials", "0"], "--trials 0 --folds 5: at least 1 trial"),
        ([f"checkpoint={run}", val, "--folds", "1"], "at least 1 trial and 2 folds"),
        ([f"checkpoint={run}", val, "--folds", "9"], "--folds 9: data.val has 4 different pages"),
        ([f"checkpoint={run}", val, "--trials", "many"], "invalid int value"),
        ([f"checkpoint={run}", val, "post.bin_tresh=1"], "did you mean post.bin_thresh"),
        ([f"checkpoint={run}", val, "--folds", "4", "models.decoder.inner_channels=16"], "of another model"),
        ([f"checkpoint={run}", f"data.val={tmp_path / 'none'}"], "none"),
    ):
        with pytest.raises(UserError, match=words):
            tune.main(arguments)
    lock = Lock(run)
    try:
        with pytest.raises(UserError, match=r"in use by pid \d+ .*: tune it when that has ended, or with --no-write"):
            tune.main([f"checkpoint={run}", val])
    finally:
        lock.close()


def test_a_result_is_shown_as_it_is_when_it_cannot_be_written(trained, tmp_path, monkeypatch, capsys):
    """A training that began meanwhile, or a full disk: the settings are not lost, and not called applied."""
    monkeypatch.setattr("engine.tune.search.GRID", QUICK)
    monkeypatch.setattr(tune, "verdict", lambda tuned, real: (True, "planted"))

    def refuse(*_):
        raise UserError("in use")

    monkeypatch.setattr(record, "apply", refuse)
    run = _copy(trained, tmp_path)
    command = [f"checkpoint={run}", "data.val=" + _val(trained), "data.threads=1", "eval.image_size=[64,96]"]
    with pytest.raises(UserError, match="in use"):
        tune.main([*command, "--folds", "2", "--trials", "1", "--json"])
    assert json.loads(capsys.readouterr().out)["applied"] is False
    tune._say_written(command, run, quiet=True)
    shown = capsys.readouterr()
    assert "found with eval.image_size=[64,96], which is not written" in shown.err


def test_an_ensemble_is_tuned_as_one_detector(trained, tmp_path, monkeypatch, capsys):
    """Of one model on its own canvas, so that engine.evaluate must say the same; its file keeps the settings."""
    from engine import evaluate

    monkeypatch.setattr("engine.tune.search.GRID", QUICK)
    monkeypatch.setattr(tune, "verdict", lambda tuned, real: (True, "planted"))
    file = tmp_path / "ensemble.yaml"
    values = {"kind": "dbnet-ensemble", "version": 1, "members": [{"checkpoint": str(trained)}], "flips": "none"}
    file.write_text(yaml.safe_dump(values | {"post": {"box_thresh": 0.1}}))
    base = ["data.val=" + _val(trained), "data.threads=1", "eval.protocol=contest"]
    assert tune.main([f"checkpoint={tmp_path}", *base, "--folds", "2", "--trials", "1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["applied"] and result["start"]["box_thresh"] == 0.1 and result["checkpoint"] == str(file)
    assert yaml.safe_load(file.read_text()) == values | {"post": result["best"]}
    assert json.loads((tmp_path / record.NAME).read_text())["best"] == result["best"]
    assert (tmp_path / "tune.png").exists()
    post = [f"post.{key}={value}" for key, value in result["best"].items()]
    assert evaluate.main([f"checkpoint={trained}", *base, *post]) == 0
    assert json.loads(capsys.readouterr().out)["score"] == pytest.approx(result["hmean"]["best"], abs=1e-12)


def test_help_comes_without_a_checkpoint():
    done = subprocess.run(
        [sys.executable, "-m", "engine.tune", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--folds" in done.stdout and "tune.json" in done.stdout
