"""Greedy soup: one model whose weights are the mean of several checkpoints' weights, at the price of one.

    made = greedy(tensors, judged, finish=lambda weights: weights, judge=judge)
    write(folder, made, paths, config)                    # a run folder with the soup as its checkpoint

Checkpoints are sorted by their score. Each in turn joins the mean if that does not lower the score.

Source: Wortsman et al. 2022, "Model soups", arXiv 2203.05482, recipe 1. It helps models that were fine-tuned from the
same weights, and checkpoints of one run: only those lie in one basin. Of others it keeps the best alone.

The running means and variances of BatchNorm are averaged as weights are, or estimated anew from training pages
(`engine.training.precise_bn`).
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from engine.checkpoint import store
from engine.config import Config
from engine.config.load import to_dict, to_yaml
from engine.evaluation.compare import Judged
from pipelines.errors import UserError


@dataclasses.dataclass(frozen=True)
class Soup:
    """What was cooked: `ingredients` are positions in the given checkpoints, best first."""

    ingredients: list[int]
    tensors: dict[str, torch.Tensor]
    judged: Judged


def check_alike(names: Sequence[str], configs: Sequence[Config], tensors: Sequence[dict[str, torch.Tensor]]) -> None:
    """Refuses weights that cannot be averaged.

    Raises:
        UserError: two checkpoints are of different models; both are named.
    """
    shapes = [{name: tensor.shape for name, tensor in part.items()} for part in tensors]
    for name, config, shape in zip(names, configs, shapes, strict=True):
        same = all(_network(config)[key] == value for key, value in _network(configs[0]).items())
        if not same or shape != shapes[0]:
            raise UserError(
                f"--soup: {names[0]} and {name} are different networks, whose weights have no mean; give checkpoints "
                "of one architecture (their maps can be averaged: leave --soup out)"
            )


def _network(config: Config) -> dict:
    """What decides the function that weights stand for."""
    models = to_dict(config.models)
    encoder, decoder, head = ((models[part]) for part in ("encoder", "decoder", "head"))
    names = (("name", "hrnet_incre_head"), ("kind", "upsample", "batch_norm"), ("smooth",))
    return {(i, name): part[name] for i, part in enumerate((encoder, decoder, head)) for name in names[i]}


def mean(tensors: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Mean of each tensor, summed in float64; whole numbers (BatchNorm's counters) are the first's."""
    return {
        name: torch.stack([part[name].double() for part in tensors]).mean(0).to(value.dtype)
        if value.is_floating_point()
        else value
        for name, value in tensors[0].items()
    }


def ranking(members: Sequence[Judged]) -> list[int]:
    """Positions of the members, best score first; the first of equals."""
    return sorted(range(len(members)), key=lambda i: -members[i].scores["score"])


def greedy(
    tensors: Sequence[dict[str, torch.Tensor]],
    members: Sequence[Judged],
    finish: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    judge: Callable[[dict[str, torch.Tensor]], Judged],
) -> Soup:
    """The greedy soup.

    Args:
        tensors: weights of each checkpoint.
        members: the checkpoints, judged on the pages that choose.
        finish: weights as averaged -> as used (BatchNorm statistics estimated anew), not called for one alone.
        judge: weights -> judged on the same pages.
    """
    best, *others = ranking(members)
    soup = Soup([best], dict(tensors[best]), members[best])
    for candidate in others:
        mixed = finish(mean([tensors[i] for i in [*soup.ingredients, candidate]]))
        judged = judge(mixed)
        if judged.scores["score"] >= soup.judged.scores["score"]:
            soup = Soup([*soup.ingredients, candidate], mixed, judged)
    return soup


def write(folder: Path, soup: Soup, places: Sequence[Path], config: Config) -> Path:
    """Writes a run folder with the soup as its only checkpoint, which evaluate, predict, export and init_from take.

    Args:
        folder: of the run; its checkpoints' folder is made.
        places: all checkpoints that were given; the state names those that went in.
        config: of the best ingredient.

    Raises:
        OSError: disk full, or not to be written.
    """
    steps = [store.load_state(path).get("step", 0) for path in places]
    state = {
        "step": max(steps[i] for i in soup.ingredients),
        "score": soup.judged.scores["score"],
        "scores": soup.judged.scores,
        "soup": [str(places[i].resolve()) for i in soup.ingredients],
    }
    tensors = {name: value.detach().cpu().contiguous() for name, value in soup.tensors.items()}
    path = store.write(folder / "checkpoints", {"model": tensors}, state, to_yaml(config))
    for name in store.LINKS:
        store.link(folder / "checkpoints", name, path)
    return path
