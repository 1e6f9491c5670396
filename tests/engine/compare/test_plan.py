"""compare.plan: every combination with every seed, and what cannot be compared."""

import itertools

import pytest

from engine.compare import plan, report, result
from engine.compare.__main__ import main
from engine.compare.plan import LR, SCHEDULE, WARMUP
from engine.search.study import Runner
from pipelines.errors import UserError
from tests.engine.compare.conftest import SMALL


def test_every_combination_is_trained_with_every_seed_and_whole_seeds_come_first(tmp_path):
    asked = plan.request([*SMALL, "schedules=cosine,poly", "warmup=0,0.5", "lrs=1e-3,4e-3", "seeds=4,9"])
    study = plan.study_of(asked, tmp_path, 1, Runner())
    wanted = set(itertools.product(("cosine", "poly"), (0, 0.5), (1e-3, 4e-3), (4, 9)))
    assert {(*trial.values.values(), trial.seed) for trial in study.trials} == wanted and study.budget == 16
    assert [trial.seed for trial in study.trials] == [4] * 8 + [9] * 8
    assert list(study.trials[0].values) == [SCHEDULE, WARMUP, LR] and study.early_stop == {"type": "none"}
    assert study.max_epochs == 4 and "models.scheduler.T_max=4" in study.arguments  # as long as the others
    again = report._again(result.Result(study, 4, [4, 9], [], [], [], []))
    assert plan.request(again.split()[3:]) == plan.Request(asked.axes, [4, 9], asked.settings, again_notices(asked))


def again_notices(asked: plan.Request) -> list[str]:
    """Those of a request whose T_max is written out."""
    return [line for line in asked.notices if "cosine runs with T_max" not in line]


def test_a_T_max_that_is_given_stays(tmp_path):
    asked = plan.request([*SMALL, "models.scheduler.T_max=3"])
    assert [item for item in asked.settings if "T_max" in item] == ["models.scheduler.T_max=3"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["schedules=cosine,step"], "models.scheduler.name"),
        (["schedules=cosine"], "nothing to be compared"),
        (["schedules=cosine,cosine"], "different values"),
        (["schedules=cosine,"], "different values"),
        (["seeds=1"], "2 or more"),
        (["seeds=a"], "expected how many"),
        (["seeds=-3"], "expected how many"),
        (["seeds=1,1"], "different values"),
        (["seeds=99999999"], "more than 10000"),
        (["warmup=x"], "expected numbers"),
        (["warmup=0,nan"], "expected different numbers"),
        (["warmup=0,4"], "take a shorter one"),
        (["warmup=0,-1"], "models.scheduler.warmup_epochs"),
        (["lrs=1e-3,-1"], "models.optimizer.lr"),
        (["lrs=1e-3,2e-3", "models.optimizer.lr=1e-3"], "use lrs="),
        (["models.scheduler.name=poly"], "use schedules="),
        (["seed=3"], "use seeds="),
        (["name=x"], "--out"),
        (["warmup=0", "warmup=1"], "given twice"),
        (["nonsense"], "key=value"),
        (["trainer.epochs=3"], "trainer.epochs"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(words, said, tmp_path):
    with pytest.raises(UserError, match=said) as caught:
        main([*SMALL, *words, "--out", str(tmp_path / "c")])
    assert "\n" not in str(caught.value) and not (tmp_path / "c").exists()
