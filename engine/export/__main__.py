"""A trained detector for elsewhere, and weights from elsewhere.

    python -m engine.export RUN --onnx FILE.onnx [--opset N]      onnxruntime, TensorRT, OpenVINO
    python -m engine.export RUN --onnx FILE.onnx --size HxW       for one size alone, as OpenCV's DNN wants it
    python -m engine.export RUN --rapidocr FOLDER                 RapidOCR: det.onnx and rapidocr.yaml
    python -m engine.export RUN --program FILE.pt2                torch.export
    python -m engine.export RUN --aoti FILE.pt2                   AOTInductor, compiled for this machine
    python -m engine.export RUN --weights FILE.safetensors        plain timm and our decoder and head
    python -m engine.export --import FOREIGN.pt --out FILE.safetensors
    python -m engine.export --import BASELINE.ckpt --out FOLDER   the contest baseline's checkpoint, as a run

RUN, --checkpoint RUN or checkpoint=RUN is a run folder or a checkpoint; averaged weights are taken where there are any.
Several outputs may be asked for at once. Every network is run before its file gets its name: maps within 1e-4 of
PyTorch's and the same quads, on data.val=PAGES, or on built-in pages. Settings of the checkpoint may be overridden
(section.key=value).
"""

if not __package__:  # run as a file: our packages are found from the root, not from its own folder
    import sys

    sys.path[0] = __file__.rsplit("/", 3)[0]

import argparse
import json
from pathlib import Path

from engine import cli
from pipelines.errors import Parser, UserError, printable


def _parser() -> Parser:
    parser = cli.parser("engine.export", __doc__)
    parser.add_argument("items", nargs="*", metavar="RUN", help="run folder or checkpoint; settings section.key=value")
    parser.add_argument("--onnx", type=Path, metavar="FILE", help="ONNX file to write")
    parser.add_argument("--opset", type=int, metavar="N", help="its operator set (default 18)")
    parser.add_argument("--size", metavar="HxW", help="its one size, of one page; default: any size and batch")
    parser.add_argument("--rapidocr", type=Path, metavar="FOLDER", help="folder to write for RapidOCR")
    parser.add_argument("--program", type=Path, metavar="FILE", help="torch.export program to write")
    parser.add_argument("--aoti", type=Path, metavar="FILE", help="AOTInductor package to write; minutes of a core")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="safetensors file to write")
    parser.add_argument("--import", dest="foreign", type=Path, metavar="FILE", help="PyTorch file to take tensors from")
    parser.add_argument("--out", type=Path, metavar="PATH", help="what --import writes")
    return parser


def main(argv: list[str]) -> int:
    args = _parser().parse_intermixed_args(cli.checkpoints(argv))
    settings, paths = cli.split_settings(args.items)
    given = [n for n in ("onnx", "rapidocr", "program", "aoti", "weights") if getattr(args, n)]
    for option in ("opset", "size"):
        if getattr(args, option) is not None and not args.onnx:
            raise UserError(f"--{option} belongs to --onnx")
    args.size = _size(args.size) if args.size is not None else None
    if args.foreign:
        if given or paths:
            raise UserError(f"{(given or paths)[0]}: --import goes with --out and settings alone")
        result = _import(args, settings)
    elif args.out:
        raise UserError(
            "--out belongs to --import; name the output by --onnx, --rapidocr, --program, --aoti, --weights"
        )
    elif not given:
        raise UserError("nothing to write: give --onnx, --rapidocr, --program, --aoti, --weights, or --import")
    elif len(paths) != 1:
        raise UserError("name one run folder or checkpoint" + (f", not {' '.join(paths)}" if paths else ""))
    else:
        result = _export(args, paths[0], settings)
    if args.json:
        print(json.dumps(result))
    return 0


def _size(text: str) -> tuple[int, int]:
    """(height, width) of `640x480`."""
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdecimal() and len(side) < 5 for side in sides):
        raise UserError(f"--size {text}: write HxW, e.g. 640x480")
    height, width = int(sides[0]), int(sides[1])
    if height % 32 or width % 32 or not (height and width):
        raise UserError(f"--size {text}: both sides are multiples of 32, e.g. 640x480")
    return height, width


def _import(args: argparse.Namespace, settings: list[str]) -> dict:
    from engine.export import foreign  # here and below: --help needs no torch

    if not args.out:
        raise UserError("--out is missing: name the file, or for a baseline's checkpoint the folder, to write")
    result = foreign.import_file(args.foreign, args.out, settings)
    if not args.json:
        for row in result["tensors"]:
            print(f"{printable(row['name'])}  {row['shape']} {row['dtype']}")
        for words in result["left_out"]:
            print(f"left out: {printable(words)}")
        if result["notice"]:
            print(printable(result["notice"]))
        print(f"{printable(args.out)}: {len(result['tensors'])} tensors, {result['numbers']} numbers")
    return result


def _export(args: argparse.Namespace, run: str, settings: list[str]) -> dict:
    from engine.export import outputs

    result = outputs.write(args, run, settings)
    if args.json:
        return result
    print(f"{printable(result['checkpoint'])}, compared on {printable(result['pages'])}")
    for row in result["files"]:
        text = f"{printable(row['path'])}: {row['bytes'] / 1e6:.1f} MB"
        if "opset" in row:
            text += f", opset {row['opset']}"
        if "max_abs_diff" in row:
            sizes = ", ".join("x".join(map(str, size)) for size in row["sizes"])
            text += f"; maps differ by at most {row['max_abs_diff']:.1e}, {row['quads']} quads the same ({sizes})"
        if "opencv" in row:
            found = row["opencv_max_abs_diff"]
            said = "cannot run it" if found is None else f"has maps that differ by at most {found:.1e}"
            text += f"; OpenCV {row['opencv']} {said}"
        if "hmean_rapidocr" in row:
            text += f"; H-mean {row['hmean_rapidocr']:.4f} in RapidOCR, {row['hmean_engine']:.4f} in the engine"
        print(text)
    return result


if __name__ == "__main__":
    cli.run(main)
