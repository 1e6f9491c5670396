"""What `tests.faults.fuzz` feeds: an entry for every reader of what others wrote, and valid documents to start from."""

import contextlib
import dataclasses
import hashlib
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image

from engine.checkpoint import store
from engine.config.load import from_dict, keys, load_config
from engine.export.foreign import import_file
from engine.files import owner_record
from engine.run import log
from engine.search import import_table, ledger, sweep
from engine.search import options as search_options
from engine.search.space import Parameter, Space
from engine.training import bad_pages
from engine.training.resume import Position
from pipelines.annotations import text_formats
from pipelines.annotations.json_values import points
from pipelines.annotations.page import Page, safe_relative
from pipelines.annotations.read import FORMATS, read_source
from pipelines.annotations.text_folders import TEXT_FORMATS
from pipelines.images.jpeg import is_jpeg, scan_markers
from pipelines.images.read import pixel_limit, read_header
from pipelines.index import store as index_store
from pipelines.index.clean import clean
from pipelines.limits import Limits
from tests.faults import fuzz_json
from tests.faults.fuzz import NASTY, SCALARS, TEXTS, Target, damaged, near

QUAD = [[10, 10], [90, 10], [90, 30], [10, 30]]
CONTEST = {
    "images": {
        "a.jpg": {
            "img_w": 100,
            "img_h": 80,
            "words": {"1": {"points": QUAD, "transcription": "x", "illegibility": False}},
        },
        "b.jpg": {
            "img_w": 100,
            "img_h": 80,
            "words": {"1": {"points": QUAD}, "2": {"points": QUAD[:3], "ignore": True}},
        },
    }
}
COCO = {
    "images": [{"id": 1, "file_name": "a.jpg", "width": 100, "height": 80}, {"id": 2, "file_name": "b.jpg"}],
    "annotations": [
        {"id": 1, "image_id": 1, "bbox": [1, 2, 30, 10], "iscrowd": 0, "caption": "x"},
        {"id": 2, "image_id": 1, "segmentation": [[1, 2, 30, 2, 30, 20, 1, 20]], "attributes": {"text": "y"}},
        {"id": 3, "image_id": 2, "segmentation": [[1, 2, 30, 2, 30, 20], [5, 6, 9, 6, 9, 9]]},
        {"id": 4, "image_id": 2, "bbox": [1, 2, 30, 10], "segmentation": {"counts": "abc", "size": [3, 4]}},
    ],
}
COCO_TEXT = {
    "imgs": {"1": {"id": 1, "file_name": "a.jpg", "width": 100, "height": 80, "set": "train"}},
    "anns": {
        "1": {
            "id": 1,
            "image_id": 1,
            "polygon": [1, 2, 30, 2, 30, 20, 1, 20],
            "utf8_string": "x",
            "legibility": "legible",
        },
        "2": {
            "id": 2,
            "image_id": 1,
            "mask": [1, 2, 30, 2, 30, 20, 1, 20],
            "bbox": [1, 2, 3, 4],
            "legibility": "illegible",
        },
    },
}
LABELME = {
    "imagePath": "a.jpg",
    "imageWidth": 100,
    "imageHeight": 80,
    "shapes": [
        {"label": "x", "points": QUAD, "shape_type": "polygon", "flags": {}},
        {
            "label": "###",
            "points": [[1, 2], [30, 20]],
            "shape_type": "rectangle",
            "description": "y",
            "flags": {"ignore": 1},
        },
    ],
}
WORDS = [{"transcription": "x", "points": QUAD}, {"transcription": "*", "points": QUAD, "difficult": True}]
PADDLE = "\n".join(f"{name}\t{json.dumps(WORDS)}" for name in ("a.jpg", "b.jpg"))
LINES = {
    "icdar": "10,10,90,10,90,30,10,30,TOTAL\n10,40,90,40,90,60,10,60,12,000\n1,2,3,4,5,6,7,8,###\n",
    "mlt": "10,10,90,10,90,30,10,30,Latin,TOTAL\n10,40,90,40,90,60,10,60,Korean,x\n",
    "polygon": "10,10,50,8,90,10,90,30,50,32,10,30,x\n10,40,50,38,90,40,90,60,50,62,10,60\n",
    "ltrb": '10 10 90 30 "x"\n10, 40, 90, 60, x\n',
    "td500": "0 0 10 10 60 20 0.1\n1 1 20 40 50 20 -1.2\n",
    "flags": "10,10,90,10,90,30,10,30,0\n10,40,90,40,90,60,10,60,1\n",
    "rctw": '10,10,90,10,90,30,10,30,0,"a, b"\n10,40,90,40,90,60,10,60,1,"###"\n',
    "ctw1500": ",".join(map(str, [10, 10, 90, 60, *range(0, 70, 5), *range(14)])) + "\n",
    "ctw1500 text": ",".join(map(str, range(28))) + ",####TEXT\n",
    "yolo": "0 0.5 0.5 0.2 0.1\n0 0.2 0.2 0.1 0.1\n",
    "yolo obb": "0 0.1 0.1 0.3 0.15 0.29 0.25 0.09 0.2\n",
    "totaltext": "x: [[10 90 90\n 10]], y: [[ 10  10 30 30]], ornt: [u'c'], transcriptions: [u'a', u\"b\"]\n" * 2,
}
CVAT = b"""<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><task><name>t</name></task></meta>
<image id="0" name="a.jpg" width="100" height="80">
<box label="text" xtl="10" ytl="20" xbr="60" ybr="40" rotation="30"><attribute name="text">a &amp; b</attribute></box>
<polygon label="text" points="10.0,60.0;50,60;50,70"></polygon><tag label="x"/>
<mask label="ignore" rle="1,2" left="3" top="2" width="5" height="10"></mask></image>
<image id="1" name="b.jpg" width="100" height="80"><ellipse label="text" cx="50" cy="20" rx="20" ry="10"/></image>
</annotations>
"""
XML_PAGES = {
    "voc": b"""<annotation><filename>a.jpg</filename><size><width>100</width><height>80</height></size>
<object><name>text</name><difficult>1</difficult><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>40</ymax>
</bndbox></object><object><robndbox><cx>5</cx><cy>9</cy><w>8</w><h>4</h><angle>1.5</angle></robndbox></object>
</annotation>""",
    "ctw1500": b"""<Annotations><image file="a.jpg"><box height="20" left="1" top="4" width="30"><label>x</label>
<segs>1,4,10,4,30,4,30,24,10,24,1,24</segs><pts x="3" y="5"/></box></image></Annotations>""",
}
SWEEP = {
    "method": "bayes",
    "metric": {"name": "val/hmean", "goal": "maximize"},
    "run_cap": 8,
    "parameters": {
        "models.optimizer.lr": {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-3},
        "models.optimizer.weight_decay": {"distribution": "log_uniform", "min": -11.5, "max": -9.0},
        "models.scheduler.T_max": {"values": [15, 18, 20, 25]},
        "trainer.accumulate": {"distribution": "q_uniform", "min": 1, "max": 4, "q": 1},
        "data.batch_size": {"min": 1, "max": 8},
        "models": {
            "parameters": {"optimizer.name": {"values": ["adam", "adamw"]}, "encoder.freeze": {"value": "none"}}
        },
    },
    "early_terminate": {"type": "hyperband", "min_iter": 3, "eta": 3, "s": 2, "strict": True},
}
SPACE = Space(
    (
        Parameter("models.optimizer.lr", "float", 1e-5, 1e-3, "log"),
        Parameter("models.scheduler.T_max", "ordinal", values=(15, 18, 20, 25)),
        Parameter("models.optimizer.name", "choice", values=("adam", "adamw")),
    )
)
TABLE = (
    "order,models.optimizer.lr,T_max,models.optimizer.name,val/hmean,epochs,minutes,state,reason,precision\n"
    "1,1e-4,15,adam,0.97,15,30.5,finished,,0.98\n2,2e-4,20,adamw,0.96,5,10,stopped,slow,\n3,9e-4,18,adam,,1,1,,,\n"
)
EVENTS = [
    {
        "event": "study",
        "version": ledger.VERSION,
        "time": 1.0,
        "name": "s",
        "metric": "val/hmean",
        "goal": "maximize",
        "method": "bayes",
        "budget": 4,
        "agents": 1,
        "seed": 0,
        "max_epochs": 4,
        "early_stop": {"type": "none"},
        "arguments": ["preset=demo"],
        "first": {"models.optimizer.lr": 1e-4},
        "objective": "",
        "runner": {"executor": "local"},
        "space": [
            {
                "name": "models.optimizer.lr",
                "kind": "float",
                "low": 1e-5,
                "high": 1e-3,
                "scale": "log",
                "step": 0.0,
                "values": [],
            },
            {"name": "T", "kind": "ordinal", "low": 0.0, "high": 1.0, "scale": "linear", "step": 0.0, "values": [1, 2]},
        ],
    },
    {
        "event": "trial",
        "time": 2.0,
        "trial": 0,
        "values": {"models.optimizer.lr": 1e-4, "T": 1},
        "kind": "preset",
        "seed": 0,
        "repeats": None,
        "folder": "trials/000",
        "name": "",
    },
    {"event": "start", "time": 3.0, "trial": 0, "attempt": 1, "id": "x"},
    {"event": "epoch", "time": 4.0, "trial": 0, "attempt": 1, "epoch": 1, "value": 0.5, "scores": {"hmean": 0.5}},
    {"event": "epoch", "time": 5.0, "trial": 0, "attempt": 1, "epoch": 2, "value": 0.6, "scores": {}},
    {"event": "cut", "time": 6.0, "trial": 0, "attempt": 1, "outside": True, "minutes": 1.0},
    {"event": "start", "time": 7.0, "trial": 0, "attempt": 2, "id": "y"},
    {
        "event": "end",
        "time": 8.0,
        "trial": 0,
        "attempt": 2,
        "state": "stopped",
        "minutes": 1,
        "estimate": [0.7, 0.01],
        "reason": "r",
    },
    {"event": "extend", "time": 9.0, "budget": 8, "agents": 2, "runner": {}},
]


