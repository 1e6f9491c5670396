"""CLEval: character-level evaluation of text detection (Baek et al. 2020, arXiv:2006.06244), counts and H-mean.

Every text is cut into characters with a centre each. A detection matches a text when it holds at least one of its
centres and enough of its own area lies on texts; then

    recall    = max(0, hit - penalty_recall) / chars_gt          each further detection of a split text costs 1
    precision = max(0, hit - penalty_precision) / chars_pred     each further text of a merging detection costs 1
    hmean     = 2 recall precision / (recall + precision)

with hit = character centres inside a matched detection. Two protocols:

    official  equal, count for count, to the `cleval` package 0.1.1 under numpy 2: QUAD where all polygons of the page
              have four vertices, POLY otherwise. Needs the texts.
    contest   the fork in the baseline of the receipt contest: polygons with vertices cut to integers, the first 500
              detections, no texts (lengths from the aspect ratio), the mean over the pages (hmean_macro) reported. The
              baseline rounds both texts' and detections' coordinates to integers before it calls its metric.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engine.evaluation.characters import centres, false_chars, pseudo_lengths
from engine.evaluation.geometry import Shapes, inside, near_pairs, overlap_areas, without
from pipelines.errors import UserError

PROTOCOLS = ("official", "contest")
# Share of a detection that must lie on texts; compared in float32, as the reference does.
AREA_PRECISION = np.float32(0.3)
MAX_PREDICTIONS = 500  # contest: later detections are not looked at
COUNTS = (
    "images",
    "chars_gt",  # characters of the texts that are not ignored
    "chars_pred",  # centres in matched detections, repeats included, plus chars_false
    "chars_false",  # what unmatched detections cost
    "chars_hit",
    "penalty_recall",
    "penalty_precision",
    "splits",  # texts with several detections
    "merges",  # detections with several texts
    "overlaps",  # repeats: centres hit a second time
)
SCORES = ("recall", "precision", "hmean")
_WORD = 2**26  # a page's score is kept in two integers of 26 bits each

Flags = Sequence[bool] | np.ndarray


@dataclass(frozen=True)
class PageResult:
    """One page.

    Attributes:
        counts: COUNTS -> int.
        recall, precision, hmean: 0..1.
        gt_status: for each text: matched, split (several detections), merged (its detection has several texts),
            missed, ignored, or skipped (contest: fewer than 4 vertices). Split and merged at once: split.
        pred_status: for each detection: matched, false_positive, dont_care, or skipped (contest).
        gt_chars: None unless asked for: (G, 3) int64, of each text its characters, those hit, and its penalty; 0 where
            ignored or skipped. The sums are chars_gt, chars_hit and penalty_recall.
        pred_chars: None unless asked for: (D, 3) int64, of each detection what chars_pred counts of it, the centres
            that it hits and no detection before it does, and its penalty. The sums are chars_pred, chars_hit and
            penalty_precision.
    """

    counts: dict[str, int]
    recall: float
    precision: float
    hmean: float
    gt_status: list[str]
    pred_status: list[str]
    gt_chars: np.ndarray | None = None
    pred_chars: np.ndarray | None = None


class CLEval:
    """Sums CLEval over pages. The sums do not depend on the order of pages, nor on how ranks share them.

    Raises:
        UserError: the protocol is neither official nor contest.
    """

    def __init__(self, protocol: str = "official") -> None:
        _check_protocol(protocol)
        self.protocol = protocol
        self._sums = [0] * (len(COUNTS) + 2 * len(SCORES))

    def add(self, page: PageResult) -> None:
        """Adds a page that `evaluate_page` has scored with the same protocol."""
        words = [w for name in SCORES for w in divmod(round(getattr(page, name) * _WORD**2), _WORD)]
        self._sums = [a + b for a, b in zip(self._sums, [*page.counts.values(), *words], strict=True)]

    def compute(self, select: str = "micro") -> dict[str, float]:
        """recall, precision, hmean (micro: of the summed counts), *_macro (mean over pages), COUNTS; 0 if empty.

        And `score`, the one number by which detectors are ranked: the H-mean that `select` (eval.select) names.
        """
        counts = dict(zip(COUNTS, self._sums))
        result: dict[str, float] = dict(zip(SCORES, _scores(counts)))
        words = self._sums[len(COUNTS) :]
        for i, name in enumerate(SCORES):
            total = words[2 * i] * _WORD + words[2 * i + 1]
            result[f"{name}_macro"] = total / (_WORD**2 * max(counts["images"], 1))
        return result | counts | {"score": result[key_of("hmean", select)]}

    def state(self) -> np.ndarray:
        """(16,) float64 of integers: add the states of all ranks, then `from_state`. Exact up to 2^27 pages."""
        return np.array(self._sums, np.float64)

    @classmethod
    def from_state(cls, protocol: str, vector: np.ndarray) -> "CLEval":
        """The metric whose `state()` is `vector`.

        Raises:
            ValueError: wrong length, or not integers.
        """
        metric = cls(protocol)
        vector = np.asarray(vector, np.float64)
        if vector.shape != (len(metric._sums),) or not (vector == np.rint(vector)).all():
            raise ValueError(f"state must be ({len(metric._sums)},) whole numbers, got shape {vector.shape}: {vector}")
        metric._sums = [int(v) for v in vector]
        return metric


def key_of(name: str, select: str) -> str:
    """The name under which `CLEval.compute` has a score that eval.select names: hmean, or hmean_macro."""
    return name if select == "micro" else f"{name}_macro"


def selected(scores: Mapping[str, float], select: str) -> dict[str, float]:
    """H-mean, precision and recall that eval.select names: micro (of the summed counts) or macro (mean over pages)."""
    return {name: scores[key_of(name, select)] for name in ("hmean", "precision", "recall")}


def scores_of(results: Iterable[PageResult], protocol: str, select: str) -> dict[str, float]:
    """`CLEval.compute` of pages that were scored with one protocol."""
    metric = CLEval(protocol)
    for result in results:
        metric.add(result)
    return metric.compute(select)


def evaluate_page(
    pred: Sequence[np.ndarray],
    gt: Sequence[np.ndarray],
    texts: Sequence[str] | None = None,
    ignore: Flags | None = None,
    protocol: str = "official",
    characters: bool = False,
) -> PageResult:
    """Matches the detections of one page with its texts.

    Args:
        pred: detections, (n, 2) each, pixels; best first (contest keeps the first 500). Official quads are computed in
            the arrays' own dtype (float32 stays), as the package does; the rest in float64.
        gt: texts, (n, 2) each, pixels, from the top left corner along the reading direction.
        texts: transcription of each text; official needs it for all that are not ignored, contest does not use it.
        ignore: don't-care flag of each text; None: the transcription "###" marks one (official), or none (contest).
        characters: count them for each text and each detection too, which takes a tenth more time.

    Raises:
        UserError: official without transcriptions, or unknown protocol.
        ValueError: coordinates that are not finite, shapes other than (n, 2), lists of different lengths.
    """
    page = relate(pred, gt, texts, ignore, protocol)
    counts, match, dont_care = _counted(page, np.arange(len(page.pred)))
    of_gt = _spread(_gt_status(match, page.ignored), page.gt_kept, "skipped").tolist()
    of_pred = _spread(_pred_status(match, dont_care), page.pred_kept, "skipped").tolist()
    gt_chars = pred_chars = None
    if characters:
        gt_chars, pred_chars = _characters(page, match, dont_care)
        gt_chars, pred_chars = _spread(gt_chars, page.gt_kept, 0), _spread(pred_chars, page.pred_kept, 0)
    return PageResult(counts, *_scores(counts), of_gt, of_pred, gt_chars, pred_chars)


@dataclass(frozen=True)
class Relations:
    """How the texts and the detections of a page lie to one another: G texts, D detections that are looked at."""

    pred: Shapes  # D
    kind: str
    share: np.ndarray  # (G, D) float32 share of the detection's area that lies on the text
    owner: np.ndarray  # (C,) text of every character centre
    centre: np.ndarray  # (H,) character centre and
    detection: np.ndarray  # (H,) detection of every centre that lies in a detection
    chars_gt: int
    chars_false: np.ndarray  # (D,) what a detection costs that matches nothing; -1 = not computed yet
    ignored: np.ndarray  # (G,) bool
    gt_kept: np.ndarray  # bool, of all texts given, those among the G
    pred_kept: np.ndarray  # bool, of all detections given, those among the D


def relate(
    pred: Sequence[np.ndarray],
    gt: Sequence[np.ndarray],
    texts: Sequence[str] | None = None,
    ignore: Flags | None = None,
    protocol: str = "official",
    most: int = MAX_PREDICTIONS,
) -> Relations:
    """The geometry of a page; arguments and errors as `evaluate_page`, and most: detections the contest looks at."""
    _check_protocol(protocol)
    gt_points, gt_counts = vertices(gt, "gt", protocol)
    pred_points, pred_counts = vertices(pred, "pred", protocol)
    ignored = flags(len(gt), texts, ignore, protocol)
    gt_kept, pred_kept = np.ones(len(gt), bool), np.ones(len(pred), bool)
    kind = "contest"
    if protocol == "contest":
        gt_kept, pred_kept = gt_counts >= 4, (pred_counts >= 4) & (np.arange(len(pred)) < most)
    else:
        kind = "quad" if (gt_counts == 4).all() and (pred_counts == 4).all() else "poly"
    gt_shapes = to_shapes(gt_points, gt_counts, gt_kept, kind)
    pred_shapes = to_shapes(pred_points, pred_counts, pred_kept, kind)
    lengths, ignored = lengths_of(gt_shapes, kind, texts, ignored), ignored[gt_kept]
    rows, columns = near_pairs(gt_shapes, pred_shapes)
    owner, xy = centres(gt_shapes, kind, lengths)
    if ignored.any() and not ignored.all():
        _cut_ignored(gt_shapes, ignored)
    share = _area_precision(gt_shapes, pred_shapes, rows, columns)
    centre, detection = _hits(pred_shapes, rows, columns, lengths, xy)
    return Relations(
        pred=pred_shapes,
        kind=kind,
        share=share,
        owner=owner,
        centre=centre,
        detection=detection,
        chars_gt=int(lengths[~ignored].sum()),
        chars_false=np.full(len(pred_shapes), -1),
        ignored=ignored,
        gt_kept=gt_kept,
        pred_kept=pred_kept,
    )


def count_some(page: Relations, which: np.ndarray) -> dict[str, int]:
    """COUNTS of a page as if only some of its detections had been made, in a tenth of the time of `evaluate_page`.

    Args:
        page: of all of them, by `relate`; an official one counts as polygons if any of its shapes is no quad.
        which: (K,) ascending indices into the detections given to `relate`.
    """
    if page.kind == "contest":
        which = which[:MAX_PREDICTIONS]
    return _counted(page, (np.cumsum(page.pred_kept) - 1)[which[page.pred_kept[which]]])[0]


def _check_protocol(protocol: str) -> None:
    if protocol not in PROTOCOLS:
        raise UserError(f"eval.protocol={protocol}: allowed is {', '.join(PROTOCOLS)}")


def _counted(page: Relations, which: np.ndarray) -> tuple[dict[str, int], np.ndarray, np.ndarray]:
    """COUNTS of the page with K of its D detections, (G, K) bool matches, (K,) bool detections that do not matter."""
    share, owner, centre, detection = page.share, page.owner, page.centre, page.detection
    if len(which) < len(page.pred):
        place = np.full(len(page.pred), -1)
        place[which] = np.arange(len(which))
        left = place[detection] >= 0
        share, centre, detection = share[:, which], centre[left], place[detection[left]]
    held = np.bincount(owner[centre] * len(which) + detection, minlength=share.size).reshape(share.shape)
    dont_care = _dont_care(share, held, page.ignored)
    match = _pairs(share, held, ~page.ignored, ~dont_care)
    kept = match[owner[centre], detection]
    found = np.zeros(len(owner), bool)
    found[centre[kept]] = True
    hits, hit = int(kept.sum()), int(found.sum())
    per_gt, per_pred = match.sum(1), match.sum(0)
    false = which[(per_pred == 0) & ~dont_care]
    new = false[page.chars_false[false] < 0]
    page.chars_false[new] = false_chars(page.pred, page.kind, new)
    chars_false = int(page.chars_false[false].sum())
    counts = {
        "images": 1,
        "chars_gt": page.chars_gt,
        "chars_pred": hits + chars_false,
        "chars_false": chars_false,
        "chars_hit": hit,
        "penalty_recall": int(np.maximum(per_gt - 1, 0).sum()),
        "penalty_precision": int(np.maximum(per_pred - 1, 0).sum()),
        "splits": int((per_gt > 1).sum()),
        "merges": int((per_pred > 1).sum()),
        "overlaps": hits - hit,
    }
    return counts, match, dont_care


def _characters(page: Relations, match: np.ndarray, dont_care: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(G, 3) and (D, 3) of PageResult, once `_counted` has counted the page with all its detections."""
    per_gt, per_pred = match.sum(1), match.sum(0)
    kept = match[page.owner[page.centre], page.detection]
    centre, detection = page.centre[kept], page.detection[kept]
    lengths, found = np.bincount(page.owner, minlength=len(match)), np.unique(centre)
    by = np.zeros(len(page.owner), np.int64)  # the detection that hits a centre first: written backwards
    by[centre[::-1]] = detection[::-1]
    hit = np.bincount(page.owner[found], minlength=len(match))
    gt_chars = np.stack([np.where(page.ignored, 0, lengths), hit, per_gt - 1], 1)
    taken, false = np.bincount(detection, minlength=len(per_pred)), (per_pred == 0) & ~dont_care
    taken[false] = page.chars_false[false]
    pred_chars = np.stack([taken, np.bincount(by[found], minlength=len(per_pred)), per_pred - 1], 1)
    return np.maximum(gt_chars, 0), np.maximum(pred_chars, 0)


