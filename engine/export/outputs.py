"""What `python -m engine.export RUN` does: writes what is asked for, and compares each network with PyTorch's."""

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

import cv2

from engine.export import check, network, onnx_file, program, rapid, weights
from engine.export.check import Case, compare, draft
from engine.export.network import Exported
from pipelines.errors import UserError
from pipelines.index.build import ConcatIndex

SUFFIXES = {"onnx": (".onnx",), "program": (".pt2",), "aoti": (".pt2",), "weights": (".safetensors",)}


def write(args: argparse.Namespace, given: str, settings: list[str]) -> dict:
    """Writes the files that `args` names, of the run or checkpoint `given`.

    Returns:
        `checkpoint`, `pages` (what was compared on), `files`: a dict for each with kind, path, bytes and figures.

    Raises:
        UserError: wrong arguments, missing packages, a file that exists; a network that differs, which is not kept.
    """
    _prepare(args)
    exported = network.load(given, settings)
    facts = network.description(exported)
    rows: list[dict[str, Any]] = []
    if args.weights:
        with draft(args.weights, SUFFIXES["weights"]) as path:
            count = weights.write(exported, path, facts)
            weights.load(path)
        rows.append({"kind": "weights", "path": str(args.weights), "tensors": count})
    name = ""
    if args.onnx or args.rapidocr or args.program or args.aoti:
        with check.pages_of(exported.config) as (pages, name):
            every = check.cases(exported, pages)
            if args.onnx:
                rows.append(
                    _onnx(args, exported, facts, check.cases(exported, pages, args.size) if args.size else every)
                )
            if args.rapidocr:
                rows.append(_rapidocr(args.rapidocr, exported, facts, every, pages))
            if args.program or args.aoti:
                rows += _programs(args, exported, facts, every)
    for row in rows:
        path = Path(row["path"])
        row["bytes"] = path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.iterdir())
    return {"checkpoint": str(exported.source), "pages": name or "nothing", "files": rows}


def _prepare(args: argparse.Namespace) -> None:
    """Refuses what cannot end well, before the work."""
    for kind, suffixes in SUFFIXES.items():
        if getattr(args, kind):
            check.refuse(getattr(args, kind), suffixes)
    if args.onnx or args.rapidocr:
        onnx_file.need("onnx", "onnxscript", "onnxruntime", *(["rapidocr"] if args.rapidocr else []))
    least, most = onnx_file.OPSETS
    if args.opset is not None and not least <= args.opset <= most:
        raise UserError(f"--opset {args.opset}: torch's exporter writes {least} to {most}")
    if args.rapidocr and args.rapidocr.exists() and (not args.rapidocr.is_dir() or any(args.rapidocr.iterdir())):
        raise UserError(f"--rapidocr {args.rapidocr}: exists already; name a new or empty folder")
    if args.aoti:
        compiler = os.environ.get("CXX", "g++")  # Inductor's choice
        if shutil.which(compiler) is None:
            raise UserError(f"--aoti: there is no {compiler}, which AOTInductor compiles with; install it, or set CXX")


def _onnx(args: argparse.Namespace, exported: Exported, facts: dict, every: list[Case]) -> dict:
    opset = args.opset or onnx_file.OPSET
    if args.size:
        sides = f"(1, 3, {args.size[0]}, {args.size[1]})"
        facts = facts | {"input": facts["input"].replace("(N, 3, H, W)", sides).partition(";")[0]}
        facts |= {"output": facts["output"].replace("(N, 1, H, W)", sides.replace("3", "1", 1))}
        facts |= {"image_size": json.dumps(args.size)}
    with draft(args.onnx, SUFFIXES["onnx"]) as path:
        onnx_file.write(exported.module, path, facts, opset, args.size)
        figures = compare(onnx_file.open_model(path), every, exported.config, args.onnx)
        if args.size:
            figures |= {"opencv": cv2.__version__, "opencv_max_abs_diff": onnx_file.opencv_difference(path, every[0])}
    return {"kind": "onnx", "path": str(args.onnx), "opset": opset, **figures}


def _programs(args: argparse.Namespace, exported: Exported, facts: dict, every: list[Case]) -> list[dict]:
    traced, rows = program.trace(exported.module), []
    for kind, run in (("program", program.open_program), ("aoti", program.open_package)):
        target = getattr(args, kind)
        if not target:
            continue
        with draft(target, SUFFIXES[kind]) as path:
            if kind == "program":
                program.write(traced, path, facts)
            else:
                program.write_package(traced, path)
            rows.append({"kind": kind, "path": str(target), **compare(run(path), every, exported.config, target)})
    return rows


def _rapidocr(folder: Path, exported: Exported, facts: dict, every: list[Case], pages: ConcatIndex) -> dict:
    """RapidOCR's two files; its maps from its own input are compared, then all of RapidOCR is run on the pages."""
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        draft.mkdir(parents=True)
        onnx_file.write(rapid.network(exported.module), draft / rapid.MODEL, {**facts, **rapid.FACTS})
        run = onnx_file.open_model(draft / rapid.MODEL)
        figures = compare(lambda image: run(rapid.as_theirs(image)), every, exported.config, folder / rapid.MODEL)
        rapid.write_settings(draft, folder, exported.config)
        figures |= rapid.judge(exported, draft, pages)
        draft.rename(folder)  # over an empty folder too
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return {"kind": "rapidocr", "path": str(folder), "opset": onnx_file.OPSET, **figures}
