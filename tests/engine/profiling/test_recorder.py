"""The profile of a step: names to kinds, traces with and without a GPU to tables, and whole runs with it on."""

import time

import pytest
import torch
from torch.profiler import record_function

from engine import train
from engine.config.load import load_config
from engine.profiling import recorder
from engine.profiling import trace_table as table
from engine.profiling.flops import meta_model, trace
from engine.run.log import read_metrics
from tests.conftest import TINY, run_module


def _event(cat, name, start, duration, thread=1, **given):
    return {"ph": "X", "cat": cat, "name": name, "ts": start, "dur": duration, "tid": thread, "args": given}


def test_the_report_has_device_times_where_there_is_a_gpu():
    events = [
        _event("user_annotation", "forward", 0, 100),
        _event("cuda_runtime", "cudaLaunchKernel", 10, 2, correlation=1),
        _event("kernel", "triton_poi_fused_relu_0", 500, 250, 7, correlation=1),
    ]
    config = load_config([*TINY, "data.batch_size=4"])[0]
    text = recorder.report(config, table.read(events), steps=1, wall=0.00075, peak=1e12, dtype=torch.bfloat16)
    assert "| part of the step | host ms | device ms | share of the step |" in text
    assert "| forward | 0.100 | 0.250 | 33.3% |" in text and "| BatchNorm, pointwise | 100.0% |" in text
    flops = 3 * sum(row.flops for row in trace(meta_model(config), 96, 128))
    assert "5333.33 images/s" in text and f"{flops * 4 / 0.00075 / 1e12:.1%} of the matrix peak" in text


def _settings(tmp_path, name, *more):
    return [*TINY, f"name={name}", f"run_root={tmp_path}", "trainer.max_epochs=1", "data.synthetic_train=16", *more]


def _rows(text, head):
    """{first cell: the others} of the table whose heading begins with `head`."""
    text = text.split(f"| {head}")[1].split("\n\n")[0]
    return {cells[0]: cells[1:] for line in text.splitlines() if (cells := line.strip("| ").split(" | "))}


def test_a_run_with_it_writes_trace_and_table_and_ends_with_the_same_loss(tmp_path, capsys):
    settings = ("trainer.ema=true", "trainer.device=cpu")
    assert train.main(_settings(tmp_path, "plain", *settings)) == 0
    capsys.readouterr()
    assert train.main(_settings(tmp_path, "run", "trainer.profile=true", *settings)) == 0
    text = (tmp_path / "run" / "profile" / "profile.md").read_text()
    assert text in capsys.readouterr().out and (tmp_path / "run" / "profile" / "trace.json.gz").stat().st_size > 1e4
    rows = _rows(text, "part of the step")
    shares = [float(rows[part][-1].rstrip("%")) for part in (*table.PARTS, "other (the loop itself)")]
    assert sum(shares) == pytest.approx(100, abs=1) and min(shares[:4] + shares[4:8]) > 0
    rows = _rows(text, "kind of work")
    kinds = {kind: float(rows[kind][0].rstrip("%")) for kind in table.KINDS if kind in rows}
    assert sum(kinds.values()) == pytest.approx(100, abs=1)
    assert kinds[table.CONV] > 2 and kinds[table.NORM] > 2 and kinds["loss"] > 1 and kinds["optimizer"] > 1
    assert f"Profile of {recorder.STEPS} steps" in text and "| aten::copy_ |" in text and "GFLOP/s of the model" in text
    losses = [
        [r["loss"] for r in read_metrics(tmp_path / run / "metrics.jsonl") if r["kind"] == "train"]
        for run in ("plain", "run")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 8
    assert (tmp_path / "run" / "summary.json").exists() and not (tmp_path / "plain" / "profile").exists()


def test_ranks_send_gradients_beside_the_rest_and_only_rank_0_records(tmp_path):
    settings = _settings(tmp_path, "two", "trainer.profile=true")
    done = run_module("engine.train", *settings, ranks=2, cwd=tmp_path, check=True)
    assert done.stdout.count("# Profile of 1 steps") == 1  # the epoch has 4
    text = (tmp_path / "two" / "profile" / "profile.md").read_text()
    assert float(_rows(text, "part of the step")["communication, beside the rest"][0]) > 0


@pytest.mark.parametrize("steps", [1, 3])
def test_an_epoch_that_is_too_short_is_told(tmp_path, capsys, steps):
    assert train.main(_settings(tmp_path, "short", "trainer.profile=true", f"data.synthetic_train={2 * steps}")) == 0
    assert f"nothing recorded, an epoch of {steps} steps is too short" in capsys.readouterr().out


def test_the_matrix_peak_is_a_rate():
    side, threads = 256, torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rates = [recorder.matrix_peak(torch.device("cpu"), torch.float32, side) for _ in range(3)]
        a = torch.randn(side, side)
        start = time.perf_counter()
        torch.mm(a, a)
        one = 2 * side**3 / (time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    assert max(rates) > one / 2 and max(rates) > 1e9


def test_ranges_of_the_step_cost_little_without_a_profiler():
    start = time.perf_counter()
    for _ in range(1000):
        with record_function("forward"):
            pass
    assert (time.perf_counter() - start) / 1000 < 200e-6  # 10 us here; 9 of them in a step


def test_the_key_is_off_by_default():
    assert load_config([])[0].trainer.profile is False
