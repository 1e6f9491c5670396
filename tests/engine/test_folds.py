"""`engine.folds`: splits, trains what is not finished, judges each page by the model that has not seen it."""

import dataclasses
import json
import shutil
import sys

import pytest

from engine import folds
from engine.config.load import load_config
from engine.data import open_pages
from engine.detection.open import load_detector
from engine.detection.open import open_ensemble as load
from engine.distributed import start
from engine.evaluation import compare
from engine.evaluation.cleval import CLEval
from engine.jobs.fence import side_file
from pipelines.errors import UserError
from pipelines.synthetic import receipts
from tests.conftest import TINY, run_module

LOOSE = ("post.bin_thresh=0.05", "post.box_thresh=0", "trainer.device=cpu")


@pytest.fixture
def source(trained):
    """The annotation file of the tiny run's eight training pages."""
    return receipts.ensure(trained.parent / ".synthetic", 8, 0, *load_config(list(TINY))[0].data.synthetic_size)


def _settings(source, tmp_path):
    return [*TINY, *LOOSE, f"data.train={source}", f"run_root={tmp_path}"]


def test_a_fold_trains_on_its_own_pages_and_nothing_of_the_command_leaks_in(tmp_path):
    given = [
        "preset=demo",
        "data.train=a",
        "data.val=b",
        "data.test=c",
        "name=n",
        "run_root=r",
        "resume=none",
        "seed=3",
    ]
    made = folds.fold_settings(given, tmp_path, 2)
    config, _ = load_config(made)
    assert config.data.train == [str(tmp_path / "split/fold_2/train")]
    assert config.data.val == [str(tmp_path / "split/fold_2/val")] and config.data.test == []
    assert (config.run_root, config.name, config.resume, config.seed) == (str(tmp_path / "runs"), "fold_2", "auto", 3)
    command = folds.attempt_of(given, tmp_path, 2, 4).command
    assert "--nproc_per_node=4" in command and command[command.index("engine.train") + 1 :] == made


def test_only_unfinished_folds_are_trained_and_a_failure_keeps_the_others(tmp_path, monkeypatch):
    """Children are small scripts here: fold 1 fails the first time, as a killed training would."""
    made = folds.attempt_of

    def attempt_of(settings, out, fold, gpus):
        script = f"import os,sys; open({str(tmp_path)!r}+'/ran','a').write('{fold}'); d={str(tmp_path)!r}+'/once'\n"
        script += f"if {fold} == 1 and not os.path.exists(d): os.mkdir(d); sys.exit('error: no luck')"
        return dataclasses.replace(made(settings, out, fold, gpus), command=[sys.executable, "-c", script])

    monkeypatch.setattr(folds, "attempt_of", attempt_of)
    config, _ = load_config(["preset=demo", "trainer.device=cpu"])
    with pytest.raises(UserError, match=r"fold 1: no luck \(log: .*fold_1\.log\); the same command goes on"):
        folds.train_all([], tmp_path / "out", 3, 1, config)
    folds.train_all([], tmp_path / "out", 3, 1, config)
    assert (tmp_path / "ran").read_text() == "0112" and all(folds.finished(tmp_path / "out", k) for k in range(3))


