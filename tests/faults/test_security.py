"""Bad actors: what comes from outside runs no code, leads out of no folder, obeys no terminal, opens no port."""

import ast
import csv
import hashlib
import io
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from receipt_folders import HARMLESS, NASTY, receipt_folder
from rich.console import Console

from engine import cli, distributed, predict, train
from engine.checkpoint import store
from engine.config.load import load_config
from engine.detection import results
from engine.detection.postprocess import Detections
from engine.distributed import Ranks
from engine.export import __main__ as export
from engine.export import foreign
from engine.export.foreign import import_file
from engine.model.encoder import read_tensors
from engine.run.log import RunLog, open_run
from engine.run.progress import Progress
from engine.search import ledger, sweep
from engine.search.dashboard import Dashboard
from engine.training.resume import Position
from engine.training.state import build
from engine.visualization.document import Code, Heading, Items, Table, Text, to_html, to_markdown
from pipelines import dataset
from pipelines.annotations.read import read_source
from pipelines.errors import UserError, printable
from pipelines.index import store as index_store
from pipelines.index.build import build as build_index
from tests.conftest import ROOT

from . import harness, listeners
from .fuzz_targets import EVENTS, STATE

TINY = ("preset=demo", "models.encoder.name=lcnet_035", "models.decoder.inner_channels=8")


ALONE = Ranks(0, 0, 1, torch.device("cpu"))


