"""Bad input: one clear line that names the thing and the mend, exit code 2, no traceback, nothing half-written."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from engine import cli, evaluate, folds, predict, train
from engine.compare import __main__ as compare
from engine.ensemble import __main__ as ensemble
from engine.export import __main__ as export
from engine.report import __main__ as report
from engine.search import options
from engine.tune import __main__ as tune
from kernels import runtime
from pipelines.errors import UserError
from tests.conftest import TINY, run_module


@pytest.fixture
def leave(monkeypatch, capsys, tmp_path):
    """Runs an entry point as `python -m` would; returns (exit code, stderr lines)."""
    monkeypatch.chdir(tmp_path)

    def run(main, *arguments):
        monkeypatch.setattr(sys, "argv", ["program", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.run(main)
        error = capsys.readouterr().err
        return end.value.code, [line for line in error.splitlines() if line.startswith("error:")], error

    return run


def _pages(folder, words, pages=4):
    """A contest-format data set of white pages with the given words on each."""
    (folder / "images").mkdir(parents=True)
    images = {}
    for n in range(pages):
        Image.fromarray(np.full((96, 128, 3), 255, np.uint8)).save(folder / "images" / f"{n}.jpg")
        images[f"{n}.jpg"] = {"words": words, "img_w": 128, "img_h": 96}
    (folder / "data.json").write_text(json.dumps({"images": images}))
    return folder / "data.json"


WORD = {"points": [[10, 10], [100, 10], [100, 40], [10, 40]], "transcription": "text"}
CASES = {
    "unknown key": (["models.optimizer.lrr=1"], "models.optimizer.lr"),
    "wrong type": (["data.batch_size=two"], "data.batch_size=two"),
    "out of range": (["models.optimizer.lr=-1"], "models.optimizer.lr=-1"),
    "not finite": (["models.optimizer.lr=nan"], "models.optimizer.lr"),
    "unknown preset": (["preset=hrnet_w44_128"], "hrnet_w44_1280"),
    "missing file": (["data.train=nowhere.json", "data.val=nowhere.json"], "nowhere.json"),
    "only train": (["data.train=nowhere.json"], "data.val is empty"),
    "unknown encoder": (["models.encoder.name=hrnet_w4"], "hrnet_w4"),
    "missing weights": (["models.encoder.weights=nowhere.safetensors"], "nowhere.safetensors"),
    "missing checkpoint": (["init_from=nowhere"], "nowhere"),
    "missing resume": (["resume=nowhere"], "nowhere"),
    "interpolation": (["name=${oc.env:HOME}"], "name"),
    "Lightning's word": (["ckpt_path=x"], "did you mean resume (to go on with a run) or init_from"),
    "no equals sign": (["--batch-size", "4"], "--batch-size"),
    "kernels without a GPU": (["trainer.kernels=triton", "trainer.device=cpu"], "needs a GPU"),
    "batch larger than data": (["data.batch_size=64"], "data.batch_size"),
}


@pytest.mark.parametrize("case", CASES)
def test_training_refuses(leave, tmp_path, case, monkeypatch):
    monkeypatch.setattr(runtime, "INTERPRETED", False)  # as in a user's process
    items, named = CASES[case]
    code, lines, error = leave(train.main, *TINY, *items)
    assert code == 2 and len(lines) == 1 and named in lines[0], error
    assert "Traceback" not in error
    assert not [p for p in tmp_path.glob("runs/*") if not p.name.startswith(".")]


DATA = {
    "every word ignored": ({"1": {**WORD, "transcription": "###"}}, "every text is ignored"),
    "no word": ({}, "every text is ignored"),
    "zero area": ({"1": {**WORD, "points": [[5, 5]] * 4}}, "every text is ignored"),
}


@pytest.mark.parametrize("case", DATA)
def test_data_without_anything_to_learn_is_refused(leave, tmp_path, case):
    words, named = DATA[case]
    source = _pages(tmp_path / "pages", words)
    code, lines, error = leave(train.main, *TINY, f"data.train={source}", f"data.val={source}", "eval.protocol=contest")
    assert code == 2 and len(lines) == 1 and named in lines[0], error


def test_an_empty_data_set_a_broken_file_and_an_escape_are_refused(leave, tmp_path):
    (tmp_path / "empty.json").write_text('{"images": {}}')
    (tmp_path / "broken.json").write_text('{"images": ')
    (tmp_path / "escape.json").write_text(json.dumps({"images": {"../../etc/passwd": {"words": {"1": WORD}}}}))
    for name in ("empty", "broken", "escape"):
        code, lines, error = leave(train.main, *TINY, f"data.train={name}.json", f"data.val={name}.json")
        assert code == 2 and len(lines) == 1 and name in lines[0], error


def test_a_damaged_image_is_named(leave, tmp_path):
    source = _pages(tmp_path / "pages", {"1": WORD})
    path = tmp_path / "pages" / "images" / "2.jpg"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    code, lines, error = leave(train.main, *TINY, f"data.train={source}", f"data.val={source}", "eval.protocol=contest")
    assert code == 2 and len(lines) == 1 and "2.jpg" in lines[0], error


def test_a_damaged_page_ends_an_evaluation_with_its_name(leave, tmp_path, trained):
    """A training goes on and judges it as a page without detections; a score that is asked for is of all pages."""
    source = _pages(tmp_path / "pages", {"1": WORD})
    path = tmp_path / "pages" / "images" / "2.jpg"
    settings = [f"checkpoint={trained}", f"data.val={source}", f"run_root={tmp_path}"]
    assert evaluate.main(settings) == 0
    path.write_bytes(b"")  # its index is there already, and keeps its place
    code, lines, error = leave(evaluate.main, *settings)
    assert code == 2 and len(lines) == 1 and "1 of 4 pages cannot be read" in lines[0] and "2.jpg (" in lines[0], error


def test_official_cleval_without_texts_is_refused(leave, tmp_path):
    source = _pages(tmp_path / "pages", {"1": {"points": WORD["points"]}})
    code, lines, error = leave(train.main, *TINY, f"data.train={source}", f"data.val={source}")
    assert code == 2 and len(lines) == 1 and "eval.protocol=contest" in lines[0], error


def test_official_cleval_with_one_text_missing_names_the_page(leave, tmp_path):
    """It would count as no characters, and recall would be wrong without a word."""
    without = {"points": [[10, 50], [100, 50], [100, 80], [10, 80]], "transcription": ""}
    source = _pages(tmp_path / "pages", {"1": WORD, "2": without})
    code, lines, error = leave(train.main, *TINY, f"data.train={source}", f"data.val={source}")
    assert code == 2 and len(lines) == 1 and "0.jpg has a text without transcription" in lines[0], error


def test_a_file_where_a_folder_is_wanted_is_one_line(leave, tmp_path, trained):
    (tmp_path / "taken").write_text("")
    source = next((trained.parent / ".synthetic").rglob("*.json"))
    settings = [f"checkpoint={trained}", f"data.val={source}", f"run_root={tmp_path}"]
    code, lines, error = leave(evaluate.main, *settings, "output=taken/scores.json")
    assert code == 2 and len(lines) == 1 and "taken" in lines[0] and "Traceback" not in error


def test_evaluate_and_predict_refuse(leave, tmp_path, trained):
    for arguments, named in [
        ([], "checkpoint=PATH is missing"),
        (["checkpoint=nowhere"], "nowhere"),
        ([f"checkpoint={tmp_path}"], "holds no checkpoint"),
        ([f"checkpoint={trained}"], "data.val=PATH is missing"),
        ([f"checkpoint={trained}", "data.val=nowhere"], "nowhere"),
        ([f"checkpoint={trained}", "data.vall=x"], "data.val"),
        ([f"checkpoint={trained}", "preset=demo"], "preset=demo"),
        ([f"checkpoint={trained}", "data.val=nowhere", "--dry-run"], "--dry-run belongs to engine.train"),
    ]:
        code, lines, error = leave(evaluate.main, *arguments)
        assert code == 2 and len(lines) == 1 and named in lines[0], error
    (tmp_path / "text.jpg").write_text("no image")
    for arguments, named in [(["nowhere.jpg"], "nowhere.jpg"), ([str(tmp_path)], "text.jpg")]:
        code, lines, error = leave(predict.main, *arguments, "--checkpoint", str(trained), "--out", "out")
        assert code == 2 and len(lines) == 1 and named in lines[0], error
        assert not (tmp_path / "out").exists()


def test_zero_predictions_are_a_result_not_a_failure(trained, tmp_path, capsys):
    source = next((trained.parent / ".synthetic").rglob("*.json"))
    settings = [f"checkpoint={trained}", f"data.val={source}", "post.box_thresh=1", f"run_root={tmp_path}"]
    assert evaluate.main(settings) == 0
    assert json.loads(capsys.readouterr().out)["hmean"] == 0


def test_a_real_process_ends_the_same_way(tmp_path):
    done = run_module("engine.train", "models.optimizer.lrr=1", cwd=tmp_path)
    assert (
        done.returncode == 2 and done.stderr.strip().count("\n") == 0 and done.stderr.startswith("error: unknown key")
    )


@pytest.mark.parametrize(
    "command", [predict, tune, report, folds, export, ensemble, compare], ids=lambda m: m.__spec__.name
)
def test_a_command_of_one_process_refuses_torchrun_before_it_joins_a_group(command, leave, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, errors, _ = leave(command.main, "anything")
    assert code == 2 and len(errors) == 1 and "runs as one process: start it with python -m" in errors[0]


def test_settings_with_dashes_are_settings_in_every_command(capsys, trained):
    """As `wandb agent` passes them; a flag of the command's own stays one."""
    with pytest.raises(SystemExit):
        train.main(["--preset=demo", "--models.optimizer.lr=0.25", "--seed=7", "--print-config"])
    told = capsys.readouterr().out
    assert "lr: 0.25" in told and "seed: 7" in told
    assert folds.parse(["--folds=3", "--seed=7", "--data.train=x", "--name=y"])[1] == ["data.train=x", "name=y"]
    assert options.parse(["--budget=3", "--seed=7", "--preset=demo"])[1] == ["preset=demo"]
    assert ensemble.parse(["a", "--data.val=x"])[1:] == (["a"], ["data.val=x"])
    assert report.arguments(["a", "--post.bin_thresh=0.2"])[2] == ["post.bin_thresh=0.2"]
    for command, more in [
        (evaluate, []),
        (tune, []),
        (predict, ["pages", "--out", "x"]),
        (export, ["--weights=x.safetensors"]),
    ]:
        with pytest.raises(UserError, match=r"unknown key post.bin_threshh"):
            command.main([f"checkpoint={trained}", "--post.bin_threshh=1", *more])


