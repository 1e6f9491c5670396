"""Our detector beside PP-OCRv6 small (as shipped by RapidOCR): CLEval and images/s on the same pages and cores.

    python -m bench.rapidocr_receipts SROIE/val.txt checkpoint=runs/NAME [turns=3] [rows=all] [section.key=value ...]

The rows: PP-OCRv6 small with RapidOCR's defaults; the same with other sizes of its input (the best of them is the best
on these very pages); our checkpoint in this engine; our checkpoint in RapidOCR, by the files of `engine.export
--rapidocr`. `rows=quick` leaves the other sizes out.

CLEval is of eval.protocol, as in `engine.evaluate`. images/s are from the file to its boxes, without CLEval. RapidOCR
has no batches and takes page after page. The rows take turns, and the median of the turns is given. The cores are those
that the process may use (`taskset -c 0,1 python -m bench...`).
"""

if not __package__:  # run as a file: our packages are found from the root, not from its own folder
    import sys

    sys.path[0] = __file__.rsplit("/", 2)[0]

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from engine import cli
from engine.config.load import canvas_hw
from engine.data import open_pages
from engine.detection.open import checkpoint_of
from engine.detection.pages import detect_pages
from engine.detection.postprocess import Detections
from engine.evaluation.judge import scores_by
from engine.export import onnx_file, rapid
from engine.export.network import HERE, Exported, description, load
from pipelines.errors import UserError
from pipelines.index.build import ConcatIndex

# limit_type, limit_side_len of PP-OCRv6 small; RapidOCR's default is min 736, its max_side_len of 2000 comes first.
SIZES = (("max", 960), ("max", 1280), ("min", 960))
Run = Callable[[], Iterator[tuple[int, Detections]]]


def in_rapidocr(ocr: object, pages: ConcatIndex) -> Run:
    """One pass of a RapidOCR over the pages."""
    return lambda: ((row, rapid.detect(ocr, str(pages.path(row)))) for row in range(len(pages)))


def runs(exported: Exported, pages: ConcatIndex, folder: Path, sizes: bool) -> dict[str, Run]:
    """{name of a row: one pass over all pages}."""
    config, model = exported.config, exported.module.detector
    onnx_file.write(rapid.network(exported.module), folder / rapid.MODEL, description(exported))
    rapid.write_settings(folder, folder, config)
    canvas = canvas_hw(config)
    model = model.to(memory_format=torch.channels_last)
    rows = {"PP-OCRv6 small, RapidOCR's defaults (min 736)": in_rapidocr(rapid.detector(), pages)}
    for kind, side in SIZES if sizes else ():
        ocr = rapid.detector(limit_type=kind, limit_side_len=side)
        rows[f"PP-OCRv6 small, {kind} {side}"] = in_rapidocr(ocr, pages)
    rows[f"ours in the engine, canvas {canvas[0]}x{canvas[1]}"] = lambda: detect_pages(model, pages, config, HERE)
    ours = rapid.det_settings(config)
    rows[f"ours in RapidOCR, {ours['limit_type']} {ours['limit_side_len']}"] = in_rapidocr(
        rapid.detector(folder), pages
    )
    return rows


def main(argv: list[str]) -> int:
    """Entry point; see the module docstring."""
    sources = [item for item in argv if "=" not in item and not item.startswith("-")]
    rest = [item for item in argv if item not in sources]
    named, settings, own = checkpoint_of(rest, {"turns": "3", "rows": "all"}, __doc__)
    if not sources:
        raise UserError("name the annotated pages, e.g. SROIE/val.txt")
    if not own["turns"].isdigit() or not int(own["turns"]):
        raise UserError(f"turns={own['turns']}: expected a whole number above 0")
    onnx_file.need("onnx", "onnxruntime", "onnxscript", "rapidocr")
    exported = load(named, settings)
    config = exported.config
    pages = open_pages(config, sources, HERE)
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(config.trainer.threads or cores)
    with tempfile.TemporaryDirectory() as folder:
        every = runs(exported, pages, Path(folder), own["rows"] == "all")
        print(f"{len(pages)} pages, {cores} cores, CLEval {config.eval.protocol}, {own['turns']} turns", flush=True)
        times: dict[str, list[float]] = {name: [] for name in every}
        scores = {}
        for turn in range(int(own["turns"])):
            for name, run in every.items():
                if not turn:
                    next(iter(run()))  # sessions and pipelines are made at the first page
                start = time.perf_counter()
                found = list(run())
                times[name].append(len(pages) / (time.perf_counter() - start))
                scores[name] = scores_by(config.eval, found, pages)
    print(f"{'':<48}{'H-mean':>8}{'recall':>8}{'prec.':>8}{'macro H':>9}{'images/s':>10}  (least to most)")
    for name, s in scores.items():
        speeds = times[name]
        print(f"{name:<48}{s['hmean']:8.4f}{s['recall']:8.4f}{s['precision']:8.4f}{s['hmean_macro']:9.4f}"
              f"{statistics.median(speeds):10.2f}  ({min(speeds):.2f} to {max(speeds):.2f})")  # fmt: skip
    return 0


if __name__ == "__main__":
    cli.run(main)
