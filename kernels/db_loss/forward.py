"""Forward kernels of the DB loss: every sum in one reading of the maps, then the K worst negatives by a radix search.

Formulas: `reference.py`. A negative's loss rises with its logit x, so the K worst negatives are those with the K
largest keys: key = the bits of float32 x, turned so that unsigned order is the order of x (-0 counts as 0). The K-th
largest is found digit by digit from the top; a digit's histogram counts the negatives that share the digits known.

    logits      digits (bits of the key)   passes   bytes a pixel, paper mode, bfloat16 threshold map
    bfloat16    8 + 8                      2        9 + 4         = 13
    float16     9 + 10 (its 19 that vary)  2        9 + 4         = 13
    float32     11 + 11 + 10               3        13 + 6 + 6    = 25

The last digit's bins hold one value of x each, so what they add to the loss follows from their counts. 16 pages of
1280 x 1280 in bfloat16: 13 bytes x 26.2 M pixels = 341 MB, at least 79 us at 4.3 TB/s. Baseline mode reads no mask.

Grids. _sums_kernel and _refine_kernel: 6 and 4 programs an SM stride over tiles of 2048 pixels; each keeps its sums (8
pixels a lane in float32, beyond that in float64) and its histogram in registers, writes the sums to its own column and
adds the histogram to the common one (relaxed integer atomics: any order gives the same counts). _choose_kernel and
_finish_kernel: one program, which adds the columns up in a fixed order. Results do not depend on scheduling. Pass 1 has
80 instructions a pixel: at 1.7 GHz and 132 SMs they take 73 us if every scheduler issues one each clock, more than its
9 bytes (55 us). Neither was measured.

Worked example, bfloat16, negatives x = 3, 1.5, 1.25, 1.25, -1 and one positive, negative_ratio 3: K = 3. The keys'
leading 8 bits (sign, 7 of the exponent) hold one negative in the bin of [2, 8), three in [0.5, 2), one in (-2, -0.5]:
the third largest is in [0.5, 2), with one above. The bin's 256 values are counted in the second pass, which also sums
the losses of the positive and of 3. The counts then give one place to 1.5 and the last to 1.25: its loss is added once,
cut = 1.25, and tie = (3 - 2) / 2 = 0.5, as two negatives are there.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import runtime
from kernels.db_loss.pixels import (
    LANES,
    TILE,
    WARPS,
    cross_entropy,
    lay_out,
    load_band,
    load_classes,
    load_logits,
    sigmoid,
    tile_pixels,
)
from kernels.db_loss.reference import EPS, Maps, Stats, Weights

# (lowest bit, bins) of each digit of the key. Few bins are cheap: a lane holds bins / 256 counters, and Triton 3.6
# counts with ballots, 326 instructions a pixel in pass 1 with 2048 bins, 142 with 256 (3.8, with atomics in shared
# memory: 83 and 80)
DIGITS = {
    torch.bfloat16: ((24, 256), (16, 256)),
    torch.float16: ((23, 512), (13, 1024)),
    torch.float32: ((21, 2048), (10, 2048), (0, 1024)),
}
SUMS_PER_SM, REFINE_PER_SM = 6, 4  # 2 or 3 of the former are there at once, 64 to 95 registers a lane, 4 of the latter
# rows of the table of partial sums, one column a program; counts are exact in float64
OVERLAP, BINARY, ERROR, POSITIVES, BAND = (tl.constexpr(row) for row in range(5))
ROWS = 5
EPSILON = tl.constexpr(EPS)


def forward(maps: Maps, weights: Weights) -> tuple[Tensor, Tensor]:
    """((4,) float32 total, prob, thresh, binary; (7,) float64 `reference.Stats`), never waiting for the device.

    maps: (N, H, W), logits of one of `pixels.DTYPES`, strided as they come; the other maps contiguous. Masks None:
    baseline mode. Beyond the results it allocates under 100 KB, and copies of logits that `lay_out` cannot walk.
    """
    pages = lay_out(maps.prob_logits, maps.thresh_logits)
    masked, device = maps.shrink_mask is not None, pages.x.device
    shrink_mask, thresh_mask = (maps.shrink_mask, maps.thresh_mask) if masked else (maps.shrink_map, maps.shrink_map)
    digits = DIGITS[pages.x.dtype]
    counts = torch.zeros(sum(bins for _, bins in digits), dtype=torch.int64, device=device)
    histograms = counts.split([bins for _, bins in digits])
    programs = runtime.num_programs(device, SUMS_PER_SM, pages.tiles)
    partials = torch.empty((ROWS, programs), dtype=torch.float64, device=device)
    refining = runtime.num_programs(device, REFINE_PER_SM, pages.tiles)
    costs = torch.empty(refining, dtype=torch.float64, device=device)
    state = torch.empty(3, dtype=torch.int64, device=device)

    common = {"MASKED": masked, "ALIGNED": pages.pixels % 16 == 0, "TILE": TILE, "X_STEP": pages.x_step}
    # a float argument would be rounded to float32, and floor(negative_ratio n_pos) to another integer: a constant
    ratio = {"NEGATIVE_RATIO": float(weights.negative_ratio), "COLUMNS": triton.next_power_of_2(programs)}
    shift, bins = digits[0]
    sums = {"Y_STEP": pages.y_step, "SHIFT": shift, "BINS": bins, **common}
    every = (pages.x, pages.y, maps.shrink_map, maps.thresh_map, shrink_mask, thresh_mask, partials, histograms[0])
    runtime.launch(_sums_kernel, (programs,), *every, *pages.geometry, weights.db_k, num_warps=WARPS, **sums)
    chosen = (partials, state, programs)
    runtime.launch(_choose_kernel, (1,), histograms[0], *chosen, num_warps=WARPS, FIRST=True, BINS=bins, **ratio)
    for (shift, bins), histogram in zip(digits[1:], histograms[1:]):
        last, top = shift == digits[-1][0], shift + bins.bit_length() - 1
        refine = {"TOP": top, "SHIFT": shift, "BINS": bins, "LAST": last, **common}
        given = (pages.x, maps.shrink_map, shrink_mask, state, histogram, costs)
        runtime.launch(_refine_kernel, (refining,), *given, *pages.geometry[:4], num_warps=WARPS, **refine)
        if not last:
            runtime.launch(_choose_kernel, (1,), histogram, *chosen, num_warps=WARPS, FIRST=False, BINS=bins, **ratio)
    return _finish(histograms[-1], partials, costs, state, weights, digits[-1])


def _finish(
    histogram: Tensor, partials: Tensor, costs: Tensor, state: Tensor, weights: Weights, digit: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    losses = torch.empty(4, dtype=torch.float32, device=state.device)
    stats = torch.empty(len(Stats._fields), dtype=torch.float64, device=state.device)
    programs, refining = partials.shape[1], costs.shape[0]
    given = (histogram, partials, costs, state, programs, refining, losses, stats)
    constants = {
        "SHIFT": digit[0],
        "BINS": digit[1],
        "COLUMNS": triton.next_power_of_2(programs),
        "REFINING": triton.next_power_of_2(refining),
    }
    factors = (weights.prob, weights.thresh, weights.binary)
    runtime.launch(_finish_kernel, (1,), *given, *factors, num_warps=WARPS, **constants)
    return losses, stats


@triton.jit
def _sums_kernel(
    x,
    y,
    shrink,
    thresh,
    shrink_mask,
    thresh_mask,
    partials,
    counts,
    pixels,
    tiles,
    tiles_per_page,
    x_batch,
    y_batch,
    db_k,
    X_STEP: tl.constexpr,
    Y_STEP: tl.constexpr,
    MASKED: tl.constexpr,
    ALIGNED: tl.constexpr,
    TILE: tl.constexpr,
    SHIFT: tl.constexpr,
    BINS: tl.constexpr,
):
    """Pass 1: the top digit's histogram, and every sum but the cross-entropy's, whose pixels the last pass knows."""
    overlap = tl.zeros((LANES,), tl.float64)
    binary_sum = tl.zeros((LANES,), tl.float64)
    error = tl.zeros((LANES,), tl.float64)
    positives = tl.zeros((LANES,), tl.int32)
    band = tl.zeros((LANES,), tl.int32)
    histogram = tl.zeros((BINS,), tl.int32)  # a program would need 2^31 negatives to overflow
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        page, first, inside = tile_pixels(tile, pixels, tiles_per_page, TILE)
        flat = page * pixels + first
        a = load_logits(x, page, first, inside, x_batch, X_STEP)
        b = load_logits(y, page, first, inside, y_batch, Y_STEP)
        positive, counted = load_classes(shrink, shrink_mask, flat, inside, MASKED)
        goal, banded = load_band(thresh, thresh_mask, flat, inside, MASKED)
        cut = sigmoid(b)
        binary = tl.where(counted, sigmoid((sigmoid(a) - cut) * db_k), 0.0)
        overlap += _per_lane(tl.where(positive, binary, 0.0), ALIGNED).to(tl.float64)
        finite = (tl.abs(a) < float("inf")) & (tl.abs(b) < float("inf"))
        binary_sum += _per_lane(tl.where(finite, binary, float("nan")), ALIGNED).to(tl.float64)  # poison
        error += _per_lane(tl.where(banded, tl.abs(cut - goal), 0.0), ALIGNED).to(tl.float64)
        positives += _per_lane(positive.to(tl.int32), ALIGNED)
        band += _per_lane(banded.to(tl.int32), ALIGNED)
        digit = (_key(a) >> SHIFT) & (BINS - 1)
        histogram += tl.histogram(digit, BINS, mask=counted & ~positive)
    _add_counts(counts, histogram, BINS)
    _write(partials, OVERLAP, tl.sum(overlap))
    _write(partials, BINARY, tl.sum(binary_sum))
    _write(partials, ERROR, tl.sum(error))
    _write(partials, POSITIVES, tl.sum(positives.to(tl.float64)))
    _write(partials, BAND, tl.sum(band.to(tl.float64)))


@triton.jit
def _refine_kernel(
    x,
    shrink,
    shrink_mask,
    state,
    counts,
    costs,
    pixels,
    tiles,
    tiles_per_page,
    x_batch,
    X_STEP: tl.constexpr,
    MASKED: tl.constexpr,
    LAST: tl.constexpr,
    ALIGNED: tl.constexpr,
    TILE: tl.constexpr,
    TOP: tl.constexpr,
    SHIFT: tl.constexpr,
    BINS: tl.constexpr,
):
    """A later pass: the histogram of the next digit; the last also sums the losses of what is surely chosen."""
    total = tl.zeros((LANES,), tl.float64)
    histogram = tl.zeros((BINS,), tl.int32)
    known = tl.load(state).to(tl.int32)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        page, first, inside = tile_pixels(tile, pixels, tiles_per_page, TILE)
        a = load_logits(x, page, first, inside, x_batch, X_STEP)
        positive, counted = load_classes(shrink, shrink_mask, page * pixels + first, inside, MASKED)
        negative = counted & ~positive
        key = _key(a)
        leading = (key >> TOP) & ((1 << (32 - TOP)) - 1)  # >> copies the sign bit
        histogram += tl.histogram((key >> SHIFT) & (BINS - 1), BINS, mask=negative & (leading == known))
        if LAST:
            chosen = positive | (negative & (leading > known))
            total += _per_lane(tl.where(chosen, cross_entropy(a, positive), 0.0), ALIGNED).to(tl.float64)
    _add_counts(counts, histogram, BINS)
    if LAST:
        tl.store(costs + tl.program_id(0), tl.sum(total))


@triton.jit
def _choose_kernel(
    counts,
    partials,
    state,
    programs,
    NEGATIVE_RATIO: tl.constexpr,
    FIRST: tl.constexpr,
    BINS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One program: adds a digit to state = (leading digits of the K-th largest key, K, negatives above them)."""
    count = tl.load(counts + tl.arange(0, BINS))
    if FIRST:
        n_pos = _total(partials, POSITIVES, programs, COLUMNS)
        n_neg = tl.sum(count).to(tl.float64)
        wanted = tl.minimum(n_neg, tl.floor(n_pos * NEGATIVE_RATIO)).to(tl.int64)
        tl.store(state + 1, wanted)
        digit, _here, larger = _pick(count, tl.maximum(wanted, 1), BINS)
        tl.store(state, digit)
        tl.store(state + 2, larger)
    else:
        known, wanted, above = tl.load(state), tl.load(state + 1), tl.load(state + 2)
        digit, _here, larger = _pick(count, tl.maximum(wanted, 1) - above, BINS)
        tl.store(state, known * BINS + digit)
        tl.store(state + 2, above + larger)