def _dump(document: Any) -> bytes:
    return json.dumps(document).encode()


def _lines(events: list) -> bytes:
    return "".join(json.dumps(event) + "\n" for event in events).encode()


# ---- annotations


def _folder(folder: Path) -> Path:
    """Two images, and room for annotations beside them."""
    if not (folder / "images").is_dir():
        for name in ("images", "img"):
            (folder / name).mkdir()
            for image in ("a.jpg", "b.jpg"):
                (folder / name / image).write_bytes(b"")
        (folder / "box").mkdir()
        (folder / "box" / "b.txt").write_text(LINES["icdar"])
    return folder


def _read(path: Path, format: str = "auto", root: Path | None = None) -> None:
    made = read_source(path, format, root)
    for page in made.pages:
        assert (made.root / page.path).resolve().is_relative_to(made.root)
        clean(page, 100, 80)


def _json_file(document: Any, folder: Path) -> None:
    path = _folder(folder) / "data.json"
    path.write_bytes(_dump(document))
    _read(path)


def _page_file(document: Any, folder: Path) -> None:
    """A JSON file of one page, beside another in its folder."""
    (_folder(folder) / "json").mkdir(exist_ok=True)
    (folder / "json" / "a.json").write_bytes(_dump(document))
    _read(folder / "json", root=folder / "images")
    _read(folder / "json" / "a.json")