def _gt_status(match: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """(G,) words for PageResult; a text that is both split and merged is split."""
    per_gt = match.sum(1)
    status = np.where(per_gt > 0, "matched", "missed").astype("U16")
    status[match[:, match.sum(0) > 1].any(1)] = "merged"
    status[per_gt > 1] = "split"
    status[ignored] = "ignored"
    return status


def _pred_status(match: np.ndarray, dont_care: np.ndarray) -> np.ndarray:
    """(D,) words for PageResult."""
    status = np.where(match.any(0), "matched", "false_positive").astype("U16")
    status[dont_care] = "dont_care"
    return status


def _cut_ignored(gt: Shapes, ignored: np.ndarray) -> None:
    """A don't-care area ends where a text begins."""
    rows, columns = near_pairs(gt, gt)
    pairs = ignored[rows] & ~ignored[columns]
    rows, columns = rows[pairs], columns[pairs]
    touching = overlap_areas(gt, gt, rows, columns) > 0
    for row in np.unique(rows[touching]):
        without(gt, row, columns[touching & (rows == row)])


def _area_precision(gt: Shapes, pred: Shapes, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Share of each detection's area that lies on each text, (G, D) float32; 0 for detections without area."""
    share = np.zeros((len(gt), len(pred)), np.float32)
    area = pred.areas()[columns]
    rows, columns, area = rows[area > 0], columns[area > 0], area[area > 0]
    share[rows, columns] = overlap_areas(gt, pred, rows, columns) / area
    return share


def _hits(
    pred: Shapes, rows: np.ndarray, columns: np.ndarray, lengths: np.ndarray, xy: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(H,) centre and (H,) detection of every centre that lies in a detection; xy (C, 2) in order of the texts."""
    start = np.cumsum(lengths) - lengths
    repeats = lengths[rows]
    pair = np.repeat(np.arange(len(rows)), repeats)
    centre = np.arange(len(pair)) - np.repeat(np.cumsum(repeats) - repeats, repeats) + start[rows][pair]
    detection = columns[pair]
    found = inside(pred, detection, xy[centre])
    return centre[found], detection[found]


def _dont_care(share: np.ndarray, held: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """(D,) bool: detections with enough area on one don't-care text, or on several whose centres they hold."""
    result = (share[ignored] >= AREA_PRECISION).any(0)
    total = np.zeros(share.shape[1], np.float32)
    for row in set(np.flatnonzero(ignored).tolist()):  # float32 sums in the reference's order, that of a set
        total += np.where(held[row] > 0, share[row], np.float32(0))
    return result | (total >= AREA_PRECISION)


def _pairs(share: np.ndarray, held: np.ndarray, valid_gt: np.ndarray, valid_pred: np.ndarray) -> np.ndarray:
    """(G, D) bool: one to one, or one text split over detections, or texts merged by one detection."""
    near = held > 0
    good = near & (share >= AREA_PRECISION)
    alone = (good.sum(1) == 1)[:, None] & (good.sum(0) == 1)  # among all boxes, don't-care ones too
    split = good & valid_pred
    split &= (split.sum(1) > 1)[:, None]
    merge = near & valid_gt[:, None]
    covered = np.where(merge, share, 0).astype(np.float64).sum(0)
    merge &= (merge.sum(0) > 1) & (covered >= 0.3)
    return ((good & alone) | split | merge) & valid_gt[:, None] & valid_pred


def _scores(counts: dict[str, int]) -> tuple[float, float, float]:
    """recall, precision, hmean of summed counts; an empty denominator gives 0."""
    hit, gt, pred = counts["chars_hit"], counts["chars_gt"], counts["chars_pred"]
    recall = max(0, hit - counts["penalty_recall"]) / gt if gt else 0.0
    precision = max(0, hit - counts["penalty_precision"]) / pred if pred else 0.0
    both = recall + precision
    return recall, precision, 2 * recall * precision / both if both else 0.0


def _spread(values: np.ndarray, kept: np.ndarray, other: str | int) -> np.ndarray:
    """Values of the kept polygons, and `other` in the places of those that were left out."""
    result = np.full((len(kept), *values.shape[1:]), other, values.dtype)
    result[kept] = values
    return result


def vertices(polygons: Sequence[np.ndarray], name: str, protocol: str) -> tuple[np.ndarray, np.ndarray]:
    """All vertices (T, 2) and the number of each polygon (P,) int64; float32 only if all arrays are."""
    arrays = [np.asarray(p) for p in polygons]
    least = 3 if protocol == "official" else 0
    for i, array in enumerate(arrays):
        if array.ndim != 2 or array.shape[1] != 2 or array.dtype.kind not in "fiu" or len(array) < least:
            raise ValueError(f"{name}[{i}]: {array.dtype} {array.shape}, expected (n, 2) numbers, n at least {least}")
    if not arrays:
        return np.zeros((0, 2)), np.zeros(0, np.int64)
    points = np.concatenate(arrays)
    if points.dtype != np.float32 or protocol == "contest":
        points = points.astype(np.float64)
    if len(points) and not np.abs(points).max() < 2**30:  # also false for NaN; vertices become int32 in the reference
        bad = next(i for i, a in enumerate(arrays) if not (np.abs(a) < 2**30).all())
        raise ValueError(f"{name}[{bad}]: coordinates must be finite and below 2^30, got {arrays[bad].tolist()}")
    return points, np.array([len(a) for a in arrays], np.int64)


def flags(size: int, texts: Sequence[str] | None, ignore: Flags | None, protocol: str) -> np.ndarray:
    """(G,) bool don't-care flags; checks both lists."""
    for name, values in (("texts", texts), ("ignore", ignore)):
        if values is not None and len(values) != size:
            raise ValueError(f"{name}: {len(values)} values for {size} gt polygons")
    ignored = np.zeros(size, bool)
    if ignore is not None:
        ignored = np.asarray(ignore, bool).reshape(size)
    elif protocol == "official" and texts is not None:
        ignored = np.array([t == "###" for t in texts], bool)
    if protocol == "official" and texts is None and not ignored.all():
        raise UserError("eval.protocol=official needs transcriptions: use data with texts, or eval.protocol=contest")
    return ignored


def to_shapes(points: np.ndarray, counts: np.ndarray, kept: np.ndarray, kind: str) -> Shapes:
    """The polygons that `kept` (P,) bool marks, of vertices (T, 2) and numbers of them (P,); kind: see `Relations`."""
    if not kept.all():
        points, counts = points[np.repeat(kept, counts)], counts[kept]
    if kind == "poly":
        points, counts = _close_triangles(points.astype(np.float64), counts)
    return Shapes(points, counts, exact=kind == "poly")


def _close_triangles(points: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gives each triangle the fourth vertex (x of the first, y of the third), as the reference does."""
    first = (np.cumsum(counts) - counts)[counts == 3]
    fourth = np.stack([points[first, 0], points[first + 2, 1]], 1)
    return np.insert(points, first + 3, fourth, axis=0), np.maximum(counts, 4)


def lengths_of(shapes: Shapes, kind: str, texts: Sequence[str] | None, ignored: np.ndarray) -> np.ndarray:
    """(G,) int64 characters of each text."""
    if kind == "contest":
        return pseudo_lengths(shapes, kind, np.arange(len(shapes)))
    lengths = np.array([len(t) for t in texts] if texts is not None else [0] * len(shapes), np.int64)
    if ignored.any():
        lengths[ignored] = pseudo_lengths(shapes, kind, np.flatnonzero(ignored))
    return lengths