@triton.jit
def _finish_kernel(
    counts,
    partials,
    costs,
    state,
    programs,
    refining,
    losses,
    stats,
    prob_weight,
    thresh_weight,
    binary_weight,
    SHIFT: tl.constexpr,
    BINS: tl.constexpr,
    COLUMNS: tl.constexpr,
    REFINING: tl.constexpr,
):
    """One program: the last digit, the losses and the sums that the gradient needs."""
    known, wanted, above = tl.load(state), tl.load(state + 1), tl.load(state + 2)
    count = tl.load(counts + tl.arange(0, BINS))
    digit, here, larger = _pick(count, tl.maximum(wanted, 1) - above, BINS)
    above += larger
    bins = tl.arange(0, BINS)
    cost = cross_entropy(_value(known * BINS + bins, SHIFT), bins < 0).to(tl.float64)  # bins < 0: none is positive
    places = tl.where(bins > digit, count, tl.where(bins == digit, wanted - above, 0))
    fine = tl.sum(tl.where(places > 0, cost * places.to(tl.float64), 0.0))  # cost of other bins: any

    n_pos = _total(partials, POSITIVES, programs, COLUMNS)
    overlap = _total(partials, OVERLAP, programs, COLUMNS)
    prob_count = n_pos + wanted.to(tl.float64) + EPSILON
    binary = _total(partials, BINARY, programs, COLUMNS)
    poison = binary * 0.0
    union = binary + n_pos + EPSILON
    thresh_count = tl.maximum(_total(partials, BAND, programs, COLUMNS), 1.0)
    prob = (_total(costs, 0, refining, REFINING) + fine) / prob_count
    thresh = _total(partials, ERROR, programs, COLUMNS) / thresh_count
    dice = 1.0 - 2.0 * overlap / union
    total = prob_weight * prob + thresh_weight * thresh + binary_weight * dice + poison
    tl.store(losses, total)
    tl.store(losses + 1, prob)
    tl.store(losses + 2, thresh)
    tl.store(losses + 3, dice)
    tl.store(stats, _value(known * BINS + digit, SHIFT).to(tl.float64))
    tl.store(stats + 1, (wanted - above).to(tl.float64) / tl.maximum(here, 1).to(tl.float64))
    tl.store(stats + 2, prob_count)
    tl.store(stats + 3, overlap)
    tl.store(stats + 4, union)
    tl.store(stats + 5, thresh_count)
    tl.store(stats + 6, poison)


