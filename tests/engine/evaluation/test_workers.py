"""CLEval in worker processes: the same scores in the same order, light workers, no hang and no orphan."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bench.bench_cleval import detections, receipt_texts
from engine import train
from engine.checkpoint import store
from engine.evaluation import workers as scoring
from engine.evaluation.cleval import evaluate_page
from pipelines.errors import UserError
from tests.conftest import ROOT, TINY


def _jobs(count: int, protocol: str = "official") -> list[tuple[int, tuple]]:
    rng = np.random.default_rng(count)
    pages = [receipt_texts(rng) for _ in range(count)]
    return [(i, (detections(rng, quads), quads, texts, None, protocol)) for i, (quads, texts) in enumerate(pages)]


@pytest.mark.parametrize("protocol", ["official", "contest"])
def test_results_come_in_order_and_are_those_of_this_process(protocol):
    jobs = _jobs(9, protocol)
    with scoring.worker_pool(2) as pool:
        found = list(scoring.score_in_order(pool, jobs))
    assert found == [(tag, evaluate_page(*arguments)) for tag, arguments in jobs]
    assert found == list(scoring.score_in_order(None, jobs))
    assert 0.5 < found[0][1].hmean < 1


def test_jobs_are_read_ahead_but_not_without_bound(monkeypatch):
    monkeypatch.setattr(scoring, "MAX_WAITING", 3)
    jobs, read = _jobs(1) * 40, []

    def noted():
        for number, job in enumerate(jobs):
            read.append(number)
            yield job

    with scoring.worker_pool(1) as pool:
        ahead = []
        for done, _ in enumerate(scoring.score_in_order(pool, noted())):
            ahead.append(len(read) - done)
    assert len(read) == len(ahead) == 40
    assert ahead[0] == 4, "read ahead while the worker starts, results wait"
    assert max(ahead) <= 4


# As a user's process: its main module imports torch, and it has torch's threads.
PROGRAM = """
import os, sys, time
import torch
from engine.evaluation import workers as scoring
pool_of = scoring.worker_pool(2)
if __name__ == "__main__":
    with pool_of as pool:
        seen = [scoring._submit(pool, eval, "(__import__('os').getpid(), sorted(__import__('sys').modules))")
                for _ in range(8)]
        pids = {future.result()[0] for future in seen}
        heavy = {name for future in seen for name in future.result()[1]} & {"torch", "timm", "cv2", "nvidia.dali"}
        light = {name for future in seen for name in future.result()[1]} & {"engine.evaluation.cleval", "shapely"}
        print(sorted(heavy), sorted(light), flush=True)
        print(*{*pids, *pool._processes}, flush=True)
        time.sleep(float(sys.argv[1]))
"""


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("how", ["module", "file"])
def test_workers_import_no_torch_and_leave_with_a_parent_that_is_killed(tmp_path, how):
    (tmp_path / "program.py").write_text(PROGRAM)
    launch = ["-m", "program"] if how == "module" else [str(tmp_path / "program.py")]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, *launch, "60"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "[] ['engine.evaluation.cleval', 'shapely']\n"
    workers = [int(word) for word in process.stdout.readline().split()]
    assert len(workers) == 2 and all(_alive(pid) for pid in workers)
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 15
    while any(_alive(pid) for pid in workers):
        assert time.monotonic() < deadline, "orphans"
        time.sleep(0.1)


def test_a_worker_that_dies_is_one_line_and_no_hang():
    jobs = _jobs(1) * 30

    def killing():
        for number, job in enumerate(jobs):
            if number == 10:
                os.kill(next(iter(pool._processes)), signal.SIGKILL)
            yield job

    words = "eval.workers: a process that scores pages was killed"
    with pytest.raises(UserError, match=words), scoring.worker_pool(2) as pool:
        list(scoring.score_in_order(pool, killing()))


def test_what_a_page_raises_comes_back_as_it_is():
    bad = (0, ([np.zeros((2, 3))], [], [], None, "official"))
    with pytest.raises(ValueError, match=r"pred\[0\]: float64 \(2, 3\)"), scoring.worker_pool(1) as pool:
        list(scoring.score_in_order(pool, [bad]))


def test_a_training_with_workers_is_the_one_without(trained, tmp_path):
    settings = [*TINY, "name=run", f"run_root={tmp_path}", "eval.workers=1"]
    assert train.main(settings) == 0
    assert not multiprocessing.active_children()
    kept = [store.load_state(run / "checkpoints" / "last") for run in (trained, tmp_path / "run")]
    one, two = ({k: v for k, v in state["scores"].items() if "second" not in k} for state in kept)
    assert one == two and one["images"] == 4
