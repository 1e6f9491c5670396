"""Pages that cannot be read: what is wrong with each, and the number of them above which a run stops."""

import dataclasses
import logging
import math
import os

import numpy as np

from pipelines.errors import UserError
from pipelines.images.jpeg import decoder
from pipelines.index.pages import Pages
from pipelines.source import open_file, read_page

logger = logging.getLogger(__name__)

NAMED = 20  # pages listed when a run stops
UNDECODABLE = "cannot be decoded"


@dataclasses.dataclass(frozen=True)
class BadPages:
    """Pages that a loader cannot read: what becomes of one, and which are known.

        bad = BadPages("left out")
        ...                                  # pages are loaded with it
        bad.known                            # {17: "empty file"}: row -> what is wrong with it

    Args:
        on_bad_page: what becomes of one, in words for the warning; "" = the first one is refused.
        known: rows that are not read any more. A row that is found is added, before its batch is handed out.
        named: rows that an earlier loader has warned of, and why: the same is not said again. Added to as well.
    """

    on_bad_page: str = ""
    known: dict[int, str] = dataclasses.field(default_factory=dict)
    named: dict[int, str] = dataclasses.field(default_factory=dict)


def problem(index: Pages, row: int) -> str:
    """Why a page's file cannot be taken, in words; looks at the file."""
    expected = index.num_bytes(row)
    try:
        with open_file(index.path(row)) as file:
            actual = os.fstat(file.fileno()).st_size
            file.read(1)
    except OSError as error:
        return error.strerror or "cannot be opened"
    if actual == 0:
        return "empty file"
    if actual != expected:
        return f"has {actual} bytes but was indexed with {expected}"
    # Some pages are decoded where they are read (pipelines.images.plain).
    return "could not be read a moment ago" if len(read_page(index, row)) else UNDECODABLE


class Ledger:
    """Writes down the bad pages of an index: each is named in a warning, the same fault only once.

    `share` of the pages, rounded up, may be bad; 0 refuses the first.
    """

    def __init__(self, index: Pages, bad: BadPages, share: float, rank: int) -> None:
        self.index, self.bad, self.share, self.rank = index, bad, share, rank

    def add(self, row: int, reason: str) -> None:
        """Names a row that is not known yet; raises UserError when there are now more than the share."""
        bad = self.bad
        if row in bad.known:
            return
        said, bad.known[row], bad.named[row] = bad.named.get(row) == reason, reason, reason
        if self.share and not said:
            logger.warning("rank %d: %s: %s; %s", self.rank, self.index.path(row), reason, bad.on_bad_page)
        if self.share < 1:  # else all may be bad, and listing them each time would take the square of their number
            refuse_above(self.share, len(self.index), paths_of(self.index, bad.known))


def paths_of(index: Pages, reasons: dict[int, str]) -> dict[str, str]:
    """Path -> reason of bad rows."""
    return {str(index.path(row)): reason for row, reason in reasons.items()}


def refuse_above(share: float, pages: int, bad: dict[str, str]) -> None:
    """Raises UserError, naming the first NAMED of `bad` (path -> reason), if it is more than `share` of the pages."""
    if len(bad) <= math.ceil(share * pages - 1e-9):  # 0.07 * 100 is a little above 7
        return
    listed = ", ".join(f"{path} ({reason})" for path, reason in list(bad.items())[:NAMED])
    more = f" and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
    limit = f", above data.max_bad_share={share:g}" if share else ""
    mend = "mend the files, or take them out of the data and build the index again"
    raise UserError(f"{len(bad)} of {pages} pages cannot be read{limit}: {listed}{more}; {mend}")


def undecodable(pages: list[tuple[int, np.ndarray]], device_id: int | None) -> list[int]:
    """Rows of the pages (row, encoded bytes) that DALI cannot decode; one by one, so only for batches that failed."""
    bad, pipeline = [], None
    for row, encoded in pages:
        try:
            # A pipeline is of no use after an error.
            pipeline = pipeline or decoder(device_id)
            pipeline.feed_input("data", [encoded])
            pipeline.run()
        except RuntimeError:
            bad.append(row)
            pipeline = None
    return list(dict.fromkeys(bad))
