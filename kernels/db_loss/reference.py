"""The DB loss and its gradient in plain PyTorch: the definition of correct and the CPU path.

With logits x, y, P = sigmoid(x), T = sigmoid(y), B = sigmoid(k (P - T)), targets G = shrink_map and t = thresh_map, and
masks M = shrink_mask and M' = thresh_mask (Liao et al. 2020, DBNet, arXiv 1911.08947; weights as in its released code):

    prob   = (sum of l over positives + sum of l over the K worst negatives) / (n_pos + K + 1e-6)
             l = log(1 + exp(x)) - G x;  positives: G M = 1, negatives: (1 - G) M = 1
             K = min(n_neg, floor(negative_ratio n_pos))
    thresh = sum |T - t| M' / sum M'                                  0 where M' is empty
    binary = 1 - 2 sum(B G M) / (sum(B M) + sum(G M) + 1e-6)          Dice
    total  = prob_weight prob + thresh_weight thresh + binary_weight binary

All sums run over this rank's whole batch. Mode "baseline" reads no mask: M = M' = 1 everywhere.

Worked example, four pixels, masks 1, negative_ratio 1: x = (2, 1, -1, -3), G = (1, 0, 0, 0). n_pos = 1 and K = 1: the
positive costs log(1 + e^-2) = 0.1269, the worst negative (x = 1) log(1 + e) = 1.3133, so prob = 1.4402 / 2 = 0.7201.

Edge cases. No positive pixel: K = 0, so prob is 0, and Dice is exactly 1 with a zero gradient (mmocr's rule; a page
without text teaches only the threshold map). A NaN or infinite logit anywhere, masked or not, makes the total and all
gradients NaN; it never raises. Equal logits at the cut share the remaining places: each weighs (K - n_greater) /
n_equal. That is the same sum as topk's, and does not depend on an order.

The K worst negatives are found from a threshold, not a sort: l rises with x, so the K-th largest logit among
negatives is found by a radix search over the bits (11 or 16 at a time, one histogram per pass). No size and no branch
depends on a value, so there is no host synchronisation on a GPU. On a CPU the passes run over blocks that stay in the
cache, in a quarter of the time that whole-map temporaries take.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

EPS = 1e-6
BLOCK = 1 << 17  # pixels per block and thread on a CPU: 512 KB per temporary; four times faster than whole maps
DIGIT_BITS_CPU = 16  # a 512 KB histogram fits the L2 cache; two passes took 17 ms, three of 11 bits 27 (3.3 M pixels)
DIGIT_BITS = 11  # elsewhere: 2048 bins fit the shared memory of a GPU


class Weights(NamedTuple):
    """Parameters of the loss, see the formulas above."""

    db_k: float = 50.0
    negative_ratio: float = 3.0
    prob: float = 5.0
    thresh: float = 10.0
    binary: float = 1.0


class Maps(NamedTuple):
    """Logits and targets, every field of one shape; masks None in baseline mode."""

    prob_logits: Tensor
    thresh_logits: Tensor
    shrink_map: Tensor
    thresh_map: Tensor
    shrink_mask: Tensor | None
    thresh_mask: Tensor | None


class Stats(NamedTuple):
    """0-d float64 sums that the gradient needs."""

    cut: Tensor  # logit of the K-th worst negative
    tie: Tensor  # weight of a negative exactly at the cut
    prob_count: Tensor  # n_pos + K + eps
    overlap: Tensor  # sum(B G M)
    union: Tensor  # sum(B M) + sum(G M) + eps
    thresh_count: Tensor  # sum M', at least 1
    poison: Tensor  # 0, or NaN when a logit is not finite


class _Block(NamedTuple):
    """One block of pixels in the computing dtype."""

    x: Tensor
    y: Tensor
    positive: Tensor  # G M
    mask: Tensor | None  # M, None: all ones
    thresh: Tensor  # t
    thresh_mask: Tensor | None  # M', None: all ones


def db_loss_reference(maps: Maps, weights: Weights) -> tuple[Tensor, Stats]:
    """((4,) total, prob, thresh, binary in float32, float64 for float64 logits; the sums for `db_loss_gradient`)."""
    dtype = _dtype(maps)
    n_pos, n_neg = _count(maps)
    wanted = torch.minimum(n_neg, (n_pos * weights.negative_ratio).floor())
    cut, tie = _worst_negatives(maps, wanted, dtype)
    prob_sum, thresh_sum, overlap, binary_sum = (torch.zeros_like(n_pos) for _ in range(4))
    for block in _blocks(maps, dtype):
        chosen = _chosen(block, cut, tie)
        cost = binary_cross_entropy_with_logits(block.x, block.positive, reduction="none")
        prob_sum += chosen.dot(cost)
        thresh = block.y.sigmoid()
        binary = (block.x.sigmoid() - thresh).mul_(weights.db_k).sigmoid_()
        overlap += binary.dot(block.positive)
        binary_sum += binary.sum() if block.mask is None else binary.dot(block.mask)
        error = thresh.sub_(block.thresh).abs_()
        thresh_sum += error.sum() if block.thresh_mask is None else error.dot(block.thresh_mask)
    thresh_count = _total(maps.thresh_mask, maps.thresh_map).clamp_min(1)
    stats = Stats(cut, tie, n_pos + wanted + EPS, overlap, binary_sum + n_pos + EPS, thresh_count, _poison(maps))
    prob, thresh, dice = prob_sum / stats.prob_count, thresh_sum / thresh_count, 1 - 2 * overlap / stats.union
    total = weights.prob * prob + weights.thresh * thresh + weights.binary * dice + stats.poison
    return torch.stack((total, prob, thresh, dice)).to(dtype), stats


def db_loss_gradient(maps: Maps, weights: Weights, stats: Stats, grad_total: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of total * grad_total with respect to both logit maps, in their shapes and dtypes.

    d prob / dx   = w (P - G) / (n_pos + K + eps)
                    w = 1 for positives and for negatives above the cut, a share at the cut, else 0
    d thresh / dy = sign(T - t) M' T (1 - T) / sum M'
    d binary / dB = 2 M overlap / union^2 - 2 G M / union
                    dB/dx = k B (1 - B) P (1 - P),   dB/dy = -k B (1 - B) T (1 - T)
    """
    dtype = _dtype(maps)
    scale = grad_total + stats.poison
    prob_scale = (scale * weights.prob / stats.prob_count).to(dtype)
    thresh_scale = (scale * weights.thresh / stats.thresh_count).to(dtype)
    binary_scale = scale * weights.binary * weights.db_k * 2 / stats.union
    outside, inside = (binary_scale * stats.overlap / stats.union).to(dtype), (-binary_scale).to(dtype)
    grads = torch.empty_like(maps.prob_logits), torch.empty_like(maps.thresh_logits)
    into = zip(*(_split(grad) for grad in grads))
    for block, (grad_x, grad_y) in zip(_blocks(maps, dtype), into):
        prob, thresh = block.x.sigmoid(), block.y.sigmoid()
        binary = (prob - thresh).mul_(weights.db_k).sigmoid_()
        through = block.positive * inside
        through.add_(outside if block.mask is None else block.mask * outside)
        through.mul_(binary).mul_(binary.neg_().add_(1))
        bent = thresh.sub(block.thresh).sign_().mul_(thresh_scale)
        if block.thresh_mask is not None:
            bent.mul_(block.thresh_mask)
        grad_y.copy_(bent.sub_(through).mul_(thresh).mul_(thresh.neg_().add_(1)))
        pull = _chosen(block, stats.cut, stats.tie).mul_(prob - block.positive).mul_(prob_scale)
        grad_x.copy_(pull.addcmul_(through, prob * (1 - prob)))
    return grads