def _json_line(document: Any, folder: Path) -> None:
    path = _folder(folder) / "lines.txt"
    path.write_bytes(_dump(document) + b"\n")
    _read(path)


def _any_file(case: tuple, folder: Path) -> None:
    """A damaged annotation file under its own name, and under another's."""
    (name, data), format, where = case
    path = _folder(folder) / (f"data.{'json' if 'json' in name else 'txt'}" if where < 2 else "other.csv")
    path.write_bytes(data)
    try:
        _read(path, format, folder / "images" if where == 1 else None)
    finally:
        path.unlink()


def _label_file(case: tuple, folder: Path) -> None:
    (_, data), format = case
    (_folder(folder) / "box" / "a.txt").write_bytes(data)
    _read(folder, format)


def _xml_file(case: tuple, folder: Path) -> None:
    """CVAT's file, or one of a page where a set's is expected; and an XML a page, in a set of two."""
    (name, data), format = case
    _folder(folder)
    (folder / "data.xml").write_bytes(data)
    place = folder / "pages"
    for page in ("a", "b"):
        (place / "labels").mkdir(parents=True, exist_ok=True)
        (place / f"{page}.jpg").write_bytes(b"")
        (place / "labels" / f"{page}.xml").write_bytes(data if page == "a" else XML_PAGES.get(name, data))
    for source in (folder / "data.xml", place):
        try:
            _read(source, format)
        except text_formats.UserError:
            continue


