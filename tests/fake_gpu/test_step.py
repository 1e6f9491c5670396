"""A steady training step, eager and compiled: nothing in it waits for the device."""

import json

import pytest

from tests.conftest import TINY
from tests.fake_gpu import run

CODE = """
import json
from bench.fake_gpu import lowering
from engine.config.load import load_config
from engine.training import step
config, _ = load_config({settings!r})
plain = step.make_targets
for planted in {planted!r}:
    def make_targets(batch, config):
        eval(planted or "x", {{"x": batch.image[0, 0, 0, 0]}})
        return plain(batch, config)
    step.make_targets = make_targets
    found = lowering.steady_step(config)
    kinds = [r.kind for r in found.records]
    print(json.dumps([device.waits(found.records), kinds, found.graphs, found.breaks]))
"""


def steady(*settings: str, planted: tuple[str, ...] = ("",)) -> list[list]:
    """[what waited, kinds of all records, graphs, breaks] of a step with each wait planted in it; "" is none."""
    said = run.python(CODE.format(settings=[*TINY, *settings], planted=planted))
    return [json.loads(line) for line in said.splitlines() if line.startswith("[[")]


def test_an_eager_step_waits_for_nothing_and_one_that_waits_is_found():
    planted = ("", "x.item()", "x.cpu()")
    found = steady("trainer.ema=true", "trainer.accumulate=2", planted=planted)
    (waits, kinds, graphs, _), (item, *_), (cpu, *_) = found
    assert waits == [] and graphs == 0
    assert kinds.count("kernel") > 300 and "malloc" not in kinds
    assert item == ["sync stream"] * 2  # one a forward pass
    assert cpu == ["memcpy D2H pageable, 2 bytes", "sync stream"] * 2


@pytest.mark.slow
def test_a_compiled_step_waits_for_nothing():
    ((waits, _, graphs, breaks),) = steady("trainer.compile=true")
    assert waits == [] and graphs == 2 and breaks == {}
