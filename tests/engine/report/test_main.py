"""`engine.report`: a page that is whole for any run, escaped, self-contained, small, and looked at in a browser."""

import html
import io
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from PIL import Image

from engine.config import PostConfig
from engine.report import sections
from engine.report.__main__ import main
from engine.tune import record
from pipelines.errors import UserError
from tests.conftest import ROOT

STEP = {"kind": "train", "step": 1, "epoch": 0, "lr": 1e-3, "loss": 2.0, "images_per_second": 5.0, "grad_norm": 1.0}


@pytest.fixture(scope="module")
def page(trained, tmp_path_factory):
    """(run folder, page, its text, what --json printed) of a real evaluation; the run has an incident and odd names."""
    folder = tmp_path_factory.mktemp("report") / "a<b>&'\""
    shutil.copytree(trained, folder, symlinks=True)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(
            json.dumps({"kind": "incident", "step": 3, "text": "<script>alert(1)</script>\u202e skipped"}) + "\n"
        )
        file.write('{"kind": "train", "step": 9, "lo')
    out = folder / "page.html"
    with pytest.MonkeyPatch.context() as patch:
        printed = io.StringIO()
        patch.setattr("sys.stdout", printed)
        assert main([str(folder), "--out", str(out), "--pages", "2", "--json"]) == 0
    return folder, out, out.read_text(), json.loads(printed.getvalue())


def run_of(folder, *records, text=""):
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records) + text)
    return folder


def made(folder, *arguments):
    """The page of a run, from the logs alone."""
    assert main([str(folder), "--no-eval", *arguments]) == 0
    return (folder / "report.html").read_text()


def test_every_section_is_there_and_figures_agree_with_the_evaluation(page):
    folder, _, text, told = page
    assert re.findall(r'<h2 id="(\w+)">', text) == [name for name, _ in sections.SECTIONS]
    best = json.loads((folder / "summary.json").read_text())["val"]
    assert told["scores"]["hmean"] == best["hmean"] and f"{best['hmean']:.4f}" in text
    rows = told["by_height"]
    assert sum(row["texts"] for row in rows) > 0 and len(told["by_page"]) == 4
    assert text.count('<section class="page">') == 2 and text.count("<img ") == 6
    worst = [entry["hmean"] for entry in told["by_page"]]
    assert worst == sorted(worst)
    assert told["incidents"] == 1 and told["bytes"] == len(text.encode()) < 2_000_000
    assert any("1 lines are torn" in note for note in told["notes"])


def test_nothing_from_outside_is_markup_and_nothing_is_fetched(page):
    text = page[2]
    assert "<script>alert" not in text and "&lt;script&gt;alert(1)" in text and "\u202e" not in text
    assert "a&lt;b&gt;&amp;" in text and "<b>&'" not in text
    assert not re.findall(r'(?:src|href)="(?:https?:|//|file:|javascript:)', text)
    assert "default-src 'none'" in text and "script-src 'sha256-" in text


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt install chromium")
def test_a_browser_shows_it_in_every_width_without_a_complaint(page, tmp_path):
    broken = tmp_path / "broken.html"
    broken.write_text("<!doctype html><script>undefinedFunction()</script><img src='http://127.0.0.1:9/x.png'>")
    with Browser(tmp_path / "profile") as browser:
        seen = browser.visit(broken.as_uri(), 800, 600)
        assert seen.complaints and seen.requests, "a complaint and a request would be seen"
        for width, dark in ((1400, False), (380, False), (1000, True)):
            seen = browser.visit(page[1].as_uri(), width, 900, dark)
            assert seen.complaints == [] and seen.requests == []
            shown = browser.evaluate(
                "[...document.querySelectorAll('figure > svg, figure img, .bars svg')].map(e => "
                "{ const box = e.getBoundingClientRect(); return [box.width, box.height, e.naturalWidth ?? 1]; })"
            )
            assert len(shown) == 13 and np.array(shown).min() >= 1, shown
            across = browser.evaluate("[document.documentElement.scrollWidth, innerWidth]")
            assert across[0] <= across[1], f"wider than the window of {width}"
            picture = np.asarray(Image.open(io.BytesIO(browser.screenshot())).convert("RGB"), float)
            assert (picture.mean() < 90) == dark and picture.std() > 15 and len(np.unique(picture)) > 30
        assert hover(browser).startswith("step ")
        assert browser.evaluate("document.querySelectorAll('.code button').length") == 2


def hover(browser):
    """What the first chart says when its middle is pointed at."""
    x, y = browser.evaluate(
        "(() => { const b = document.querySelector('.chart > svg').getBoundingClientRect();"
        " return [b.x + b.width / 2, b.y + b.height / 2]; })()"
    )
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    return browser.evaluate("document.querySelector('.chart output').textContent")