def _id_list(case: tuple, folder: Path) -> None:
    lines, end = case
    path = _folder(folder) / "ids.txt"
    path.write_bytes(end.join(lines).encode("utf-8", "surrogatepass"))
    (folder / "box" / "a.txt").write_text(LINES["ltrb"])
    _read(path)


def _parsers(case: tuple, folder: Path) -> None:
    """The parsers themselves, one text or value each."""
    text, lines, value = case
    parsed = [text_formats.parse_line(line, n) for n, line in enumerate(lines)]
    for layout in text_formats.LAYOUTS:
        for line in parsed:
            text_formats.interpret(line, layout)
    text_formats.is_text_line(text)
    for call in (
        lambda: safe_relative(text, "where"),
        lambda: safe_relative(text, "where", "base/x"),
        lambda: points(value, "where"),
        lambda: text_formats.choose_layout(parsed, "where"),
    ):
        try:
            call()
        except text_formats.UserError:
            continue


def _clean(case: tuple, folder: Path) -> None:
    polygons, texts, width, height = case
    page = Page("a.jpg")
    for polygon in polygons:
        page.add(points([v for point in polygon for v in point], "a"), False, "x" if texts else None)
    made = clean(page, width, height).page
    for polygon in made.polygons:
        assert np.isfinite(polygon).all() and (polygon >= 0).all() and (polygon <= [width, height]).all()


def _annotation_seeds() -> dict[str, bytes]:
    seeds = {
        f"{n}.json": _dump(d)
        for n, d in (("contest", CONTEST), ("coco", COCO), ("text", COCO_TEXT), ("labelme", LABELME))
    }
    seeds |= fuzz_json.seeds()
    seeds |= {"paddle": PADDLE.encode(), "ids": b"a\nb\n", "bom.json": b"\xef\xbb\xbf" + _dump(CONTEST)}
    seeds |= {name: text.encode() for name, text in LINES.items()}
    return seeds | {
        "utf16": ("\ufeff" + PADDLE).encode("utf-16-le"),
        "utf16be": ("\ufeff" + "a\nb\n").encode("utf-16-be"),
    }


def _label_seeds() -> dict[str, bytes]:
    seeds = {name: text.encode() for name, text in LINES.items()}
    return seeds | {"utf16": LINES["icdar"].encode("utf-16"), "bom": b"\xef\xbb\xbf" + LINES["ltrb"].encode()}


NUMBER_TEXT = st.one_of(
    st.integers(-50, 5000).map(str), st.floats().map(str), st.sampled_from(TEXTS), st.text(max_size=5)
)
LINE = st.tuples(st.lists(NUMBER_TEXT, max_size=14), st.sampled_from([",", " ", ", ", "\t"])).map(
    lambda p: p[1].join(p[0])
)
ID = st.one_of(st.sampled_from(["a", "b", "a.jpg", ""]), st.sampled_from(TEXTS), st.text(max_size=10))
COORDINATE = st.one_of(st.integers(-20, 200), st.floats(width=32), st.floats())


# ---- settings, sweeps, tables, ledgers


def _override(case: list, folder: Path) -> None:
    load_config(["preset=demo", *case])


def _options(case: list, folder: Path) -> None:
    with contextlib.suppress(SystemExit):  # of --help
        search_options.parse(case)


def _preset(data: bytes, folder: Path) -> None:
    (folder / "p.yaml").write_bytes(data)
    load_config([f"preset={folder / 'p.yaml'}"])


def _preset_seeds() -> dict[str, bytes]:
    from engine.config.load import PRESET_FOLDER

    seeds = {path.stem: path.read_bytes() for path in PRESET_FOLDER.glob("*.yaml")}
    return seeds | {
        "alias": b"a: &x [1, 2]\nseed: 3\ndata: {image_size: *x}\n",
        "all": _yaml(dataclasses.asdict(load_config([])[0])),
    }


def _yaml(document: Any) -> bytes:
    return json.dumps(document).encode()  # JSON is YAML


def _sweep(data: bytes, folder: Path) -> None:
    (folder / "s.yaml").write_bytes(data)
    found = sweep.read(folder / "s.yaml", free_keys=data.startswith(b'{"method": "random"'))
    for parameter in found.space.parameters:
        assert parameter.contains(parameter.value(0.3))


