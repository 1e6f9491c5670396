"""CUDA graphs (`speed.cuda_graphs`) on the fake device: captured once, replayed in a steady step. No values."""

import json

import pytest

from tests.conftest import TINY
from tests.fake_gpu import run

CODE = """
import json

import pytest
from bench.fake_gpu import lowering
from engine.config.load import load_config
config, _ = load_config({settings!r})
found = lowering.steady_step(config)
skipped = {{k: v for k, v in torch._dynamo.utils.counters["inductor"].items() if "cudagraph_skip" in k}}
print(json.dumps([device.waits(found.records), [r.kind for r in found.records], found.graphs, skipped]))
"""


@pytest.mark.slow
def test_a_steady_step_is_two_graph_launches_and_few_others():
    settings = [*TINY, "trainer.compile=true", "speed.cuda_graphs=true"]
    waits, kinds, graphs, skipped = json.loads(run.python(CODE.format(settings=settings)).splitlines()[-1])
    assert waits == [] and graphs == 2 and skipped == {}
    assert kinds.count("graph") == 2 and "malloc" not in kinds and "capture" not in kinds
    assert kinds.count("kernel") + kinds.count("triton") <= 200


TRAINED = """
import sys
from engine import train
from tests.fake_gpu.emulate import dali_on_the_cpu
dali_on_the_cpu()
code = train.main({settings!r})
skipped = [k for k in torch._dynamo.utils.counters["inductor"] if "cudagraph_skip" in k]
print("end", code, skipped)
"""


@pytest.mark.slow
def test_a_training_with_its_evaluation_overwrites_nothing_that_is_still_read(tmp_path):
    """CUDA graph trees refuse a tensor that a replay has overwritten; an evaluation may hold the maps of before."""
    settings = [*TINY, "trainer.compile=true", "speed.cuda_graphs=true", "eval.batch_size=1", "trainer.max_epochs=1"]
    code = TRAINED.format(settings=[*settings, f"run_root={tmp_path}", "name=graphs"])
    assert run.python(code).splitlines()[-1] == "end 0 []"