def test_a_run_without_a_checkpoint_or_whose_pages_are_gone_gives_a_page(page, tmp_path, capsys):
    alone = run_of(tmp_path / "alone", STEP)
    assert main([str(alone)]) == 0
    assert "No pages were judged" in (alone / "report.html").read_text()
    assert "no checkpoint" in capsys.readouterr().err
    with pytest.raises(UserError, match="no such file"):
        main([str(page[0]), f"data.val={tmp_path}/gone.json"])
    moved = tmp_path / "moved"
    shutil.copytree(page[0], moved, symlinks=True)
    for path in moved.rglob("config.yaml"):  # the checkpoints' own, which are checked
        path.write_text(path.read_text().replace("preset: demo", "preset: gone"))
    assert main([str(moved)]) == 0
    assert "damaged" in capsys.readouterr().err and "preset gone is gone" in (moved / "report.html").read_text()


def test_losses_that_are_no_numbers_one_point_and_nothing(tmp_path):
    nan = [{**STEP, "step": i, "loss": None if 3 < i < 6 else 1.0 + i, "grad_norm": None} for i in range(1, 9)]
    text = made(run_of(tmp_path / "nan", *nan))
    assert "2 records have a loss that is no number" in text
    loss = re.search(r'aria-label="Loss".*?</svg>', text, re.S)[0]
    assert loss.count("<polyline") == 2, "a gap"
    assert 'aria-label="Gradient norm"' not in text
    assert 'aria-label="Loss"' in made(run_of(tmp_path / "one", STEP))
    assert "Nothing was recorded yet" in made(run_of(tmp_path / "none"))
    odd = {"kind": "train", "step": 10**400, "loss": "x", "lr": True}
    assert "Nothing was recorded yet" in made(run_of(tmp_path / "odd", odd, {"kind": []}, text="[1]\n\n" + "[" * 9999))


def test_a_page_from_the_logs_needs_no_torch(tmp_path):
    folder = run_of(tmp_path / "run", STEP)
    lines = (
        "import sys",
        "from engine.report.__main__ import main",
        "main(sys.argv[1:])",
        "assert 'torch' not in sys.modules",
    )
    call = [sys.executable, "-c", "\n".join(lines), str(folder), "--no-eval"]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r".*report\.html  0\.\d MB\n", done.stdout)


def test_damaged_files_beside_the_metrics_are_notes(tmp_path):
    folder = run_of(tmp_path / "run", STEP)
    (folder / "config.yaml").write_text("preset: demo\nnew_section: {key: 1}\n")
    (folder / "run.json").write_text('{"sessions": [3, {"command": 5, "git": 7, "versions": [], "first_step": "<i>"}]}')
    (folder / "summary.json").write_text("{")
    text = made(folder)
    assert "is not read by this version" in text and "new_section.key: 1" in text
    assert "summary.json: " in text and "<i>" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}/gone"], "no such folder"),
        (["{}"], "holds no run"),
        (["{}", "{}"], "expected one run folder"),
        (["{}/run", "--pages", "-1"], "expected 0 to 100"),
        (["{}/run", "--pages", "101"], "expected 0 to 100"),
        (["{}/run", "--no-eval", "seed=1"], "leave --no-eval out"),
        (["{}/run", "--no-eval", "--out", "{}/a.pdf"], r"ends in \.html"),
        (["{}/run", "--no-eval", "--out", "{}/run/metrics.jsonl/a.html"], "cannot be written"),
    ],
)
def test_refusals(tmp_path, arguments, message):
    run_of(tmp_path / "run", STEP)
    with pytest.raises(UserError, match=message):
        main([word.format(tmp_path) for word in arguments])


@pytest.mark.slow
def test_two_million_lines(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    head, tail = json.dumps({**STEP, "step": 777}).split("777")
    with (folder / "metrics.jsonl").open("w") as file:
        file.writelines(f"{head}{step}{tail}\n" for step in range(2_000_000))
    text = made(folder)
    assert "2000000 records" in text and len(text) < 500_000


def test_a_headline_that_the_curves_do_not_show_says_where_both_come_from(trained, tmp_path, capsys):
    """engine.tune on other pages writes its settings into the run's checkpoint: the headline is with them."""
    run = tmp_path / "run"
    shutil.copytree(trained, run, symlinks=True)
    best = json.loads((run / "summary.json").read_text())["val"]["hmean"]
    assert main([str(run), "--pages", "0"]) == 0
    assert "note:" not in capsys.readouterr().out
    checkpoint = (run / "checkpoints" / "best").resolve()
    found = {"data": ["other.json"], "hmean": {"start": 0.91234, "best": 0.95678}}
    record.apply(checkpoint, PostConfig(bin_thresh=0.25), found)
    assert main([str(run), "--pages", "0", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    (note,) = told["notes"]
    assert "engine.tune found on other.json (0.9123 -> 0.9568 there)" in note and note in html.unescape(
        (run / "report.html").read_text()
    )
    assert note.startswith(f"H-mean {told['scores']['hmean']:.4f} is of the run's own pages")
    assert f"the curves' best, {best:.4f}, is of the run's own pages (built-in), as logged" in note
    (checkpoint / record.NAME).unlink()
    source = next((trained.parent / ".synthetic").glob("*-4x*/annotations.json"))
    assert main([str(run), "--pages", "0", f"data.val={source}"]) == 0
    assert (
        f"is of {source}, not the run's own pages, with other settings of the postprocessing" in capsys.readouterr().out
    )