def _sweep_seeds() -> dict[str, bytes]:
    seeds = {path.stem: path.read_bytes() for path in sweep.SWEEP_FOLDER.glob("*.yaml")}
    return seeds | {"own": _yaml(SWEEP), "random": _yaml({**SWEEP, "method": "random"})}


def _table(data: bytes, folder: Path) -> None:
    (folder / "t.csv").write_bytes(data)
    import_table.read(folder / "t.csv", SPACE)


CELL = st.one_of(
    st.sampled_from([*TEXTS, "1e-4", "15", "adam", "0.97", "finished", '"', '"a,b"']), st.floats().map(str)
)


def _rows(rows: Any) -> bytes:
    lines = [[str(cell) for cell in row] if isinstance(row, list) else [str(row)] for row in rows]
    return "\n".join(map(",".join, lines)).encode("utf-8", "surrogatepass")


def _ledger(data: bytes, folder: Path) -> None:
    (folder / "trials.jsonl").write_bytes(data)
    study = ledger.read(folder)
    study.incumbent()
    [trial.value for trial in study.searched]


def _small_files(case: tuple, folder: Path) -> None:
    """metrics.jsonl and the fence's record, which are passed over where they are damaged."""
    _, data = case
    (folder / "m.jsonl").write_bytes(data)
    log.read_metrics(folder / "m.jsonl")
    owner_record(folder / "m.jsonl")


# ---- checkpoints, indexes, weights


class _Detector(torch.nn.Sequential):
    def __init__(self) -> None:
        super().__init__(torch.nn.Conv2d(3, 2, 3), torch.nn.BatchNorm2d(2))