class Payload:
    """A pickle that writes a file when it is opened by anything but a restricted reader."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


def leave(main, *arguments: str, capsys) -> str:
    """The one line that an entry point refuses its arguments with."""
    before, sys.argv = sys.argv, ["program", *arguments]
    try:
        with pytest.raises(SystemExit) as end:
            cli.run(main)
    finally:
        sys.argv = before
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1, error
    return error


@pytest.fixture(scope="module")
def weights():
    """Names and tensors of a small encoder."""
    import timm

    return timm.create_model("lcnet_035").state_dict()


UNPACKERS = {
    "pickle",
    "marshal",
    "shelve",
    "dill",
    "cloudpickle",
    "joblib",
    "tarfile",
    "zipfile",
    "copyreg",
}


# ---- no pickle from outside


def test_nothing_in_the_engine_opens_pickles_archives_or_shells():
    """The places that could are few and known; a new one has to be looked at."""
    names = {
        "load": ("torch", "pickle", "joblib", "skopt", "np", "numpy", "marshal"),
        "loads": ("pickle", "marshal"),
        "Unpickler": ("pickle",),
        "unsafe_load": ("yaml",),
        "full_load": ("yaml",),
        "eval": ("",),
        "exec": ("",),
        "system": ("os",),
        "popen": ("os",),
        "extract": None,
        "extractall": None,
        "unpack_archive": None,
        "TarFile": ("tarfile",),
        "read_pickle": None,
    }
    found, imported = [], set()
    for path in sorted(p for package in ("engine", "kernels", "pipelines") for p in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                imported |= {(str(path.relative_to(ROOT)), m) for m in modules if m.split(".")[0] in UNPACKERS}
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            holder, _, name = called.rpartition(".")
            if name in names and (names[name] is None or holder in names[name]):
                found.append((str(path.relative_to(ROOT)), called, [k.arg for k in node.keywords]))
            shell = [k for k in node.keywords if k.arg == "shell"]
            assert not shell, f"{path}: {called} with a shell"
    assert found == [("engine/export/foreign.py", "torch.load", ["map_location", "weights_only"])]
    # pickle for its error's name, zipfile for a look at an archive's table; a Slurm job's function goes out pickled
    known = [("engine/export/foreign.py", "pickle"), ("engine/export/foreign.py", "zipfile")]
    assert sorted(imported) == [*known, ("engine/jobs/slurm.py", "cloudpickle")]


@pytest.mark.parametrize("kind", ["zip", "old", "raw", "state"])
def test_a_malicious_pickle_is_refused_everywhere_and_not_run(tmp_path, capsys, kind, weights):
    mark, path = tmp_path / "pwned", tmp_path / "bad.pt"
    if kind == "raw":
        path.write_bytes(pickle.dumps(Payload(mark)))
    else:
        holder = {"state_dict": {**weights, "x": Payload(mark)} if kind == "state" else Payload(mark)}
        torch.save(holder, path, _use_new_zipfile_serialization=kind != "old")
    named = tmp_path / "bad.safetensors"
    named.write_bytes(path.read_bytes())
    out = tmp_path / "out.safetensors"
    line = leave(export.main, "--import", str(path), "--out", str(out), capsys=capsys)
    assert "could run code" in line and "weights_only" not in line and not out.exists()
    with pytest.raises(UserError, match=r"engine\.export --import"):
        read_tensors(path)
    with pytest.raises(UserError, match="not a readable safetensors file"):
        read_tensors(named)
    if kind == "zip":  # a model takes half a second
        for setting in (f"models.encoder.weights={path}", f"init_from={named}"):
            with pytest.raises(UserError, match=r"safetensors file"):
                build(load_config([*TINY, setting])[0], ALONE)
    assert not mark.exists()
    torch.load(path, weights_only=False) if kind != "raw" else pickle.loads(path.read_bytes())
    assert mark.exists(), "the payload is one"


def test_an_imported_file_starts_a_training(tmp_path, capsys, weights):
    held = {"state_dict": {f"module.model.{k}": v for k, v in weights.items()}, "epoch": 3, "optimizer": {"a": 1}}
    torch.save(held, tmp_path / "lightning.ckpt")
    out = tmp_path / "made" / "weights.safetensors"
    assert export.main(["--import", str(tmp_path / "lightning.ckpt"), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"{len(weights)} tensors" in said and "left out: epoch (int)" in said and "conv_stem.weight  [" in said
    read = safetensors.torch.load_file(out)
    assert read.keys() == weights.keys() and all(torch.equal(read[k], weights[k]) for k in weights)
    model = build(load_config([*TINY, f"models.encoder.weights={out}"])[0], ALONE).model
    assert torch.equal(model.encoder.conv_stem.weight, weights["conv_stem.weight"])
    torch.save(model.state_dict(), tmp_path / "whole.pt")
    whole = tmp_path / "whole.safetensors"
    assert export.main(["--import", str(tmp_path / "whole.pt"), "--out", str(whole)]) == 0
    again = build(load_config([*TINY, "seed=3", f"init_from={whole}"])[0], ALONE).model
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def _shared(depth: int = 30) -> dict:
    made: dict = {}
    for _ in range(depth):
        made = {str(k): made for k in range(10)}
    return made


def test_files_that_are_no_weights_are_one_line_each(tmp_path, capsys, weights, monkeypatch):
    loop: dict = {}
    loop["model"] = loop
    held = {
        "nothing": ({"x": 1}, "holds no table of tensors"),
        "a tensor": (torch.ones(3), "holds no table of tensors"),
        "itself": (loop, "holds no table of tensors"),
        "shared": (_shared(), "no table of weights"),
        "stretched": ({"a": torch.zeros(1).expand(10**10)}, "more than a file of its size"),
    }
    files = {}
    for name, (value, words) in held.items():
        torch.save(value, tmp_path / f"{name}.pt")
        files[name] = words
    torch.save(weights, tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.pt").write_bytes(b"")
    with (
        zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as to,
        zipfile.ZipFile(io.BytesIO(whole)) as z,
    ):
        for entry in z.infolist():
            to.writestr(entry.filename, z.read(entry))
    files |= {
        "cut": "no whole PyTorch file",
        "empty": "no whole PyTorch file",
        "packed": "compressed",
        "gone": "no such",
    }
    for name, words in files.items():
        begin = time.perf_counter()
        line = leave(
            export.main,
            "--import",
            str(tmp_path / f"{name}.pt"),
            "--out",
            str(tmp_path / "o.safetensors"),
            capsys=capsys,
        )
        assert words in line and time.perf_counter() - begin < 5, line
    assert not list(tmp_path.glob("*.safetensors")) and not list(tmp_path.glob(".o*"))
    monkeypatch.setattr(torch, "__version__", "2.10.1+cu126")
    with pytest.raises(UserError, match=r"needs torch 2\.11"):
        foreign.read_foreign(tmp_path / "whole.pt")


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_archives_are_refused_and_extract_nothing(tmp_path, capsys, kind):
    inside = tmp_path / "inside"
    inside.mkdir()
    path = inside / f"data.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("../escaped.txt", "x")
    else:
        with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w") as file:
            info = tarfile.TarInfo("../escaped.txt")
            info.size = 1
            file.addfile(info, io.BytesIO(b"x"))
    for name in (path, path.rename(inside / "renamed.txt"), path.with_name("renamed.txt").rename(inside / "last.json")):
        actual = next(inside.iterdir())
        with pytest.raises(UserError):
            read_source(actual)
        with pytest.raises(UserError, match=r"no checkpoint|no such"):
            store.locate(actual)
        with pytest.raises(UserError):
            import_file(actual, tmp_path / "o.safetensors", [])
        del name
    assert [p.name for p in tmp_path.rglob("*")] == ["inside", "last.json"]


BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)


YAMLS = {
    "object": "seed: !!python/object/apply:os.system ['touch pwned']\n",
    "new": "seed: !!python/object/new:subprocess.Popen [['touch', 'pwned']]\n",
    "module": "seed: !!python/module:antigravity\n",
    "name": "seed: !!python/name:os.system\n",
    "bomb": BOMB,
    "recursive": "a: &a [*a]\n",
    "deep": "[" * 900 + "]" * 900,
    "blocks": "- " * 900 + "x",
    "interpolation": "name: ${oc.env:HOME}\n",
    "digits": "seed: " + "9" * 5000,
    "wrong int": "seed: !!int ''\n",
    "date": "seed: !!timestamp 2020-99-99\n",
    "scalar": "3",
    "huge": "seed: 1\n" + "#" * (1 << 20),
}


# ---- YAML


@pytest.mark.parametrize("kind", YAMLS)
def test_yaml_runs_nothing_and_stays_small(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.yaml").write_text(YAMLS[kind])
    (tmp_path / "config.yaml").write_text(YAMLS[kind])
    for read in (
        lambda: load_config(["preset=p.yaml"]),
        lambda: sweep.read("p.yaml"),
        lambda: load_config([], base=store.load_settings(tmp_path)),
    ):
        begin = time.process_time()
        with pytest.raises(UserError) as refusal:
            read()
        assert time.process_time() - begin < 1 and len(printable(refusal.value)) < 1000
    assert not (tmp_path / "pwned").exists()


def test_a_pipe_or_a_folder_is_no_settings_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    for name in ("pipe", "folder", "gone"):
        with pytest.raises(UserError, match=r"no regular file|cannot be read"):
            load_config([f"preset={tmp_path / name}.yaml"])


@pytest.fixture
def saved(tmp_path):
    """A checkpoint of a small model, the model and its optimizer."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.BatchNorm2d(2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(2, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    path = store.write(tmp_path / "c", store.snapshot(model, None, optimizer), STATE, "seed: 0\n")
    return path, model, optimizer


