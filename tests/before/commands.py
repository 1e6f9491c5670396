"""What the public commands make of the fixtures beside this file, as plain values.

    found = everything(Path("a copy of this folder"), Path("a checkout"))     # {"resume": {...}, "predict": {...}, ...}

make.py writes down what the commit of before gave; tests/test_before.py compares what today's code gives. Nothing of
the engine is imported here: a checkout is used through its commands and `engine.predict.Detector`, as a user does.
Times, process ids and paths of the machine are left out of what is returned.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import forked
import numpy as np
import safetensors
from safetensors.numpy import load_file

TIMES = {"seconds", "minutes", "time", "images_per_second", "step_ms", "data_wait_ms", "data_wait_share", "predicted"}
MACHINES = {"id", "pid", "host", "bytes", "torch", "dbnet_engine"}
CURVES = ("step", "epoch", "lr", "loss", "prob_loss", "thresh_loss", "binary_loss", "grad_norm")
DETECT = """
import json, sys
from engine.predict import Detector
for named in ("run", "ensemble.yaml"):
    pages = Detector(named, device="cpu").detect_batch(sys.argv[1:])
    found = [{"scores": p.scores.tolist(), "points": [polygon.tolist() for polygon in p.polygons]} for p in pages]
    print(json.dumps(found))
"""


class Place(NamedTuple):
    """Where the commands run."""

    folder: Path  # a copy of the fixtures
    code: Path  # a checkout

    def python(self, *words: str, **environment: str) -> str:
        """What `python WORDS` prints; AssertionError when it fails."""
        done = subprocess.run(
            [sys.executable, *words], cwd=self.folder, env=self._environment() | environment, capture_output=True,
            text=True, timeout=240, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{' '.join(words)}: exit code {done.returncode}\n{done.stderr[-3000:]}"
        return done.stdout

    def module(self, *words: str) -> str:
        """What `python -m WORDS` prints."""
        done = forked.run(words, cwd=self.folder, env=self._environment(), timeout=240, root=self.code)
        assert done.returncode == 0, f"{' '.join(words)}: exit code {done.returncode}\n{done.stderr[-3000:]}"
        return done.stdout

    def _environment(self) -> dict[str, str]:
        known = os.environ | {"PYTHONPATH": str(self.code), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        known.pop("TRITON_INTERPRET", None)  # a user's process has none
        return known

    def plain(self, value: Any) -> Any:
        """A value without what differs from one time or machine to the next."""
        if isinstance(value, dict):
            return {key: self.plain(item) for key, item in value.items() if key not in TIMES | MACHINES}
        if isinstance(value, list):
            return [self.plain(item) for item in value]
        return value.replace(str(self.folder.resolve()), "HERE") if isinstance(value, str) else value

    def printed(self, *words: str) -> Any:
        """The JSON object that `python -m WORDS` prints."""
        return self.plain(json.loads(self.module(*words)))

    def images(self) -> list[str]:
        """The validation pages."""
        return sorted(str(path.relative_to(self.folder)) for path in self.folder.glob("pages/val/images/*.jpg"))


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def resume(place: Place) -> dict:
    """The run goes on from the middle of an epoch to its end, in a copy `resumed`."""
    shutil.copytree(place.folder / "run", place.folder / "resumed", symlinks=True)
    step = json.loads((place.folder / "run/checkpoints/last/state.json").read_text())["step"]
    own = ("name=resumed", "resume=auto", "trainer.max_steps=0", "trainer.log_every=1")
    place.module("engine.train", "preset=run/config.yaml", *own)
    folder, last = place.folder / "resumed", place.folder / "resumed/checkpoints/last"
    records = [record for record in _lines(folder / "metrics.jsonl") if record["step"] > step]
    norms = {path.stem: _norm(path) for path in sorted(last.glob("*.safetensors"))}
    return place.plain({
        "curves": [{name: r[name] for name in CURVES} for r in records if r["kind"] == "train"],
        "validations": [record for record in records if record["kind"] == "validation"],
        "summary": json.loads((folder / "summary.json").read_text()),
        "state": json.loads((last / "state.json").read_text()),
        "first_steps": [session["first_step"] for session in json.loads((folder / "run.json").read_text())["sessions"]],
        "norms": norms,
    })  # fmt: skip


def _norm(path: Path) -> float:
    return float(np.sqrt(sum(np.square(tensor.astype(np.float64)).sum() for tensor in load_file(path).values())))


def evaluate(place: Place) -> dict:
    """The best checkpoint, by its own settings."""
    return place.printed("engine.evaluate", "checkpoint=run", "data.val=pages/val", "--json")


def predict(place: Place) -> dict:
    """Regions of the validation pages, in all formats."""
    words = ("--checkpoint", "run", "--out", "regions", "--format", "csv,coco,paddle", "--json")
    summary, folder = place.printed("engine.predict", "pages/val/images", *words), place.folder / "regions"
    return {
        "summary": summary,
        "results.jsonl": _lines(folder / "results.jsonl"),
        "results.csv": (folder / "results.csv").read_text().splitlines(),
        "results.paddle.txt": (folder / "results.paddle.txt").read_text().splitlines(),
        "results.coco.json": json.loads((folder / "results.coco.json").read_text()),
    }


def report(place: Place) -> dict:
    """The figures of the run's report, judged by other rules than its own, and those that its page shows."""
    changes = ("eval.protocol=contest", "post.shape=polygon", "post.bin_thresh=0.2", "post.unclip_ratio=2.2")
    words = ("--out", "report.html", "--pages", "2", "--json", *changes)
    figures = place.printed("engine.report", "run", *words)
    return {"figures": figures, "shown": _shown(place.folder / "report.html")}


