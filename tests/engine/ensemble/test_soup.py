"""ensemble.soup: what joins the mean of weights, and what cannot."""

import pytest
import torch

from engine.config.load import load_config
from engine.ensemble import soup
from engine.evaluation import compare
from pipelines.errors import UserError
from tests.conftest import TINY


def _judged(score):
    return compare.Judged("", "member", [], {"score": score}, 1.0)


def test_the_greedy_soup_adds_what_does_not_lower_the_score():
    tensors = [{"w": torch.tensor([v]), "n": torch.tensor(i)} for i, v in enumerate((4.0, 0.0, 8.0, 100.0))]
    asked = []

    def judge(weights):  # best at 6
        asked.append(weights["w"].item())
        return _judged(-abs(weights["w"].item() - 6))

    made = soup.greedy(tensors, [_judged(-2), _judged(-6), _judged(-2), _judged(-94)], lambda w: w, judge)
    assert made.ingredients == [0, 2] and made.tensors["w"].item() == 6 and made.tensors["n"].item() == 0
    assert asked == [6, 4, pytest.approx(112 / 3)], "in the order of their scores"
    alone = soup.greedy(tensors[:2], [_judged(0), _judged(-6)], lambda w: w, judge)
    assert alone.ingredients == [0] and alone.tensors["w"] is tensors[0]["w"]


def test_weights_of_different_networks_have_no_soup():
    small, _ = load_config(list(TINY))
    other, _ = load_config([*TINY, "models.decoder.upsample=bilinear"])
    tensors = {"w": torch.zeros(3)}
    soup.check_alike(["a", "b"], [small, small], [tensors, tensors])
    with pytest.raises(UserError, match="a and b are different networks"):
        soup.check_alike(["a", "b"], [small, other], [tensors, tensors])
    with pytest.raises(UserError, match="a and b are different networks"):
        soup.check_alike(["a", "b"], [small, small], [tensors, {"w": torch.zeros(4)}])