def _entries(files: dict[str, Path]) -> dict:
    data = {name: path.read_bytes() for name, path in files.items()}
    return {name: {"bytes": len(d), "sha256": hashlib.sha256(d).hexdigest()} for name, d in data.items()}


def _manifest(path: Path, **more: dict) -> None:
    """A manifest that fits whatever lies there now."""
    files = {p.name: p for p in path.iterdir() if p.name != "manifest.json"}
    entries = {
        n: {"bytes": p.stat().st_size, "sha256": hashlib.sha256(p.read_bytes()).hexdigest()} for n, p in files.items()
    }
    (path / "manifest.json").write_text(json.dumps({**entries, **more}))


def test_a_manifest_leads_nowhere_else(saved, tmp_path):
    path, *_ = saved
    (tmp_path / "secret").write_text("x")
    entry = {"bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    for name in ("../../secret", str(tmp_path / "secret"), "a/../../../secret", "..\\secret", "..", "", "."):
        _manifest(path, **{name: entry})
        assert "which is no file of the folder" in store.verify(path), name
    (path / "link").symlink_to(tmp_path / "secret")
    (path / "zero").symlink_to("/dev/zero")
    os.mkfifo(path / "pipe")
    for name in ("link", "zero", "pipe"):
        (path / "manifest.json").unlink()
        kept = {p.name: p for p in path.iterdir() if p.is_file() and not p.is_symlink()}
        entries = {
            n: {"bytes": p.stat().st_size, "sha256": hashlib.sha256(p.read_bytes()).hexdigest()}
            for n, p in kept.items()
        }
        (path / "manifest.json").write_text(json.dumps({**entries, name: {"bytes": 0, "sha256": ""}}))
        assert "no regular file" in store.verify(path), name
    for text in ("{}", "[]", "", "[" * 3000, '{"model.safetensors": 1}', "9" * 5000, " " * (1 << 21)):
        (path / "manifest.json").write_text(text)
        assert store.verify(path), text[:20]
        with pytest.raises(UserError, match="damaged"):
            store.locate(path)


def test_a_part_that_the_manifest_does_not_know_is_not_loaded(saved):
    path, *_ = saved
    assert store.verify(path) == ""
    safetensors.torch.save_file({"0.weight": torch.ones(1)}, path / "ema.safetensors")
    assert store.verify(path) == "ema.safetensors is not in its manifest"


STATES = {
    "step": [None, "3", 2.5, True, -2, float("nan"), float("inf"), 10**400, [1]],
    "samples_in_epoch": [None, "x", 0.5],
    "best": ["x", float("nan"), None, True],
    "minutes": [float("inf"), {}],
    "global_batch": ["4", 4.0, False],
    "score": ["x", float("nan")],
    "bad_pages": [None, "x", {}],
}


def test_a_state_of_wrong_types_is_one_line(saved):
    path, *_ = saved
    assert Position.from_state(store.load_state(path, Position.kinds())).step == 3
    for name, values in STATES.items():
        for value in values:
            (path / "state.json").write_text(json.dumps({**STATE, name: value}))
            with pytest.raises(UserError, match=f"state.json: {name} is"):
                store.load_state(path, Position.kinds())
    for name in ("step", "samples_in_epoch", "global_batch", "stream"):
        (path / "state.json").write_text(json.dumps({k: v for k, v in STATE.items() if k != name}))
        with pytest.raises(UserError, match=f"has no {name}"):
            store.load_state(path, Position.kinds())
    for text in ("", "[1]", "{" * 5000, "9" * 5000, '{"step": 1}' + " " * (1 << 25), "\x00"):
        (path / "state.json").write_text(text)
        with pytest.raises(UserError, match="damaged"):
            store.load_state(path)


def _raw(header: bytes, size: int | None = None, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header) if size is None else size) + header + data


TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


HEADERS = {
    "no header": b"",
    "a short one": b"\x01\x00",
    "longer than the file": _raw(b"{}", 1 << 20),
    "2^63": _raw(b"{}", 1 << 63),
    "above the library's limit": _raw(b"{}", 200_000_000),
    "no JSON": _raw(b"{nonsense"),
    "a list": _raw(b"[1]"),
    "deep": _raw(b'{"a":' * 5000),
    "beyond the end": _raw(json.dumps({"a": TENSOR}).encode()),
    "overlapping": _raw(json.dumps({"a": TENSOR, "b": TENSOR}).encode(), data=bytes(8)),
    "a hole": _raw(json.dumps({"a": {**TENSOR, "data_offsets": [8, 16]}}).encode(), data=bytes(16)),
    "backwards": _raw(json.dumps({"a": {**TENSOR, "data_offsets": [8, 0]}}).encode(), data=bytes(8)),
    "a shape of 2^64": _raw(json.dumps({"a": {**TENSOR, "shape": [2**32, 2**32]}}).encode(), data=bytes(8)),
    "negative": _raw(json.dumps({"a": {**TENSOR, "shape": [-2]}}).encode(), data=bytes(8)),
    "no such type": _raw(json.dumps({"a": {**TENSOR, "dtype": "F31"}}).encode(), data=bytes(8)),
    "more data": _raw(json.dumps({"a": TENSOR}).encode(), data=bytes(16)),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_malicious_safetensors_header_is_one_line(saved, kind):
    path, model, _ = saved
    (path / "model.safetensors").write_bytes(HEADERS[kind])
    _manifest(path)
    assert store.verify(path) == "", "whoever changed it wrote the checksums too"
    with pytest.raises(UserError, match="not a readable safetensors file"):
        store.load_model(model, store.load_part(path, "model"), path)


def test_an_optimizer_state_of_another_model_is_one_line(saved):
    path, _, optimizer = saved
    good = store.load_part(path, "optimizer")
    bad = {
        "no number": {"x.step": torch.ones(())},
        "no dot": {"step": torch.ones(())},
        "beyond": {"9.step": torch.ones(())},
        "negative": {"-1.step": torch.ones(())},
        "digits": {"9" * 5000 + ".step": torch.ones(())},
        "shape": {**good, "0.exp_avg": torch.ones(7)},
        "vector": {**good, "0.step": torch.ones(3)},
        "sgd": {"0.momentum_buffer": torch.ones(2, 3, 3, 3)},
        "half": {"0.step": torch.ones(())},
    }
    for name, tensors in bad.items():
        with pytest.raises(UserError, match="its optimizer state"):
            store.load_optimizer(optimizer, tensors, path)
        assert name
    store.load_optimizer(optimizer, good, path)
    optimizer.step()


def test_a_ledger_from_elsewhere_leads_nowhere_else(tmp_path):
    for change, words in (
        ({"folder": "../../x"}, "leaves the study"),
        ({"folder": "/x"}, "leaves the study"),
        ({"trial": True}, "whole number"),
        ({"values": None}, "an object"),
        ({"time": "x"}, "a number"),
    ):
        events = [EVENTS[0], {**EVENTS[1], **change}]
        (tmp_path / "trials.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
        with pytest.raises(UserError, match=rf"line 2: damaged: .*{words}"):
            ledger.read(tmp_path)


# ---- paths and links


def test_an_index_from_elsewhere_is_looked_at(tmp_path):
    data = receipt_folder(tmp_path / "data")
    build_index(data, tmp_path / "index")
    names = np.load(tmp_path / "index" / "names.npy")

    def change(file: str, array: np.ndarray) -> None:
        before = (tmp_path / "index" / file).read_bytes()
        np.save(tmp_path / "index" / file, array, allow_pickle=True)
        with pytest.raises(UserError, match="damaged"):
            index_store.load(tmp_path / "index")
        (tmp_path / "index" / file).write_bytes(before)

    mark = tmp_path / "pwned"
    for text in (b"../a/b.jpgimg/b.jpg", b"/etc/a.jpgimg/b.jpg", b"img/\0.jpgimg/b.jpg"):
        assert len(text) >= len(names)
        change("names.npy", np.frombuffer(text[: len(names)], np.uint8))
    change("names.npy", np.array([Payload(mark)], object))
    change("points.npy", np.zeros((3, 2), np.float64))
    change("page_offsets.npy", np.array([0, 5, 2], np.int64))
    archive = tmp_path / "index" / "size_wh.npy"
    np.savez(archive.with_suffix(".npz"), a=np.zeros(3))
    archive.with_suffix(".npz").rename(archive)
    with pytest.raises(UserError, match="damaged"):
        index_store.load(tmp_path / "index")
    assert not mark.exists()


# ---- what is shown


def test_refusals_warnings_and_reports_show_names_harmlessly(tmp_path, capsys, caplog):
    line = leave(lambda argv: load_config([f"preset={NASTY}"]), capsys=capsys)
    assert HARMLESS in line and "\x1b" not in line
    for main in (predict.main, export.main):
        line = leave(main, f"--{NASTY}", capsys=capsys)
        assert "\x1b" not in line and "\u202e" not in line
    assert dataset.main(["check", f"{NASTY}"]) == 2
    assert HARMLESS in capsys.readouterr().err
    data = receipt_folder(tmp_path / "data")
    (data / "img" / NASTY).write_bytes(b"no image")
    (data / "box" / f"{NASTY}.txt").write_text("10,10,90,10,90,30,10,30,\x1b[31m\n")
    assert dataset.main(["check", str(data), "--json", str(tmp_path / "r.json")]) == 2
    out = capsys.readouterr().out
    assert f"img/{HARMLESS}: unreadable" in out and "\x1b" not in out and "\u202e" not in out
    named = [f["path"] for f in json.loads((tmp_path / "r.json").read_text())["findings"]]
    assert f"img/{NASTY}" in named
    dataset.main(["build", str(data), "--out", str(tmp_path / "index"), "--skip-bad"])
    shown = caplog.text + "".join(capsys.readouterr())
    assert HARMLESS in shown and "\x1b" not in shown and "\u202e" not in shown


def test_a_running_training_and_a_search_show_names_harmlessly(capsys):
    for terminal in (False, True):
        file = io.StringIO()
        console = Console(file=file, force_terminal=terminal, width=200, no_color=True, highlight=False)
        progress, board = Progress(0, 1, console=console), Dashboard(console)
        log = RunLog(None, progress, None)
        log.say(f"resumed from {NASTY}")
        board.event(f"trial 1 failed: {NASTY}")
        log.close()
        shown = file.getvalue()
        assert shown.count(HARMLESS) == 2 and "\u202e" not in shown and "\x1b[2J" not in shown


def test_reports_escape_html_markdown_and_control_letters(tmp_path):
    evil = f"<script>alert(1)</script> | [x](javascript:1) `c` {NASTY}"
    blocks = [Heading(evil), Text(evil), Items([evil]), Table([evil, "b"], [[evil, "1"]]), Code(f"run {evil}\nnext")]
    page, text = to_html(evil, blocks), to_markdown(evil, blocks, tmp_path)
    for shown in (page, text):
        shown.encode()
        assert (
            "\x1b" not in shown
            and "\u202e" not in shown
            and r"\x1b[2J" in shown.replace("\\\\", "\\").replace("\\[", "[")
        )
    assert "<script" not in page and page.count("&lt;script&gt;") == 8
    outside_code = re.sub(r"```.*?```", "", text, flags=re.S)
    assert "<script" not in outside_code.replace("\\<", "") and "](javascript" not in outside_code.replace("\\](", "")
    assert "\nnext\n" in text and "\nnext<" in page


def test_predictions_stay_below_out_and_keep_names(tmp_path, capsys):
    found = Detections([np.zeros((4, 2), np.float32)], np.ones(1, np.float32))
    names = [NASTY, "=1+1.jpg", 'a"b,c.jpg']
    made = [results.as_json(name, (1, 1), found) for name in names]
    results.write_csv(tmp_path / "t.csv", lambda: iter(made))
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.reader(file))
    assert [row[0] for row in rows[1:]] == names and {len(row) for row in rows} == {2}
    assert "WARNING" in (said := capsys.readouterr().err) and "=1+1.jpg" in said
    assert json.loads(json.dumps(made[0]).encode("ascii"))["image"] == NASTY
    (tmp_path / "in" / "sub").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "in" / "sub" / "a.jpg")
    for given in (tmp_path / "in", tmp_path / "in" / ".." / "in" / "sub", tmp_path / "in" / "sub" / "a.jpg"):
        for name in predict.find_images([str(given)]).names():
            assert not os.path.isabs(name) and ".." not in name.split("/")


