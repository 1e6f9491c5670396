"""What all ranks know of training pages that cannot be read: gathered once an epoch, written to the run folder."""

import json
import logging
from pathlib import Path

from engine import distributed
from engine.config import Config
from engine.distributed import Ranks
from pipelines.index import ConcatIndex
from pipelines.quarantine import paths_of, refuse_above

logger = logging.getLogger(__name__)

FILE = "bad_pages.json"


def settle(folder: Path, pages: ConcatIndex, config: Config, ranks: Ranks) -> int:
    """Gathers the bad training pages of all ranks and rewrites `folder/bad_pages.json` (path -> what is wrong).

    Call it on every rank at the same place, outside the steps: it waits for the slowest. In an epoch a rank sees its
    own share of the pages, so only here the share that may be bad is judged on all of them.

    Returns:
        number of bad pages, the same on every rank.

    Raises:
        UserError: more than data.max_bad_share, on every rank alike.
    """
    for found in distributed.gather_objects(pages.bad):
        for row, reason in found.items():
            pages.bad.setdefault(row, reason)
    bad = paths_of(pages, dict(sorted(pages.bad.items())))
    if ranks.main and bad:
        try:
            (folder / FILE).write_text(json.dumps(bad, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:  # they were named on stderr; a full disk ends no training
            logger.warning("%s cannot be written: %s", folder / FILE, error.strerror)
    refuse_above(config.data.max_bad_share, len(pages), bad)
    return len(bad)