def test_each_page_is_judged_by_the_model_that_has_not_seen_it(trained, source, tmp_path, capsys):
    """Folds that are finished already (copies of a run) are judged, pooled and joined."""
    settings = _settings(source, tmp_path)
    args, given = folds.parse([*settings, "--folds", "2", "--out", str(tmp_path / "out")])
    with folds.claimed(args, given, load_config(given)[0]) as out:
        pass
    for fold in range(2):
        shutil.copytree(trained, folds.run_folder(out, fold), symlinks=True)
        side_file(folds.run_folder(out, fold), "exit").write_text('{"code": 0}')
    val = receipts.ensure(trained.parent / ".synthetic", 4, 1, *load_config(list(TINY))[0].data.synthetic_size)
    command = [*settings, "--folds", "2", "--out", str(out), f"data.val={val}"]
    assert folds.main([*command, "--json"]) == 0
    shown = capsys.readouterr()
    result = json.loads(shown.out)
    assert "--checkpoint last" in shown.err and result == json.loads((out / "report.json").read_text())
    config, _ = load_config(settings)
    ranks = start("cpu")
    model, metric = load_detector(trained / "checkpoints" / "best", config, ranks), CLEval()
    for fold in range(2):  # one model here, so all pages at once must be the pooled score
        pages = open_pages(config, [str(out / "split" / f"fold_{fold}" / "val")], ranks)
        judged = compare.judge("", "member", model, pages, config, ranks)
        assert result["folds"][fold]["hmean"] == pytest.approx(judged.scores["hmean"], abs=1e-12)
        for page in judged.pages:
            metric.add(page)
    assert result["out_of_fold"]["hmean"] == pytest.approx(metric.compute()["hmean"], abs=1e-12)
    assert result["out_of_fold"]["pages"] == 8 and metric.compute()["hmean"] > 0
    both = sorted(fold["score"] for fold in result["folds"])
    assert result["out_of_fold"]["spread"] == pytest.approx((both[1] - both[0]) / 2**0.5)
    rows = result["test"]["rows"]
    assert [row["kind"] for row in rows] == ["member", "member", "ensemble"] and result["test"]["pages"] == 4
    assert rows[2]["hmean"] == rows[0]["hmean"], "a model with itself"
    ensemble, _ = load(out, ranks)
    assert [member.name for member in ensemble.members] == [
        f"runs/fold_{k}/checkpoints/{(trained / 'checkpoints' / 'best').resolve().name}" for k in range(2)
    ]
    assert folds.main(command) == 0
    table = capsys.readouterr().out
    assert "out of fold" in table and "pages that no fold trains on" in table


def test_a_folder_of_another_command_is_refused(source, tmp_path):
    settings = _settings(source, tmp_path)

    def prepare(*more):
        args, given = folds.parse([*settings, "--folds", "2", "--out", str(tmp_path / "out"), *more])
        with folds.claimed(args, given, load_config(given)[0]) as out:
            return out

    with pytest.raises(UserError, match="--folds 99: there are 8 different pages"):
        prepare("--folds", "99")
    assert prepare() == prepare(), "what cannot be is not kept; the same command goes on"
    args, given = folds.parse([*settings, "--folds", "2", "--out", str(tmp_path / "out")])
    with folds.claimed(args, given, load_config(given)[0]), pytest.raises(UserError, match="already"):
        prepare()
    for other in (("--folds", "3"), ("--seed", "1"), ("seed=5",)):
        with pytest.raises(UserError, match="holds folds of another command"):
            prepare(*other)
    with pytest.raises(UserError, match="holds no folds"):
        prepare("--out", str(source.parent))
    with pytest.raises(UserError, match="splits one source"):
        prepare("data.train=[]")
    with pytest.raises(UserError, match="at least 2"):
        folds.main([*settings, "--folds", "1"])


@pytest.mark.slow
def test_folds_from_end_to_end(source, tmp_path):
    """Two real trainings, then the same command again, which trains nothing."""
    command = [*_settings(source, tmp_path), "--folds", "2", "--out", str(tmp_path / "out"), "--json"]
    first = run_module("engine.folds", *command, timeout=900, check=True)
    result = json.loads(first.stdout)
    logs = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "logs").iterdir()}
    assert len(logs) == 2 and len(result["folds"]) == 2 and result["out_of_fold"]["pages"] == 8
    again = run_module("engine.folds", *command, timeout=900, check=True)
    assert json.loads(again.stdout)["out_of_fold"] == result["out_of_fold"]
    assert logs == {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "logs").iterdir()}
    for fold in range(2):
        config = json.dumps((tmp_path / "out" / "runs" / f"fold_{fold}" / "config.yaml").read_text())
        assert f"fold_{fold}/train" in config and f"fold_{1 - fold}/train" not in config