@pytest.mark.parametrize("written", [["checkpoint=R"], ["--checkpoint", "R"], ["--checkpoint=R"], ["R"]], ids=" ".join)
def test_a_checkpoint_is_named_in_any_way_in_every_command(written, trained, leave, capsys, tmp_path):
    named = [word.replace("R", str(trained)) for word in written]
    Image.fromarray(np.full((96, 128, 3), 255, np.uint8)).save(tmp_path / "page.png")
    source = next((trained.parent / ".synthetic").rglob("*.json"))
    few = [f"data.val={source}", f"run_root={tmp_path}"]
    for command, arguments in [
        (evaluate, [*named, *few]),
        (tune, [*named, *few, "--no-write", "--trials=1", "--folds=2"]),
        (predict, [*named, "page.png", "--out", "out"]),
        (report, [*named, "--no-eval", "--out", "r.html"]),
        (ensemble, [*named, *few]),
        (export, [*named, "--weights", "w.safetensors"]),
    ]:
        code, _, error = leave(command.main, *arguments)
        assert code == 0, (command, error)


def test_two_checkpoints_for_a_command_of_one_are_refused(trained, leave):
    for command, more in [
        (evaluate, []),
        (tune, []),
        (predict, ["x.png", "--out", "o"]),
        (report, []),
        (export, ["--onnx", "x"]),
    ]:
        code, lines, error = leave(command.main, str(trained), f"checkpoint={trained}/checkpoints/last", *more)
        assert code == 2 and len(lines) == 1, (command, error)
