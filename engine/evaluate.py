"""How good a detector is on annotated pages: CLEval's recall, precision and H-mean.

    python -m engine.evaluate checkpoint=runs/NAME data.val=PATH [output=FILE.json] [--json] [section.key=value ...]

`checkpoint` is a run folder (its best checkpoint, else its last), a checkpoint, or the ensemble.yaml that
engine.ensemble wrote; --checkpoint PATH and PATH alone name it too. Its own settings are used; settings given here
override them, e.g. `post.bin_thresh=0.2`.

One JSON object is printed, with and without --json, and written to `output` if that is given. A page that cannot be
read ends the command. Under torchrun the ranks share the pages; 1, 2 and 3 ranks give the same H-mean to the last
digit, as sums of whole numbers are all that they exchange.
"""

if not __package__:  # run as a file: our packages are found from the root, not from its own folder
    import sys

    sys.path[0] = __file__.rsplit("/", 2)[0]

import json
from pathlib import Path

from engine import cli, distributed
from engine.data import open_pages, refuse_unjudgeable
from engine.detection.open import checkpoint_of, open_detector
from engine.evaluation.judge import evaluate
from engine.evaluation.workers import worker_pool
from pipelines.errors import UserError


def main(argv: list[str]) -> int:
    """Entry point; see the module docstring."""
    argv = [item for item in argv if item != "--json"]  # as of the other commands; this one prints nothing else
    named, settings, extras = checkpoint_of(argv, {"output": ""}, __doc__)
    try:
        opened = open_detector(named, settings)
        config, ranks = opened.config, opened.ranks
        if not config.data.val:
            raise UserError("data.val=PATH is missing: name the pages to evaluate on")
        if extras["output"]:
            Path(extras["output"]).parent.mkdir(parents=True, exist_ok=True)  # before the work, not after it
        pages = open_pages(config, config.data.val, ranks)
        refuse_unjudgeable(pages, f"data.val={','.join(config.data.val)}")
        with worker_pool(config.eval.workers) as pool:
            result = evaluate(opened.load(), pages, config, ranks, pool=pool, refuse_bad=True)
        assert result is not None  # nothing cuts it off
        if ranks.main:
            told = {**result.scores, "checkpoint": str(opened.path), "protocol": config.eval.protocol}
            report = json.dumps(told, indent=1)
            print(report)
            if extras["output"]:
                Path(extras["output"]).write_text(report + "\n")
    finally:
        distributed.stop()
    return 0


if __name__ == "__main__":
    cli.run(main)
