"""A few hundred cases of every target of `tests.faults.fuzz`, and proof that it sees what breaks its rule."""

import json
import logging
import struct
import time
import warnings

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from engine.checkpoint import store
from engine.config.load import load_config
from engine.export.foreign import import_file
from engine.files import owner_record
from engine.run import log
from engine.search import import_table, ledger, sweep
from pipelines.annotations.json_formats import points
from pipelines.annotations.read import read_source
from pipelines.annotations.text_formats import interpret, parse_line
from pipelines.errors import UserError
from pipelines.index import store as index_store

from . import fuzz
from .fuzz_targets import EVENTS, INDEX, SPACE, TABLE, targets


@pytest.fixture(scope="module")
def every():
    """{name: target}."""
    return {target.name: target for target in targets()}


def test_no_reader_raises_anything_else(every):
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            results = [fuzz.run_target(target, max(4, round(8 * target.share)), 1) for target in every.values()]
    finally:
        logging.disable(logging.NOTSET)
    assert len(results) > 25 and sum(r.cases for r in results) > 400
    assert not {r.name: r.faults for r in results if r.faults}
    assert all(r.accepted + r.refused == r.cases for r in results)


def test_the_fuzzer_counts_what_breaks_the_rule(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "HANG_S", 1.0)
    monkeypatch.setattr(fuzz, "SLOW_S", 0.02)

    def read(case, folder):
        if case == 0:
            raise UserError("refused")
        if case == 1:
            raise KeyError("x")
        if case == 2:
            time.sleep(5)
        if case == 3:
            end = time.process_time() + 0.04
            while time.process_time() < end:
                pass

    cases = iter([0, 1, 2, 3, 4, 0, 1, 3, 4])
    result = fuzz.run_target(
        fuzz.Target("planted", lambda: st.integers().map(lambda _: next(cases)), read), 9, 0, tmp_path
    )
    assert (result.cases, result.refused, result.accepted, result.slow) == (9, 2, 4, 2)
    kinds = sorted(where.split(" at ")[0] for where in result.faults)
    assert kinds == ["Hang", "KeyError", "Slow"] and result.faults.total() == 5
    assert len(list(tmp_path.iterdir())) == 3, "the first of each kind is kept"


def test_damage_keeps_most_of_a_file_and_changes_it():
    import random

    data = bytes(range(256)) * 4
    made = [fuzz.damage(data, random.Random(k)) for k in range(200)]
    assert sum(m != data for m in made) > 180 and len(set(made)) > 180
    assert made[:5] == [fuzz.damage(data, random.Random(k)) for k in range(5)], "a seed names its cases"


# ---- what it has found, each as small as it could be made


def _contest(name: str) -> bytes:
    return json.dumps({"images": {name: {"words": {}}}}).encode()


ANNOTATIONS = {
    "5,000 digits": b'{"images": {"a.jpg": {"words": {"1": {"points": [' + b"9" * 5000 + b"]}}}}}",
    "5,000 digits in a line": b"a.jpg\t[" + b"9" * 5000 + b"]",
    "deep in a line": b"a.jpg\t" + b"[" * 3000,
    "a long name": _contest("9" * 300 + ".jpg"),
    "a long path": _contest("/".join(["9" * 200] * 20) + ".jpg"),
    "half a character": _contest("\ud800.jpg"),
    "parts of two kinds": json.dumps(
        {
            "images": [{"id": 1, "file_name": "a.jpg"}],
            "annotations": [{"id": 1, "image_id": 1, "segmentation": [[1, 2], [3, 4], 5]}],
        }
    ).encode(),
}


@pytest.mark.parametrize("name", ANNOTATIONS)
def test_annotations_that_broke_a_parser(tmp_path, name):
    for file in ("a.json", "a.txt"):
        (tmp_path / file).write_bytes(ANNOTATIONS[name])
        with pytest.raises(UserError):
            read_source(tmp_path / file)


def test_coordinates_beyond_float32_are_dropped_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isinf(points([1e300, 1, 2, 3], "x")).any()
        for layout in ("ltrb", "icdar"):
            assert np.isinf(interpret(parse_line("1e300,1,2,3,4,5,6,7", 1), layout)[0]).any()


def test_numbers_and_types_that_broke_the_settings(tmp_path):
    huge = "1" + "0" * 400
    for text in (
        f"seed: {huge}",
        f"data: {{global_batch: {huge}}}",
        "seed: !!int ''",
        "seed: !!bool x",
        "3",
        "- " * 900,
    ):
        (tmp_path / "p.yaml").write_text(text)
        with pytest.raises(UserError):
            load_config([f"preset={tmp_path / 'p.yaml'}"])
    for entry in (
        {"distribution": {"a": 1}, "min": 1, "max": 2},
        {"min": 1, "max": int(huge)},
        {"values": [1, int(huge)]},
        {"distribution": "q_uniform", "min": 0.1, "max": 1.0, "q": 1e-320},
    ):
        (tmp_path / "s.yaml").write_text(json.dumps({"method": "random", "parameters": {"a": entry}}))
        with pytest.raises(UserError):
            sweep.read(tmp_path / "s.yaml", free_keys=True)


