"""Studies and a plain Gaussian process for the tests of the report: no training, no scikit-optimize."""

import math
from pathlib import Path

import numpy as np

from engine.search import import_table
from engine.search.space import Parameter, Space
from engine.search.study import Study, Trial
from tests.conftest import ROOT

LR, DECAY = "models.optimizer.lr", "models.optimizer.weight_decay"
TMAX, ETA = "models.scheduler.T_max", "models.scheduler.eta_min"
PUBLISHED = Space(
    (
        Parameter(LR, "float", 1e-5, 2e-4, "log"),
        Parameter(DECAY, "float", 6.1e-6, 1.23e-4, "log"),
        Parameter(TMAX, "ordinal", values=(15, 18, 20, 25)),
        Parameter(ETA, "float", 2.2e-6, 4.5e-5, "log"),
    )
)
MIXED = Space(
    (
        Parameter("models.optimizer.lr", "float", 1e-4, 1e-1, "log"),
        Parameter("models.optimizer.name", "choice", values=("adam", "adamw", "sgd")),
        Parameter("data.batch_size", "int", 2, 16),
    )
)


def inside(space: Space, values: dict) -> bool:
    """Whether every parameter can take its value."""
    return all(p.contains(values[p.name]) for p in space.parameters)


class Posterior:
    """A Gaussian process with fixed length scales (RBF, 0.4 of each range), zero mean after standardising."""

    def __init__(self, study: Study, noise_sd: float = 0.001, length: float = 0.4) -> None:
        trials = study.measured
        self.study, self.noise_sd, self.length = study, noise_sd, length
        self.known = study.space.features(np.array([study.space.coordinates(t.values) for t in trials]))
        values = np.array([t.reached for t in trials])
        self.centre, self.scale = values.mean(), max(values.std(), 1e-9)
        within = self._kernel(self.known, self.known) + np.eye(len(values)) * (noise_sd / self.scale) ** 2
        self.inverse = np.linalg.inv(within)
        self.weights = self.inverse @ (values - self.centre) / self.scale

    def _kernel(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        squares = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
        return np.exp(-0.5 * np.maximum(squares, 0) / self.length**2)

    def _joint(self, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        points = self.study.space.features(np.asarray(units, float))
        cross = self._kernel(points, self.known)
        return cross @ self.weights, self._kernel(points, points) - cross @ self.inverse @ cross.T

    def predict(self, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        cross = self._kernel(self.study.space.features(np.asarray(units, float)), self.known)
        variance = 1 - np.einsum("ij,jk,ik->i", cross, self.inverse, cross, optimize=True)
        return cross @ self.weights * self.scale + self.centre, np.sqrt(np.maximum(variance, 0)) * self.scale

    def best(self) -> dict:
        rng, space = np.random.default_rng(1), self.study.space
        known = np.clip([space.coordinates(t.values) for t in self.study.trials], 0.0, 1.0)
        near = known[rng.integers(len(known), size=2000)] + 0.1 * rng.standard_normal((2000, known.shape[1]))
        units = space.snap(np.vstack([known, near, rng.random((2000, known.shape[1]))]))
        mean, sd = self.predict(units)
        return space.values(units[int(np.argmax(self.study.sign * mean - 1.645 * sd))])

    def sample(self, units: np.ndarray, draws: int, seed: int) -> np.ndarray:
        mean, covariance = self._joint(units)
        factor = np.linalg.cholesky(covariance + np.eye(len(mean)) * 1e-6)
        normal = np.random.default_rng(seed).standard_normal((draws, len(mean)))
        return (mean + normal @ factor.T) * self.scale + self.centre


def study_of(path: Path | str, folder: Path, space: Space, metric: str, goal: str, first: dict) -> Study:
    """A study made of a table alone, for a report: budget = its rows, epochs = those of its longest row.

    Args:
        first: the preset's own values; {} = the middle of the space, so that the model prefers no corner of it.
    """
    trials = import_table.read(path, space, metric, goal)
    first = first or space.values([0.5] * len(space.parameters))
    epochs = max((trial.epochs for trial in trials), default=0)
    return Study(
        folder, folder.name, space, metric, goal, budget=len(trials), max_epochs=epochs, first=first, trials=trials
    )


def published(folder: Path, first: dict | None = None) -> Study:
    """The published study's eight rows; `first` = what the model takes for the preset, the middle when empty."""
    path = ROOT / "bench/data/published_search.csv"
    return study_of(path, folder, PUBLISHED, "val/hmean", "maximize", first or {})


def surface(values: dict) -> float:
    """H-mean of a configuration of PUBLISHED: best at lr 1e-4, weight decay 4e-5, T_max 15; eta_min does nothing."""
    lr, decay = math.log10(values[LR] / 1e-4), math.log10(values[DECAY] / 4e-5)
    return 0.975 - 0.02 * lr**2 - 0.005 * decay**2 - 0.0004 * (values[TMAX] - 15)


def curve(value: float, epochs: int) -> list[tuple[int, float]]:
    """A learning curve that ends at `value` after 15 epochs, cut off after `epochs`."""
    return [
        (epoch, round(value - 0.3 * math.exp(-0.45 * epoch) + 0.3 * math.exp(-6.75), 5))
        for epoch in range(1, epochs + 1)
    ]


def synthetic(folder: Path, count: int = 12, seed: int = 0, noise: float = 0.001) -> Study:
    """A study of `surface`: trial 0 the preset, later ones uniform, every third stopped early, number 5 diverged."""
    rng = np.random.default_rng(seed)
    first = {LR: 3e-5, DECAY: 2e-5, TMAX: 20, ETA: 1e-5}
    study = Study(folder, "synthetic", PUBLISHED, budget=count, max_epochs=15, first=first)
    study.early_stop = {"type": "curve", "chance": 0.1}
    study.arguments = ["preset=hrnet_w44_1280", "data.train=my receipts/train.json"]
    for number in range(count):
        values = first if number == 0 else PUBLISHED.values(PUBLISHED.snap(rng.random((1, 4)))[0])
        value = round(surface(values) + noise * rng.standard_normal(), 5)
        trial = Trial(number, values, "preset" if number == 0 else "model", seed=0, state="finished", epochs=15)
        trial.value, trial.curve, trial.minutes, trial.folder = value, curve(value, 15), 3.2, f"trials/{number:03d}"
        trial.scores = {"hmean": value, "precision": value + 0.001, "recall": value - 0.001}
        if number % 3 == 2:
            trial.state, trial.epochs, trial.curve = "stopped", 6, curve(value, 6)
            trial.estimate, trial.value = (value, 0.001), trial.curve[-1][1]
        if number == 5:
            trial.state, trial.reason, trial.value, trial.estimate = (
                "infeasible",
                "the loss is nan at step 17",
                None,
                None,
            )
            trial.scores = {}
        study.trials.append(trial)
    return study


def repeated(study: Study, numbers: list[int], seeds: tuple[int, ...] = (1, 2, 3), noise: float = 0.001) -> Study:
    """The study with repeats of some trials, with other seeds."""
    rng = np.random.default_rng(7)
    for number in numbers:
        for seed in seeds:
            values = study.trials[number].values
            trial = Trial(len(study.trials), values, "confirm", seed, number, "finished", epochs=15)
            trial.value = surface(values) + noise * rng.standard_normal()
            study.trials.append(trial)
    return study


def mixed(folder: Path) -> Study:
    """A minimised loss over a number, a choice and a whole number."""
    study = Study(folder, "mixed", MIXED, metric="val/loss", goal="minimize", budget=10, max_epochs=4)
    rng = np.random.default_rng(3)
    for number in range(10):
        values = MIXED.values(MIXED.snap(rng.random((1, 3)))[0])
        loss = 0.3 + 0.1 * math.log10(values[LR] / 1e-2) ** 2 + 0.05 * (values["models.optimizer.name"] == "sgd")
        study.trials.append(Trial(number, values, "model", 0, state="finished", value=loss, epochs=4))
    return study