def report_of_logs(place: Place) -> dict:
    """The same from the logs alone."""
    figures = place.printed("engine.report", "run", "--out", "logs.html", "--no-eval", "--json")
    return {"figures": figures, "shown": _shown(place.folder / "logs.html")}


def _shown(page: Path) -> list[str]:
    """Scores in the text of an HTML page, each once."""
    text = re.sub(r"(?s)<(script|style)\b.*?</\1>|<[^>]*>", " ", page.read_text())
    return sorted(set(re.findall(r"(?<![\d.])[01]\.\d{4}(?!\d)", text)))


def tune(place: Place) -> dict:
    """The settings of the postprocessing that score best; nothing is written."""
    words = ("--trials", "2", "--folds", "2", "--no-write", "--json")
    return place.printed("engine.tune", "checkpoint=run", "data.val=pages/val", *words)


def ensemble(place: Place) -> dict:
    """ensemble.yaml: the run and `resumed`, mirrored views; each member's scores and the mean's."""
    return place.printed("engine.ensemble", "ensemble.yaml", "data.val=pages/val", "--json")


def detector(place: Place) -> dict:
    """Scores and polygons of each validation page by `engine.predict.Detector`, of the run and of the ensemble."""
    run, mean = map(json.loads, place.python("-c", DETECT, *place.images()).splitlines())
    return {"run": run, "ensemble": mean}


def weights(place: Place) -> dict:
    """The weights as one file for elsewhere: its header, and every tensor's bytes."""
    place.module("engine.export", "run", "--weights", "weights.safetensors")
    path = place.folder / "weights.safetensors"
    with safetensors.safe_open(path, "np") as file:
        header = file.metadata()
    tensors = sorted(load_file(path).items())
    names = [f"{name} {tensor.dtype} {list(tensor.shape)}" for name, tensor in tensors]
    every = hashlib.sha256(b"".join(tensor.tobytes() for _, tensor in tensors)).hexdigest()
    return place.plain({"header": header, "tensors": names, "sha256": every})


def exported(place: Place) -> list:
    """Scores and quadrilaterals of three pages by the detector.onnx that was exported before."""
    example, pages = str(place.code / "engine/export/example.py"), []
    for image in place.images()[:3]:
        text = place.python(example, "detector.onnx", image)
        lines = [[float(number) for number in line.split()] for line in text.splitlines()]
        pages.append({"scores": [line[0] for line in lines], "points": [line[1:] for line in lines]})
    return pages


def _events(place: Place, study: str) -> list:
    events = place.plain(_lines(place.folder / study / "trials.jsonl"))
    return [event for event in events if event["event"] != "study"]


def search_on(place: Place) -> dict:
    """A study that has ended gets a larger budget: what it asks next."""
    shutil.copytree(place.folder / "study", place.folder / "study_on")
    place.module("engine.search", "--resume", "study_on", "--budget", "7")
    return {"events": _events(place, "study_on"), "report.md": _report(place, "study_on")}


def search_cut(place: Place) -> dict:
    """A study that was stopped inside a trial: the trial is done again, and the search goes on."""
    shutil.copytree(place.folder / "cut", place.folder / "cut_on")
    place.module("engine.search", "--resume", "cut_on")
    return {"events": _events(place, "cut_on")}


def search_report(place: Place) -> dict:
    """The report of the study as it is."""
    place.module("engine.search", "--report", "study")
    return {"report.md": _report(place, "study")}


def _report(place: Place, study: str) -> list[str]:
    lines = (place.folder / study / "report.md").read_text().splitlines()
    return [line for line in lines if not line.startswith("| time of all trials")]


INDEPENDENT = (
    evaluate, predict, report, report_of_logs, tune, weights, exported, search_on, search_cut, search_report,
)  # fmt: skip
AFTER_RESUME = (ensemble, detector)  # `resumed` is the second member


def everything(folder: Path, code: Path, before_ensemble: Callable[[Place], None] | None = None) -> dict[str, Any]:
    """All of the above by their names, two at a time; {"failed": words} in the place of what did not work.

    Args:
        folder: a copy of the fixtures, which is written to.
        code: the checkout to use.
        before_ensemble: called before the ensemble is; make.py makes its file there.
    """
    place = Place(folder, code)

    def one(job: Callable[[Place], Any]) -> Any:
        try:
            return job(place)
        except Exception as error:  # the others are still worth knowing
            return {"failed": f"{type(error).__name__}: {error}"}

    def with_resume(_: Place) -> dict:
        found = {"resume": one(resume)}
        if before_ensemble is not None:
            before_ensemble(place)
        return found | {job.__name__: one(job) for job in AFTER_RESUME}

    with ThreadPoolExecutor(2) as pool:
        first, *others = pool.map(one, (with_resume, *INDEPENDENT))
    return first | {job.__name__: found for job, found in zip(INDEPENDENT, others, strict=True)}