def _dtype(maps: Maps) -> torch.dtype:
    return torch.float64 if maps.prob_logits.dtype == torch.float64 else torch.float32


def _split(pixels: Tensor) -> tuple[Tensor, ...]:
    """Flat blocks: cache-sized on a CPU, everything at once elsewhere."""
    flat = pixels.view(-1)
    return flat.split(BLOCK * torch.get_num_threads()) if flat.device.type == "cpu" else (flat,)


def _blocks(maps: Maps, dtype: torch.dtype) -> Iterator[_Block]:
    fields = [field for field in maps if field is not None]
    for x, y, shrink, thresh, *masks in zip(*(_split(field) for field in fields)):
        positive, mask, thresh_mask = shrink.to(dtype), None, None
        if masks:
            mask, thresh_mask = masks[0].to(dtype), masks[1].to(dtype)
            positive.mul_(mask)
        yield _Block(x.to(dtype), y.to(dtype), positive, mask, thresh.to(dtype), thresh_mask)


def _total(mask: Tensor | None, like: Tensor) -> Tensor:
    if mask is None:
        return torch.full((), like.numel(), dtype=torch.float64, device=like.device)
    return mask.count_nonzero().double()


def _count(maps: Maps) -> tuple[Tensor, Tensor]:
    """Number of positives and of negatives, 0-d float64 (exact far beyond any batch)."""
    positive = maps.shrink_map if maps.shrink_mask is None else maps.shrink_map * maps.shrink_mask
    n_pos = positive.count_nonzero().double()
    return n_pos, _total(maps.shrink_mask, maps.shrink_map) - n_pos


