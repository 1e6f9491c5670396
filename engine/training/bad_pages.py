"""What a run knows of training pages that cannot be read: the same on all ranks, part of every checkpoint.

A row found in an epoch is read again where the epoch has it once more; from the next epoch on no rank reads it, to the
end of the run and over its resumes. So a batch hangs on the state and the files alone, not on ranks, workers, restarts.
"""

import json
import logging
from pathlib import Path

from engine import distributed
from engine.config import Config
from engine.distributed import Ranks
from pipelines.errors import UserError
from pipelines.index.build import ConcatIndex
from pipelines.quarantine import paths_of, refuse_above

logger = logging.getLogger(__name__)

FILE = "bad_pages.json"


def gathered(pages: ConcatIndex, epoch_over: bool) -> list[list]:
    """Brings together what the ranks have found, and at an epoch's end puts it out of use. Call it on every rank.

    Returns:
        [row, file name, what is wrong, not read any more] of every bad row, for `state.json`.
    """
    for found in distributed.gather_objects(pages.bad):
        for row, reason in found.items():
            pages.bad.setdefault(row, reason)
    if epoch_over:
        pages.unread.update(pages.bad)
    return [[row, pages.name(row), reason, row in pages.unread] for row, reason in sorted(pages.bad.items())]


def restore(pages: ConcatIndex, saved: list, source: Path) -> None:
    """Takes over what a checkpoint holds, without rows that are another file here (other data, between two epochs).

    Raises:
        UserError: `saved` is not what `gathered` gives.
    """
    for entry in saved:
        match entry:
            case [int(row), str(name), str(reason), bool(unread)]:
                if 0 <= row < len(pages) and pages.name(row) == name:
                    pages.bad[row] = reason
                    if unread:
                        pages.unread.add(row)
            case _:
                raise UserError(f"{source}: damaged (state.json: bad_pages has {entry!r:.60}); use another checkpoint")


def write_and_judge_share(folder: Path, pages: ConcatIndex, config: Config, ranks: Ranks) -> int:
    """After `gathered`: rewrites `folder/bad_pages.json` (path -> what is wrong) and judges their share of the pages.

    In an epoch a rank sees its own part of the pages, so only here the share is judged on all of them.

    Returns:
        number of bad pages, the same on every rank.

    Raises:
        UserError: more than data.max_bad_share, on every rank alike.
    """
    bad = paths_of(pages, dict(sorted(pages.bad.items())))
    if ranks.main and bad:
        try:
            (folder / FILE).write_text(json.dumps(bad, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:  # they were named on stderr; a full disk ends no training
            logger.warning("%s cannot be written: %s", folder / FILE, error.strerror)
    refuse_above(config.data.max_bad_share, len(pages), bad)
    return len(bad)


def not_compared(bad: int) -> str:
    """What is said of an evaluation in which `bad` pages could not be read."""
    words = f"{bad} validation page{'s' if bad > 1 else ''} cannot be read: this evaluation counts neither for the best"
    return f"{words} nor for trainer.patience; mend the files, or take them out of data.val"