def test_secrets_of_the_environment_are_in_no_record(tmp_path, monkeypatch):
    secret = "s3cr3t-value"
    for name in (
        "WANDB_API_KEY",
        "CUDA_API_TOKEN",
        "NCCL_PASSWORD",
        "TORCH_AUTH",
        "SLURM_JOB_SECRET",
        "AWS_SECRET_ACCESS_KEY",
        "DALI_KEY",
    ):
        monkeypatch.setenv(name, secret)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    config, _ = load_config(["preset=demo"])
    with_log = open_run(tmp_path / "run", config, ALONE)
    with_log.train({"step": 1, "epoch": 0, "loss": 1.0})
    with_log.close()
    texts = [path.read_text() for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(texts) >= 3 and not any(secret in text for text in texts)
    assert any("OMP_NUM_THREADS" in text for text in texts), "the others are kept"


def test_ranks_of_one_node_choose_the_loopback_device(monkeypatch):
    names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    for local, world, given, wanted in (("2", "2", "", "lo"), ("2", "4", "", ""), ("2", "2", "eth7", "eth7")):
        with monkeypatch.context() as patch:
            for name in names:
                patch.setenv(name, given)
                if not given:
                    patch.delenv(name)
            patch.setenv("LOCAL_WORLD_SIZE", local)
            patch.setenv("WORLD_SIZE", world)
            distributed.loopback_for_one_node()
            assert [os.environ.pop(name, "") for name in names] == [wanted] * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [(), ("wandb=true", "data.workers=1", "eval.workers=1")], ids=["plain", "wandb, workers"]
)
def test_two_ranks_listen_on_loopback_only(tmp_path, more):
    """All processes of a training but torchrun itself, whose own store is torch's: see the README."""
    job = harness.start(
        [*harness.SETTINGS, "trainer.max_epochs=400", "name=a", f"run_root={tmp_path}", *more], tmp_path, ranks=2
    )
    seen: set = set()
    try:
        while harness.last_step(tmp_path / "a") < 8:
            assert job.process.poll() is None, harness.output(job)[-3000:]
            seen |= listeners.listening(harness.pids(job))
            time.sleep(0.02)
        launcher = {pid for pid in harness.pids(job) if "torch.distributed.run" in harness.command_line(pid)}
        ours = {entry for entry in seen if entry[0] not in launcher}
        assert {pid for pid, *_ in ours} >= set(harness.rank_pids(job).values()), "gloo's sockets are seen"
        assert all(listeners.is_loopback(address) for _, address, _ in ours), ours
    finally:
        harness.kill(job)


def test_the_listing_of_sockets_sees_them():
    code = (
        "import socket, sys; s, t = (socket.create_server((a, 0)) for a in ('0.0.0.0', '127.0.0.1'))\n"
        "print(1, flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdout.readline()
    assert sorted(address for _, address, _ in listeners.listening([child.pid])) == ["0.0.0.0", "127.0.0.1"]
    child.communicate()
    assert [listeners.is_loopback(a) for a in ("127.0.0.1", "::1", "::ffff:127.0.0.1", "::", "192.0.2.2")] == [
        True
    ] * 3 + [False] * 2


def test_a_single_process_listens_nowhere(trained):
    """`trained` has just run in this process."""
    assert train and not listeners.listening([os.getpid()])
