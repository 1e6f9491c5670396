"""`engine.ensemble` from end to end: the report says what the mean and the soup bring."""

import contextlib
import json
import shutil

import pytest
import yaml
from PIL import Image

from engine import evaluate
from engine.checkpoint import store
from engine.config.load import load_config
from engine.ensemble.__main__ import find, main
from engine.search import ledger
from engine.search.space import Parameter, Space
from engine.search.study import Study, Trial
from pipelines.errors import UserError
from pipelines.synthetic import receipts
from tests.conftest import TINY


def _val(trained):
    """The annotation file of the tiny run's validation pages, seed 1."""
    config, _ = load_config(list(TINY))
    return receipts.ensure(trained.parent / ".synthetic", 4, 1, *config.data.synthetic_size)


def test_a_studys_best_three_finished_trials(trained, tmp_path):
    """By the ledger: not the stopped one, whatever its value, nor the fourth best."""
    study = Study(tmp_path / "study", "study", Space((Parameter("models.optimizer.lr", "float", 1e-4, 1e-1, "log"),)))
    ends = (("finished", 0.5), ("finished", 0.9), ("stopped", 0.95), ("finished", 0.7), ("finished", 0.6))
    with contextlib.closing(ledger.create(study)) as book:
        for number, (state, value) in enumerate(ends):
            folder = f"trials/{number:03d}"
            book.append_all(
                [ledger.trial_event(Trial(number, {"models.optimizer.lr": 0.01}, "random", 0, folder=folder))]
            )
            book.append("epoch", trial=number, attempt=1, epoch=1, value=value)
            book.append("end", trial=number, attempt=1, state=state)
            shutil.copytree(trained, tmp_path / "study" / folder)
    places = find([str(tmp_path / "study")])
    assert [place.path.parent.parent.name for place in places] == ["001", "003", "004"]
    shutil.rmtree(tmp_path / "study" / "trials" / "003")
    with pytest.raises(UserError, match="003: no such folder"):
        find([str(tmp_path / "study")])


def test_the_command_from_end_to_end(trained, tmp_path, capsys):
    """Three checkpoints: table, JSON, files; the soup is a run folder that evaluate gives the same score."""
    val, out = _val(trained), tmp_path / "out"
    steps = sorted((trained / "checkpoints").glob("step_*"))
    assert len(steps) == 2
    arguments = [
        *map(str, steps),
        f"data.val={val}",
        "post.bin_thresh=0.05",
        "post.box_thresh=0",
        f"run_root={tmp_path}",
    ]
    flags = ["--flips", "h", "--scales", "1,1.5", "--soup", "--bn-batches", "1", "--out", str(out), "--json"]
    data = sorted((trained.parent / ".synthetic").rglob("*.json"))
    train_pages = next(str(path) for path in data if path != val)
    assert main([*arguments, *flags, f"data.train={train_pages}"]) == 0
    shown = capsys.readouterr()
    result = json.loads(shown.out)
    assert "--select" in shown.err and result == json.loads((out / "report.json").read_text())
    assert [row["kind"] for row in result["rows"]] == ["member", "member", "ensemble", "ensemble", "soup"]
    assert "flips h, scales 1,1.5" in result["rows"][3]["name"] and result["pages"] == 4
    assert sum(row["difference"] is None for row in result["rows"]) == 1
    for row, step in zip(result["rows"], steps, strict=False):
        target = tmp_path / "evaluation.json"
        assert evaluate.main([f"checkpoint={step}", f"output={target}", *arguments[2:]]) == 0
        assert json.loads(target.read_text())["hmean"] == pytest.approx(row["hmean"], abs=1e-12)
    assert evaluate.main([f"checkpoint={out / 'soup'}", f"output={target}", *arguments[2:]]) == 0
    assert json.loads(target.read_text())["hmean"] == pytest.approx(result["rows"][-1]["hmean"], abs=1e-12)
    assert store.load_state(store.locate(out / "soup"))["soup"]
    assert Image.open(out / "ensemble.png").width == 900
    capsys.readouterr()
    assert main([str(out), f"data.val={val}", f"run_root={tmp_path}"]) == 0  # the file again
    table = capsys.readouterr().out
    assert "the best member" in table and "flips h, scales 1,1.5" in table
    again = [line for line in table.splitlines() if line.startswith("mean of maps")]
    assert f"{result['rows'][3]['hmean']:.4f}" in again[0]
    assert evaluate.main([f"checkpoint={out}", f"data.val={val}", f"run_root={tmp_path}"]) == 0
    assert json.loads(capsys.readouterr().out)["hmean"] == pytest.approx(result["rows"][3]["hmean"], abs=1e-12)


def test_members_of_other_protocols_are_judged_by_the_same(trained, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(trained, other, symlinks=True)
    path = store.locate(other)
    values = store.load_settings(path)
    changed = {"protocol": "contest", "select": "macro"}
    store.replace_settings(path, yaml.safe_dump(values | {"eval": values["eval"] | changed}))
    loose = ["post.bin_thresh=0.05", "post.box_thresh=0"]
    assert main([str(trained), str(other), f"data.val={_val(trained)}", *loose, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["protocol"] == "official" and result["rows"][0]["hmean"] > 0
    assert result["rows"][0]["hmean"] == result["rows"][1]["hmean"] == result["rows"][2]["hmean"]


def test_a_soup_is_judged_with_the_settings_it_is_written_with(trained, tmp_path, capsys):
    """The second checkpoint alone has settings with which it finds anything, as a tuned one may."""
    run = tmp_path / "run"
    shutil.copytree(trained, run, symlinks=True)
    first, second = sorted((run / "checkpoints").glob("step_*"))
    for path, post in ((first, {"box_thresh": 1.0}), (second, {"bin_thresh": 0.05, "box_thresh": 0.0})):
        values = store.load_settings(path)
        store.replace_settings(path, yaml.safe_dump(values | {"post": values["post"] | post}))
    val = f"data.val={_val(trained)}"
    out = tmp_path / "out"
    assert main([str(first), str(second), val, "--soup", "--out", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["rows"][1]["hmean"] > result["rows"][0]["hmean"] == 0 and result["rows"][-1]["kind"] == "soup"
    assert evaluate.main([f"checkpoint={out / 'soup'}", val]) == 0
    assert json.loads(capsys.readouterr().out)["hmean"] == pytest.approx(result["rows"][-1]["hmean"], abs=1e-12)
    assert result["rows"][-1]["hmean"] > 0


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["{run}", "{run}"], "is the same checkpoint as"),
        (["gone"], "member=gone: no such folder"),
        (["{run}", "--flips", "x"], "invalid choice"),
        (["{run}", "--scales", "a"], "expected numbers with commas"),
        (["{run}", "--scales", "0.5"], "1 must be among them"),
        (["{run}", "--weights", "1,2"], "2 numbers for 1 members"),
        (["{run}", "--weights", "0"], "must be above 0"),
        (["{run}", "--select", "x"], "are for --soup"),
        (["{run}", "data.vall=x"], "unknown key data.vall"),
        (["data.val=x"], "PATH is missing"),
        (["{run}"], "data.val=PATH is missing"),
        (["{run}", "data.val=x", "--soup", "--bn-batches", "1"], "needs training pages"),
    ],
)
def test_errors_name_the_mend(trained, arguments, words):
    with pytest.raises(UserError, match=words):
        main([item.format(run=trained) for item in arguments])
