"""The report: whole at any moment, escaped, self-contained, small, and opened once in a real browser."""

import base64
import io
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from search_studies import Posterior, mixed, published, repeated, synthetic

from engine.search.model.surrogate import fitted
from engine.search.report import findings, repeats, write
from engine.search.study import Trial

SECTIONS = (
    "Search space",
    "Ranking",
    "Gain over the baseline",
    "Best configuration",
    "What the best three share",
    "Influence of each parameter",
    "Order and convergence",
    "Early stopping",
    "Failed and poor settings",
    "Recommended values",
    "Repeats with other seeds",
    "Reproduction",
)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study with everything in it: finished, stopped, diverged, running and repeated trials; and its report."""
    folder = tmp_path_factory.mktemp("studies") / "receipts"
    study = repeated(synthetic(folder, 16), [0, 4, 6])
    (folder / "trials/004").mkdir(parents=True)
    running = Trial(len(study.trials), study.first, "model", 0, state="running", epochs=2, curve=[(1, 0.5), (2, 0.8)])
    running.value = 0.8
    study.trials.append(running)
    return study, write.write(study, Posterior(study))


def headings(text: str) -> list[str]:
    return re.findall(r"^## (.*)$", text, re.MULTILINE)


def test_every_section_is_there_in_both_forms(whole):
    study, path = whole
    assert path == study.folder / "report.html"
    assert tuple(headings(path.with_suffix(".md").read_text())) == SECTIONS
    assert tuple(re.findall(r"<h2>(.*?)</h2>", path.read_text())) == SECTIONS
    assert {p.name for p in (study.folder / "figures").iterdir()} == {
        f"{name}.png" for name in ("order", "curves", "influence", "parallel", "epochs")
    }
    assert not list(study.folder.glob("*.new"))


def test_what_the_sections_say(whole):
    study, path = whole
    text = path.with_suffix(".md").read_text()
    assert "1 trials have not ended" in text
    assert "[4](trials/004)" in text  # a run folder that exists; others are no links
    assert "[6](" not in text
    assert "| the loss is nan at step 17 |" in text
    assert "1 of 16 ended trials are infeasible (6 %)" in text
    assert "4 of 15 trials were stopped early: 189 epochs trained instead of 225, 16 % saved." in text
    assert "By the paired repeats of trial 4 with other seeds" in text
    assert re.search(r"noise of one training \| sd 0\.\d+, from repeats with other seeds, 4 degrees of freedom", text)
    assert f"After the repeats: trial {repeats.recommended(study)}." in text
    rows = re.findall(r"^\| \*{0,2}(\d+)\*{0,2} \| [\[*]*(\d+)", text.split("## Gain")[0], re.MULTILINE)
    by_value = sorted((t for t in study.trials[:16] if t.value), key=lambda t: -t.value)
    assert [int(trial) for _, trial in rows] == [t.number for t in by_value]


def test_the_commands_are_those_of_a_shell(whole):
    study, path = whole
    found = findings.find(study, Posterior(study))
    best = found.ranked[0].values
    line = next(
        line for line in path.with_suffix(".md").read_text().splitlines() if line.startswith("python -m engine")
    )
    words = shlex.split(line)
    assert words[:5] == ["python", "-m", "engine.train", "preset=hrnet_w44_1280", "data.train=my receipts/train.json"]
    settings = {name: str(value) for name, value in best.items()} | {"seed": str(found.ranked[0].seed)}
    assert dict(word.split("=") for word in words[5:]) == settings


def test_it_is_self_contained_and_small(whole):
    _, path = whole
    text = path.read_text()
    assert path.stat().st_size < 1_000_000
    assert not re.findall(r"(?:src|href)=\"(?!data:|trials/|#)", text)
    assert "<script" not in text
    pictures = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", text)
    assert len(pictures) == 5
    for data in pictures:
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
        assert 750 <= pixels.shape[1] <= 1000
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20  # something was drawn


def test_a_study_of_64_stays_below_2_MB(tmp_path):
    study = synthetic(tmp_path, 64)
    assert write.write(study, Posterior(study)).stat().st_size < 2_000_000


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_at_any_moment_it_says_what_cannot_be_concluded(tmp_path, count):
    study = synthetic(tmp_path, count)
    path = write.write(study, fitted(study))
    text = path.with_suffix(".md").read_text()
    assert "Influence" not in text
    if count == 0:
        assert "No trial has a value yet: nothing can be concluded." in text
    else:
        noun = "trial" if count == 1 else "trials"
        assert f"{count} {noun} with a value: no influence can be estimated; that takes 5 configurations." in text
        assert "no ranges can be given" in text


def test_pictures_of_an_earlier_report_do_not_stay(tmp_path):
    study = synthetic(tmp_path, 12)
    write.write(study, Posterior(study))
    study.trials = study.trials[:2]
    write.write(study, fitted(study))
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {"order.png", "curves.png", "epochs.png"}


def test_infeasible_trials_only(tmp_path):
    study = synthetic(tmp_path, 3)
    for trial in study.trials:
        trial.state, trial.value, trial.scores, trial.curve, trial.reason = "infeasible", None, {}, [], "out of memory"
    text = write.write(study, fitted(study)).with_suffix(".md").read_text()
    assert "3 of 3 ended trials are infeasible (100 %)" in text
    assert text.count("out of memory") == 3
    assert "Best configuration" not in text


def test_trials_that_are_all_equal_and_a_metric_that_is_zero(tmp_path):
    for level in (0.97, 0.0):
        study = synthetic(tmp_path, 8)
        for trial in study.trials:
            trial.state, trial.value, trial.estimate, trial.curve = "finished", level, None, [(15, level)]
        text = write.write(study, fitted(study)).with_suffix(".md").read_text()  # by the surrogate itself
        assert "the best one measured: no gain" in text
        assert "Recommended values" in text
        assert "nan" not in text.lower()


def test_minimised_metrics_choices_and_objectives(tmp_path):
    study = mixed(tmp_path)
    study.objective = "problems:valley"
    text = write.write(study, Posterior(study)).with_suffix(".md").read_text()
    assert "| val/loss, minimize |" in text
    assert re.search(r"\| models.optimizer.name \| adamw? \|", text)
    assert "from problems import valley" in text
    assert "engine.train" not in text


def test_an_imported_study(tmp_path):
    study = published(tmp_path)
    text = write.write(study, Posterior(study), 0.9714).with_suffix(".md").read_text()
    assert "Measured gain over the baseline's 0.97140 (given): +0.0042" in text
    assert "As measured that is +0.43 %." in text
    assert "| method |" not in text  # nor the agents, nor a start: none is known
    assert "| trials | 8 imported; 4 finished, 4 stopped |" in text
    assert "--baseline" not in text  # it is given
    assert not (tmp_path / "figures/curves.png").exists()
    assert "number 2 of 8 in order" in text
    assert "| 15 | 4 | 0.97287 | 0.97561 |" in text
    assert "exp_20260205_0251" in text


def test_everything_from_outside_is_escaped(tmp_path):
    study = synthetic(tmp_path, 8)
    nasty = "<img src=x onerror=alert(1)> | a*b_c_ `code` [x](http://y) &amp;"
    study.name = nasty
    study.trials[1].name = nasty
    study.trials[5].reason = f"{nasty}\nsecond line"
    study.arguments = [nasty, "```"]
    path = write.write(study, Posterior(study))
    html, text = path.read_text(), path.with_suffix(".md").read_text()
    assert "<img src=x" not in html
    assert html.count("&lt;img src=x onerror=alert(1)&gt;") >= 4
    outside = re.sub(r"(`{3,})\n.*?\n\1", "", text, flags=re.DOTALL)  # what is in fences is read as it stands
    assert "````" in text  # a longer fence than the text has
    assert not re.search(r"(?<!\\)<img", outside)
    assert "](http://y)" not in outside.replace(r"\](http://y)", "")
    rows = [line for line in outside.splitlines() if line.startswith("| trial 5")]
    assert len(rows) == 1
    assert len(re.findall(r"(?<!\\)\|", rows[0])) == 5


def visit(page: Path, profile: Path) -> tuple[str, list[str], float]:
    """(DOM, console messages, seconds) of a page opened by a headless browser without a network."""
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
    command += ["--enable-logging=stderr", "--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom", page.as_uri()]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    seconds = time.perf_counter() - start
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line], seconds


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt install chromium")
def test_a_browser_opens_it_without_a_complaint_in_two_seconds(whole, tmp_path):
    empty, broken = tmp_path / "empty.html", tmp_path / "broken.html"
    empty.write_text("<!doctype html><title>empty</title>")
    broken.write_text("<!doctype html><script>undefinedFunction()</script>")
    assert visit(broken, tmp_path / "profile")[1]  # a complaint would be seen; it also makes the profile
    dom, complaints, seconds = visit(whole[1], tmp_path / "profile")
    start = visit(empty, tmp_path / "profile")[2]
    assert complaints == []
    assert dom.count("<h2>") == len(SECTIONS)
    assert dom.count("<img ") == 5
    assert seconds - start < 2.0
