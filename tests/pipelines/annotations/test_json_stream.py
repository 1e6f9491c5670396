import json
import random
import tracemalloc

import pytest
from annotation_files import picture, put

from pipelines.annotations import json_stream
from pipelines.annotations.json_stream import load_json, walk
from pipelines.annotations.read import read_source
from pipelines.errors import UserError

DOCUMENT = {
    "info": {"a": 1.5, "b": [None, True]},
    "n": -12.25e3,
    "images": [{"id": k, "text": "가" * k + '\\"x'} for k in range(20)],
    "annotations": {"1": 2.5e10, "2": [1, 2], "3": -0.5},
    "imgs": [],
    "z": "end",
}


def joined(path):
    top = {}
    for place, key, value in walk(path):
        if not place:
            top[key] = value
        elif isinstance(top[place], dict):
            top[place][key] = value
        else:
            assert key == len(top[place])
            top[place].append(value)
    return top


@pytest.mark.parametrize("block", [1, 2, 3, 7, 64, 1 << 18])
@pytest.mark.parametrize("indent", [None, 2])
def test_pieces_make_the_document_wherever_a_block_ends(tmp_path, monkeypatch, block, indent):
    monkeypatch.setattr(json_stream, "BLOCK", block)
    path = put(tmp_path / "x.json", json.dumps(DOCUMENT, ensure_ascii=False, indent=indent))
    assert joined(path) == DOCUMENT == load_json(path)[0]


def test_a_damaged_document_is_refused_where_pythons_parser_refuses_it(tmp_path, monkeypatch):
    chance, path = random.Random(0), tmp_path / "x.json"
    for _ in range(400):
        text = json.dumps(DOCUMENT, indent=chance.choice([None, 1]))
        at = chance.randrange(len(text))
        text = text[:at] + chance.choice(["", "x", '"', "}", "]", ",", "\n"]) + text[at + chance.randrange(2) :]
        monkeypatch.setattr(json_stream, "BLOCK", chance.choice([5, 100, 1 << 18]))
        put(path, text)
        try:
            whole = json.loads(text)
        except json.JSONDecodeError as error:
            with pytest.raises(UserError, match=f"line {error.lineno} column {error.colno}: "):
                list(walk(path))
        else:
            assert joined(path) == whole


@pytest.mark.parametrize("block", [4, 1 << 18])
def test_keys_that_occur_twice_are_told_once(tmp_path, monkeypatch, block):
    monkeypatch.setattr(json_stream, "BLOCK", block)
    text = '{"images": {"a": {"x": 1, "x": 2}, "b": 1, "b": 2}, "n": {"y": 1, "y": 1}, "n": 3}'
    repeated: list[str] = []
    list(walk(put(tmp_path / "x.json", text), repeated))
    assert sorted(repeated) == ["b", "n", "x", "y"]


def test_bytes_that_are_no_utf8_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(json_stream, "BLOCK", 8)
    (tmp_path / "x.json").write_bytes(b'{"images": {"\xea\xb0\x80": 1, "\xff": 2}}')
    with pytest.raises(UserError, match="byte 23"):
        list(walk(tmp_path / "x.json"))


def quad(k):
    return [[k % 900, k], [k % 900 + 120, k + 3], [k % 900 + 119, k + 33], [k % 900 - 1, k + 30]]


def large(kind):
    if kind == "contest":
        words = {f"{k:04d}": {"points": quad(k), "transcription": f"WORD{k}"} for k in range(60)}
        return json.dumps({"images": {f"{p}.jpg": {"words": words, "img_w": 1000, "img_h": 700} for p in range(134)}})
    images = [{"id": p, "file_name": f"{p}.jpg", "width": 1000, "height": 700} for p in range(134)]
    items = [
        {
            "id": k,
            "image_id": k % 134,
            "category_id": 1,
            "segmentation": [[v for point in quad(k) for v in point]],
            "iscrowd": 0,
        }
        for k in range(8000)
    ]
    return json.dumps({"annotations": items, "images": images})


@pytest.mark.parametrize("kind", ["contest", "coco"])
def test_a_large_document_takes_at_most_four_times_its_bytes(tmp_path, kind):
    picture(tmp_path / "0.jpg")
    path = put(tmp_path / "x.json", large(kind))
    tracemalloc.start()
    try:
        source = read_source(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(len(page.polygons) for page in source.pages) >= 8000
    assert peak <= 4 * path.stat().st_size + 4 * json_stream.BLOCK