def test_events_that_broke_the_ledger(tmp_path):
    study, trial, start, epoch, _, _, _, end, _ = EVENTS
    first = study["space"][0]

    def without(event: dict, name: str) -> dict:
        return {key: value for key, value in event.items() if key != name}

    for events in (
        [{**study, "space": True}],
        [{**study, "space": [{**first, "values": True}]}],
        [{**study, "space": [{**first, "low": None}]}],
        [{**study, "space": [{**first, "kind": "x"}]}],
        [without(study, "name")],
        [study, {**trial, "trial": 0.0}],
        [study, without(trial, "seed")],
        [study, trial, {**start, "trial": [0]}],
        [study, trial, {**epoch, "epoch": [1]}],
        [study, trial, {**epoch, "value": "x"}],
        [study, trial, {**epoch, "value": 10**400}],
        [study, trial, without(end, "state")],
        [study, trial, {**end, "state": []}],
        [study, trial, {**end, "estimate": [1]}],
    ):
        (tmp_path / "trials.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
        with pytest.raises(UserError, match=f"line {len(events)}: "):
            ledger.read(tmp_path)
    (tmp_path / "trials.jsonl").write_text(json.dumps(study) + "\n" + "[" * 3000 + "\n[1]\n9\n")
    assert ledger.read(tmp_path).trials == [], "what is no event is passed over"


def test_files_that_broke_torch_and_numpy(tmp_path, every):
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, 46, 0, 0)
    two_disks = b"PK\x06\x07" + struct.pack("<LQL", 0, 0, 2) + end
    for data in (b"\x80\x02\x8a\x0a", b"\x80\x02X", two_disks, b"PK\x03\x04", b"\x80"):
        (tmp_path / "f.pt").write_bytes(data)
        with pytest.raises(UserError):
            import_file(tmp_path / "f.pt", tmp_path / "o.safetensors", [])
    folder = tmp_path / "index"
    folder.mkdir()
    for name, data in INDEX.items():
        (folder / name).write_bytes(data)
    meta = {**json.loads(INDEX["meta.json"]), "root": str(tmp_path)}
    (folder / "meta.json").write_text(json.dumps(meta))
    assert len(index_store.load(folder)) == 2
    good = INDEX["ignore.npy"]
    for data in (b"", good[:7], good.replace(b"(3,)", b"(3, "), good.replace(b"}", b" "), good[:-1]):
        (folder / "ignore.npy").write_bytes(data)
        with pytest.raises(UserError, match="damaged"):
            index_store.load(folder)
    (folder / "ignore.npy").write_bytes(good)
    names = folder / "names.npy"
    names.write_bytes(INDEX["names.npy"].replace(b"a.jpg", b"\xff.jpg"))
    with pytest.raises(UserError, match="name"):
        index_store.load(folder)
    names.write_bytes(INDEX["names.npy"])
    for change in ({"root": 3}, {"root": "/" + "9" * 300}, {"format": None}, {"version": 99}):
        (folder / "meta.json").write_text(json.dumps({**meta, **change}))
        with pytest.raises(UserError):
            index_store.load(folder)


def test_a_table_of_too_many_epochs_is_refused_at_once(tmp_path):
    """2^31 epochs took 9.5 GB."""
    for epochs in ("2147483648", "-1", "1e300"):
        (tmp_path / "t.csv").write_text(TABLE.replace(",15,30.5", f",{epochs},30.5"))
        with pytest.raises(UserError, match="epochs"):
            import_table.read(tmp_path / "t.csv", SPACE)
    begin = time.process_time()
    (tmp_path / "t.csv").write_text(TABLE.replace(",15,30.5", ",100000,30.5"))
    assert len(import_table.read(tmp_path / "t.csv", SPACE)) == 3 and time.process_time() - begin < 2


def test_what_is_no_record_is_passed_over(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n' + "[" * 3000 + '\n{"a"\n[1]\n{"step": 2}\n')
    assert [record["step"] for record in log.read_metrics(path)] == [1, 2]
    path.write_text("[" * 3000)
    assert owner_record(path) == {}


def test_an_optimizer_step_beyond_reason_is_refused():
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    moments = {"0.exp_avg": torch.zeros(2), "0.exp_avg_sq": torch.zeros(2)}
    for step in (-1e30, 1e30, float("nan"), float("inf")):
        with pytest.raises(UserError, match=r"0\.step is"):
            store.load_optimizer(optimizer, {**moments, "0.step": torch.tensor(step)})
    store.load_optimizer(optimizer, {**moments, "0.step": torch.tensor(3.0)})