def _trained() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = _Detector()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.randn(2, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    return model, optimizer


STATE = {
    **Position().to_state(),
    "step": 3,
    "global_batch": 4,
    "score": 0.5,
    "scores": {"hmean": 0.5},
    "stream": {"seed": 0, "pages": [8], "weights": []},
    "bad_pages": [[3, "3.jpg", "empty file", True]],
}


class _Pages(list):
    """File names of eight training pages, as much of an index as a checkpoint's bad pages are taken into."""

    def __init__(self) -> None:
        super().__init__(f"{row}.jpg" for row in range(8))
        self.name, self.bad, self.unread = self.__getitem__, {}, set()


def _checkpoint_seeds() -> dict[str, bytes]:
    model, optimizer = _trained()
    with tempfile.TemporaryDirectory() as folder:
        path = store.write(Path(folder), store.snapshot(model, model, optimizer), STATE, "seed: 0\npreset: demo\n")
        return {file.name: file.read_bytes() for file in path.iterdir()}


SEEDS: dict[str, bytes] = {}  # of one checkpoint, made on first use


def _load_everything(path: Path) -> None:
    """What a resume, an evaluation and `init_from` do with a checkpoint, whatever its checksums say."""
    store.locate(path)
    _load_unchecked(path)


def _load_unchecked(path: Path) -> None:
    model, optimizer = _trained()
    state = store.load_state(path, Position.kinds())
    Position.from_state(state)
    bad_pages.restore(_Pages(), state.get("bad_pages", []), path)
    from_dict(store.load_settings(path))
    store.load_model(model, store.load_part(path, "model"), path)
    store.load_part(path, "ema")
    store.load_optimizer(optimizer, store.load_part(path, "optimizer"), path)
    optimizer.step()


def _write_files(folder: Path, files: dict[str, bytes]) -> Path:
    path = folder / "step_00000003"
    path.mkdir(exist_ok=True)
    for name, data in files.items():
        if not (path / name).is_file() or (path / name).read_bytes() != data:
            (path / name).write_bytes(data)
    return path


def _checkpoint_bytes(case: tuple, folder: Path) -> None:
    """One damaged file; every second time with a manifest that fits it, as somebody who means harm would write."""
    (name, data), honest = case
    files = {**SEEDS, name: data}
    if not honest and name != "manifest.json":
        manifest = {
            n: {"bytes": len(d), "sha256": hashlib.sha256(d).hexdigest()}
            for n, d in files.items()
            if n != "manifest.json"
        }
        files["manifest.json"] = _dump(manifest)
    _load_everything(_write_files(folder, files))


def _checkpoint_json(case: tuple, folder: Path) -> None:
    name, document = case
    path = _write_files(folder, {**SEEDS, name: _dump(document)})
    store.verify(path)
    _load_unchecked(path)


def _settings(document: Any, folder: Path) -> None:
    (folder / "config.yaml").write_bytes(_yaml(document))
    from_dict(store.load_settings(folder))


def _index_seeds() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as name:
        from pipelines.index.build import build

        folder = Path(name)
        (folder / "images").mkdir()
        for image in ("a.jpg", "b.jpg"):
            Image.new("RGB", (100, 80)).save(folder / "images" / image)
        (folder / "data.json").write_bytes(_dump(CONTEST))
        build(folder / "data.json", folder / "index")
        return {file.name: file.read_bytes() for file in (folder / "index").iterdir()}


INDEX: dict[str, bytes] = {}


def _index(case: tuple, folder: Path) -> None:
    name, data = case
    (folder / "images").mkdir(exist_ok=True)
    meta = {**json.loads(INDEX["meta.json"]), "root": str(folder / "images")}
    for file, content in {**INDEX, "meta.json": _dump(meta), name: data}.items():
        (folder / file).write_bytes(content)
    if not index_store.is_index(folder):
        return
    index = index_store.load(folder)
    for row in range(min(len(index), 3)):
        index.path(row), index.polygons(row), index.ignore(row), index.texts(row)


def _foreign_seeds() -> dict[str, bytes]:
    model, _ = _trained()
    made = {}
    for name, value in (
        ("plain", model.state_dict()),
        ("nested", {"state_dict": model.state_dict(), "epoch": 3, "o": [1]}),
    ):
        for new in (True, False):
            file = io.BytesIO()
            torch.save(value, file, _use_new_zipfile_serialization=new)
            made[f"{name}{new}"] = file.getvalue()
    return made


def _foreign(case: tuple, folder: Path) -> None:
    _, data = case
    (folder / "f.pt").write_bytes(data)
    (folder / "o.safetensors").unlink(missing_ok=True)
    import_file(folder / "f.pt", folder / "o.safetensors", [])


# ---- images


def _image_seeds() -> dict[str, bytes]:
    noise = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
    image, made = Image.fromarray(noise), {}
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a text"
    for name, format, options in (
        ("a.jpg", "JPEG", {"exif": exif, "quality": 80}),
        ("p.jpg", "JPEG", {"progressive": True, "exif": exif}),
        ("r.jpg", "JPEG", {"restart_marker_blocks": 1}),
        ("a.png", "PNG", {"exif": exif}),
        ("a.tif", "TIFF", {"exif": exif}),
        ("a.webp", "WEBP", {"exif": exif}),
        ("a.bmp", "BMP", {}),
        ("a.ppm", "PPM", {}),
        ("a.gif", "GIF", {}),
    ):
        file = io.BytesIO()
        image.save(file, format, **options)
        made[name] = file.getvalue()
    return made


def _image(case: tuple, folder: Path) -> None:
    name, data = case
    path = folder / name
    path.write_bytes(data)
    with pixel_limit(10_000_000):
        header = read_header(path, Limits(pixels=10_000_000))
    assert header.problem or 0 < header.width * header.height <= 10_000_000
    if is_jpeg(data):
        scan_markers(data)


def _manifest() -> dict:
    return json.loads(SEEDS["manifest.json"])


def targets() -> list[Target]:
    """All of them; building the seeds takes a second."""
    SEEDS.update(_checkpoint_seeds())
    INDEX.update(_index_seeds())
    every_key = sorted(keys())
    setting = st.tuples(
        st.sampled_from([*every_key, "x", "models", ""]), st.one_of(SCALARS.map(str), CELL, NASTY.map(str))
    )
    items = st.lists(st.one_of(setting.map("=".join), st.sampled_from(TEXTS), st.text(max_size=12)), max_size=4)
    flags = [
        "--budget",
        "--agents",
        "--sweep",
        "--seed",
        "--timeout",
        "--executor",
        "--baseline",
        "--method",
        "--dry-run",
    ]
    argv = st.lists(
        st.one_of(st.sampled_from(flags), CELL, st.tuples(st.sampled_from(flags), CELL).map("=".join)), max_size=6
    )
    whole = dataclasses.asdict(load_config(["preset=demo"])[0])  # all 150 keys take OmegaConf 30 ms
    config = {name: whole[name] for name in ("name", "seed", "data", "eval")} | {
        "models": {"head": whole["models"]["head"]}
    }
    states = st.tuples(st.just("state.json"), near([STATE]))
    manifests = st.tuples(st.just("manifest.json"), near([_manifest()]))
    formats = ["auto"] * 20 + list(FORMATS)

    def only_bytes(pair: tuple, _: Any) -> bytes:
        return pair[1]

    def shape_source(pair: tuple, chance: Any) -> tuple:
        return pair, chance.choice(formats), chance.randrange(4)

    def shape_label(pair: tuple, chance: Any) -> tuple:
        return pair, chance.choice(["auto"] * 4 + list(TEXT_FORMATS))

    def shape_checkpoint(pair: tuple, chance: Any) -> tuple:
        return pair, chance.random() < 0.3

    polygon = st.lists(st.tuples(COORDINATE, COORDINATE), max_size=8)
    pages = st.tuples(st.lists(polygon, max_size=6), st.booleans(), st.integers(1, 5000), st.integers(1, 5000))
    return [
        Target("contest", lambda: near([CONTEST]), _json_file, 2),
        Target("coco", lambda: near([COCO]), _json_file, 2),
        Target("coco-text", lambda: near([COCO_TEXT]), _json_file, 2),
        Target("labelme", lambda: near([LABELME]), _json_file, 2),
        Target("tools", lambda: near(list(fuzz_json.WHOLE.values())), _json_file, 4),
        Target("page files", lambda: near([LABELME, *fuzz_json.PAGES.values()]), _page_file, 3),
        Target("json lines", lambda: near(list(fuzz_json.LINES.values())), _json_line, 2),
        Target(
            "paddle",
            lambda: (
                near([WORDS])
                .map(lambda w: ("paddle", f"a.jpg\t{json.dumps(w)}\n".encode()))
                .map(lambda pair: (pair, "auto", 0))
            ),
            _any_file,
            2,
        ),
        Target("annotation bytes", lambda: damaged(_annotation_seeds(), shape_source), _any_file, 8),
        Target("label bytes", lambda: damaged(_label_seeds(), shape_label), _label_file, 5),
        Target("xml", lambda: damaged({"cvat": CVAT, **XML_PAGES}, shape_label), _xml_file, 3),
        Target(
            "id list", lambda: st.tuples(st.lists(ID, max_size=5), st.sampled_from(["\n", "\r\n", "\r"])), _id_list, 2
        ),
        Target("line parsers", lambda: st.tuples(ID, st.lists(LINE, max_size=6), NASTY), _parsers, 2),
        Target("clean", lambda: pages, _clean),
        Target("overrides", lambda: items, _override, 1.5),
        Target("search flags", lambda: argv, _options, 0.5),
        Target("preset", lambda: near([config]).map(_yaml), _preset, 0.6),
        Target("preset bytes", lambda: damaged(_preset_seeds(), only_bytes), _preset),
        Target("sweep", lambda: near([SWEEP, {**SWEEP, "method": "random"}]).map(_yaml), _sweep, 0.3),
        Target("sweep bytes", lambda: damaged(_sweep_seeds(), only_bytes), _sweep),
        Target("table", lambda: near([[line.split(",") for line in TABLE.splitlines()]]).map(_rows), _table),
        Target("table bytes", lambda: damaged({"t": TABLE.encode()}, only_bytes), _table, 3),
        Target(
            "ledger", lambda: near([EVENTS]).map(lambda e: _lines(e) if isinstance(e, list) else _dump(e)), _ledger, 2
        ),
        Target("ledger bytes", lambda: damaged({"l": _lines(EVENTS)}, only_bytes), _ledger, 4),
        Target("small files", lambda: damaged({"m": _lines(EVENTS)}), _small_files, 1),
        Target("checkpoint json", lambda: st.one_of(states, manifests), _checkpoint_json, 0.6),
        Target("checkpoint yaml", lambda: near([config]), _settings, 0.4),
        Target("checkpoint bytes", lambda: damaged(SEEDS, shape_checkpoint), _checkpoint_bytes, 4),
        Target("index bytes", lambda: damaged(INDEX), _index, 3),
        Target("foreign weights", lambda: damaged(_foreign_seeds()), _foreign, 3),
        Target("images", lambda: damaged(_image_seeds()), _image, 10),
    ]