@triton.jit
def _key(x):
    """Int32 whose bits, read as unsigned, order as x does."""
    raw = (x + 0.0).to(tl.int32, bitcast=True)  # + 0.0: -0 becomes 0
    return raw ^ ((raw >> 31) | -2147483648)


@triton.jit
def _value(leading, SHIFT: tl.constexpr):
    """The float32 whose key has these leading bits; its bits below SHIFT are 0."""
    key = leading << SHIFT
    raw = tl.where(key >= 2147483648, key - 2147483648, 4294967295 - key)
    return ((raw >> SHIFT) << SHIFT).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def _pick(count, rank, BINS: tl.constexpr):
    """(bin of the rank-th largest, counted from 1; what it holds; what the bins above it hold).

    Bin 0 where there are fewer than `rank`, as the reference does: that is where there are no negatives at all.
    """
    bins = tl.arange(0, BINS)
    at_least = tl.sum(count) - tl.cumsum(count, 0) + count
    digit = tl.maximum(tl.sum((at_least >= rank).to(tl.int64)) - 1, 0)
    return digit, tl.sum(tl.where(bins == digit, count, 0)), tl.sum(tl.where(bins > digit, count, 0))


@triton.jit
def _per_lane(values, ALIGNED: tl.constexpr):
    """Sums of the pixels that one lane holds, without exchange between lanes: neighbours, or every LANES-th."""
    EACH: tl.constexpr = values.shape[0] // LANES
    if ALIGNED:
        return tl.sum(tl.reshape(values, (LANES, EACH)), 1)
    else:  # noqa: RET505
        return tl.sum(tl.reshape(values, (EACH, LANES)), 0)


@triton.jit
def _add_counts(counts, histogram, BINS: tl.constexpr):
    tl.atomic_add(counts + tl.arange(0, BINS), histogram.to(tl.int64), mask=histogram > 0, sem="relaxed")


@triton.jit
def _write(partials, ROW: tl.constexpr, value):
    tl.store(partials + ROW * tl.num_programs(0) + tl.program_id(0), value)


@triton.jit
def _total(partials, ROW: tl.constexpr, programs, COLUMNS: tl.constexpr):
    column = tl.arange(0, COLUMNS)
    return tl.sum(tl.load(partials + ROW * programs + column, mask=column < programs, other=0.0))