def _poison(maps: Maps) -> Tensor:
    """0-d float64: 0 when every logit is finite, else NaN."""
    extremes = torch.stack((*maps.prob_logits.aminmax(), *maps.thresh_logits.aminmax()))
    return (extremes.double() * 0).sum()


def _chosen(block: _Block, cut: Tensor, tie: Tensor) -> Tensor:
    """Weight of each pixel's cross-entropy: 1 for positives and negatives above the cut, `tie` at the cut, else 0."""
    above = (block.x - cut.to(block.x.dtype)).sign_()
    at_cut = above.abs().neg_().add_(1).mul_(tie.to(block.x.dtype))
    return above.clamp_min_(0).add_(at_cut).mul_(_negative(block)).add_(block.positive)


def _worst_negatives(maps: Maps, wanted: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(logit of the wanted-th largest negative, weight of negatives equal to it), 0-d float64.

    wanted = 0 selects nothing: the cut is the largest negative, with weight 0.
    """
    keys = [_key(block) for block in _blocks(maps, dtype)]
    rank = wanted.clamp_min(1)  # counted from 1
    above = torch.zeros_like(rank)  # negatives known to be larger than the one sought
    found = torch.zeros(1, dtype=keys[0].dtype, device=rank.device)  # its leading bits
    top, step = torch.finfo(dtype).bits, DIGIT_BITS_CPU if rank.device.type == "cpu" else DIGIT_BITS
    while top:
        shift = max(top - step, 0)
        counts = _histogram(keys, found, top, shift)
        at_least = counts.flip(0).cumsum(0).flip(0)  # keys whose digit is this or larger
        digit = (at_least >= rank - above).sum(0, keepdim=True) - 1
        here = counts.gather(0, digit)[0]
        above = above + at_least.gather(0, digit)[0] - here
        found = found | (digit.to(found.dtype) << shift)
        top = shift
    sign = torch.iinfo(found.dtype).min
    cut = torch.where(found < 0, found ^ sign, ~found).view(dtype)[0]
    return cut.double(), (wanted - above) / here


def _key(block: _Block) -> Tensor:
    """Integers that, read as unsigned, order as the logits do; 0, the least, for pixels that are not negatives."""
    raw = (block.x + 0.0).view(torch.int32 if block.x.dtype == torch.float32 else torch.int64)  # + 0.0: -0 becomes 0
    key = raw >> (torch.iinfo(raw.dtype).bits - 1)
    key.bitwise_or_(torch.iinfo(raw.dtype).min).bitwise_xor_(raw)
    return key.mul_(_negative(block).to(raw.dtype))


def _negative(block: _Block) -> Tensor:
    return 1 - block.positive if block.mask is None else block.mask - block.positive


def _histogram(keys: list[Tensor], found: Tensor, top: int, shift: int) -> Tensor:
    """(bins,) float64 counts of the digit at bits [shift, top) among keys that share `found`'s bits from top up."""
    bins = 1 << (top - shift)
    counts = torch.zeros(bins + 1, dtype=torch.float64, device=found.device)
    first = top == torch.iinfo(found.dtype).bits
    for key in keys:
        digit = (key >> shift).bitwise_and_(bins - 1).add_(1)
        if not first:
            digit.mul_((key >> top).eq_(found >> top))  # keys of another prefix fall into bin 0, which is dropped
        if digit.device.type == "cpu":
            counts += torch.bincount(digit, minlength=bins + 1)
        else:  # bincount reads the largest value back to the host; histc with integer keys is exact and does not
            counts += torch.histc(digit.to(torch.int32), bins + 1, 0, bins + 1)
    return counts[1:]
