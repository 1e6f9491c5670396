"""Attempts as tasks of a Ray cluster."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from search_attempts import TREE, attempt_at, tree, wait_for

from engine.jobs import executor as executors
from engine.jobs import remote
from engine.jobs.executor import open_executor
from engine.jobs.fence import side_file
from engine.run.log import read_metrics
from pipelines.errors import UserError
from tests.conftest import ROOT, SUPPORT


@pytest.mark.slow
def test_without_a_ray_cluster_the_mend_is_named():
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    for address in ("127.0.0.1:1", "nonsense"):
        with pytest.raises(UserError, match=rf"--executor ray: no cluster at {address}; begin .* `ray start --head`"):
            open_executor(f"ray:address={address}", 1)


@pytest.fixture(scope="module")
def cluster():
    """A head without resources and two nodes of 4 declared GPUs each: (cluster, nodes), as many as tests leave."""
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 0})
    nodes = [cluster.add_node(num_cpus=4, num_gpus=4) for _ in range(2)]
    cluster.wait_for_nodes()
    yield cluster, nodes
    cluster.shutdown()


@pytest.fixture
def on_ray(cluster):
    before = signal.getsignal(signal.SIGTERM)
    executor = open_executor(f"ray:gpus=2,address={cluster[0].address}", 4)
    assert signal.getsignal(signal.SIGTERM) == before  # the driver's own, which ray.init replaces
    yield executor
    executor.close()


@pytest.mark.slow
def test_ray_stops_what_runs_and_takes_back_what_waits(tmp_path, on_ray):
    attempts = [attempt_at(tmp_path, trial, SEARCH_TEST_SLEEP="60") for trial in range(5)]
    handles = [on_ray.start(attempt) for attempt in attempts]
    wait_for(lambda: sum(bool(tree(attempt)) for attempt in attempts) == 4)
    waiting = next(handle for handle in handles if not tree(handle.attempt))
    time.sleep(1.0)
    assert not any(on_ray.poll(handle) for handle in handles)
    on_ray.stop(waiting, 10.0)
    assert wait_for(lambda: on_ray.poll(waiting)) == executors.Exit(137, "stopped", False)
    handles.remove(waiting)
    on_ray.stop(handles[0], 10.0)
    assert wait_for(lambda: on_ray.poll(handles[0])) == executors.Exit(143, "stopped", False)
    assert not any(on_ray.poll(handle) for handle in handles[1:])
    on_ray.close()
    assert not any(tree(attempt) for attempt in attempts)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "expected"),
    [("crash", (1, "ValueError: this configuration crashes", False)), ("kill", (137, "killed (SIGKILL)", True))],
)
def test_ray_tells_how_an_attempt_ended(tmp_path, on_ray, mode, expected):
    handle = on_ray.start(attempt_at(tmp_path, mode=mode))
    assert wait_for(lambda: on_ray.poll(handle), 60) == executors.Exit(*expected)


@pytest.mark.slow
def test_ray_says_that_a_node_does_not_see_the_study(tmp_path, on_ray, monkeypatch):
    whole = remote.prepare
    monkeypatch.setattr(remote, "prepare", lambda attempt: {**whole(attempt), "log": str(tmp_path / "elsewhere")})
    handle = on_ray.start(attempt_at(tmp_path))
    with pytest.raises(UserError, match=r"--executor ray: .* cannot see .*elsewhere"):
        wait_for(lambda: on_ray.poll(handle), 60)


@pytest.mark.slow
def test_a_killed_driver_takes_its_ray_tasks_along(tmp_path, cluster):
    attempt = attempt_at(tmp_path)
    words = [tmp_path, f"ray:gpus=1,address={cluster[0].address}", "children", "0.2", attempt.environment[TREE]]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{SUPPORT}"}
    driver = subprocess.Popen([sys.executable, SUPPORT / "search_attempts.py", *words], env=environment)
    wait_for(lambda: any("time.sleep(300)" in line for line in tree(attempt).values()), 60)
    driver.kill()
    driver.wait()
    wait_for(lambda: not tree(attempt), 15)


@pytest.mark.slow
def test_a_lost_ray_node_costs_attempts_and_no_trial(tmp_path, cluster, on_ray):
    """Last of the module: it takes a node away. Two trials run on each node, with GPUs of their own."""
    first = [attempt_at(tmp_path, trial, SEARCH_TEST_SLEEP="1", SEARCH_TEST_EPOCHS="12") for trial in range(4)]
    handles = {attempt.trial: on_ray.start(attempt) for attempt in first}
    wait_for(lambda: all(a.log.exists() and "raylet" in a.log.read_text() for a in first), 60)
    seen = [re.search(r"GPUs (\S+) raylet (\d+)", attempt.log.read_text()).groups() for attempt in first]
    assert len(set(seen)) == 4 and {gpus for gpus, _ in seen} == {"0,1", "2,3"}
    cluster[0].remove_node(cluster[1].pop(), allow_graceful=False)
    ends: dict[int, list] = {trial: [] for trial in handles}

    def done() -> bool:
        for trial, handle in list(handles.items()):
            end = on_ray.poll(handle)
            if end:
                ends[trial].append(end)
                del handles[trial]
                if end.outside:
                    again = dataclasses.replace(first[trial], attempt=2, id=f"second-{trial}")
                    handles[trial] = on_ray.start(again)
        return not handles

    wait_for(done, 120)
    retried = [trial for trial, found in ends.items() if len(found) == 2]
    assert len(retried) == 2 and all(ends[trial][0].outside for trial in retried)
    assert all(found[-1] == executors.Exit(0, "", False) for found in ends.values())
    for attempt in first:
        epochs = [record["epoch"] for record in read_metrics(attempt.folder / "metrics.jsonl")]
        assert epochs == list(range(1, 13)) and side_file(attempt.folder, "lock").exists()
