"""Where attempts run: GPU shares on this machine, a Ray cluster of two nodes in processes of their own."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from search_attempts import TREE, attempt_at, run_all, tree, wait_for

from engine.jobs import executor as executors
from engine.jobs import remote
from engine.jobs.fence import side_file
from engine.jobs.local import LocalExecutor, visible_gpus
from engine.jobs.open import open_executor
from engine.run.log import read_metrics
from pipelines.errors import UserError
from tests.conftest import ROOT, SUPPORT


@pytest.mark.parametrize(
    ("agents", "gpus", "each", "idle"),
    [(1, "01234567", 8, ""), (8, "01234567", 1, ""), (3, "01234567", 2, "2 of 8 GPUs stay idle"), (4, "", 0, "")],
)
def test_gpus_are_split_evenly(agents, gpus, each, idle):
    executor = LocalExecutor(agents, list(gpus))
    assert (executor.slots, executor.gpus) == (agents, each) and executor.notice.startswith(idle)
    assert bool(executor.notice) == bool(idle)


def test_running_attempts_have_gpus_of_their_own_and_a_free_share_is_used_again(tmp_path):
    executor = LocalExecutor(2, ["0", "3", "5", "GPU-7"])
    attempts = [attempt_at(tmp_path, trial, SEARCH_TEST_SLEEP="0.05") for trial in range(4)]
    assert run_all(executor, attempts) == [executors.Exit(0, "", False)] * 4
    seen = [re.search(r"GPUs (\S+)", attempt.log.read_text())[1] for attempt in attempts]
    assert set(seen[:2]) == {"0,3", "5,GPU-7"} and set(seen) == {"0,3", "5,GPU-7"}
    executor.close()


def test_without_gpus_the_cores_are_split(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)))
    assert LocalExecutor(1)._own(0) == {}
    assert LocalExecutor(5)._own(3) == {"OMP_NUM_THREADS": "2"}
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert LocalExecutor(5)._own(3) == {}


@pytest.mark.parametrize(
    ("given", "found"), [("", []), ("-1", []), ("NoDevFiles", []), ("2", ["2"]), ("0, 1,GPU-ab", ["0", "1", "GPU-ab"])]
)
def test_gpus_come_from_the_environment_first(monkeypatch, given, found):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert visible_gpus() == found


def test_gpus_come_from_nvidia_smi_else(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus() == []
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 0\necho 1\n")
    program.chmod(0o755)
    assert visible_gpus() == ["0", "1"]
    program.write_text("#!/bin/sh\nexit 9\n")
    assert visible_gpus() == []


@pytest.mark.parametrize(
    ("text", "agents", "gpus", "words"),
    [
        ("local", 4, ["0", "1"], "--agents 4: there are 2 GPUs; use --agents 2 or fewer"),
        ("local", 0, [], "--agents 0"),
        ("local:gpus=2", 1, [], "local takes no options"),
        ("dask", 1, [], "--executor dask: expected one of local, ray, slurm"),
        ("ray:gpu=2", 1, [], "--executor ray: unknown option gpu; expected gpus, cpus, address"),
    ],
)
def test_an_executor_that_cannot_be_is_one_line(text, agents, gpus, words):
    with pytest.raises(UserError, match=re.escape(words)):
        open_executor(text, agents, gpus)


@pytest.mark.parametrize(("name", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_extra_is_named(monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=re.escape(f"pip install -e '.[{name}]'")):
        open_executor(name, 1)


def test_slurm_forgets_a_trial_by_cancelling_the_job_that_an_earlier_driver_left(tmp_path, monkeypatch):
    from engine.jobs import slurm

    for program in ("sbatch", "srun", "squeue", "scancel"):
        path = tmp_path / program
        path.write_text(f"#!/bin/sh\necho $* >> {tmp_path}/{program}.log\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(slurm, "_import_submitit", lambda: None)
    executor = slurm.SlurmExecutor(1, {})
    executor.forget(tmp_path / "006")  # never submitted
    note = tmp_path / "007.job"
    note.write_text("4711\n")
    executor.forget(tmp_path / "007")
    jobs = [SimpleNamespace(job=SimpleNamespace(job_id=text)) for text in "1234"]
    executor._states = {"1": "PENDING", "2": "RUNNING", "3": "COMPLETED"}  # Slurm knows nothing of 4
    assert [executor.waits(job) for job in jobs] == [True, False, False, False]
    assert not note.exists() and (tmp_path / "scancel.log").read_text() == "4711\n"


def test_a_slurm_job_says_in_its_log_why_it_could_not_start_and_no_other_line_counts(tmp_path, capsys):
    from engine.jobs import slurm

    attempt, log = attempt_at(tmp_path), tmp_path / "job.out"
    mark = slurm.fault_mark(attempt)
    log.write_text("fault: a line of the trial's own\n")
    assert slurm._fault(log, mark) == "" == slurm._fault(tmp_path / "none", mark)
    order = {**remote.prepare(attempt), "cwd": str(tmp_path / "elsewhere")}
    slurm.Job(order, mark)()
    log.write_text(log.read_text() + capsys.readouterr().out + "fault: another\nattempt 0 could not start: x\n")
    assert slurm._fault(log, mark).endswith(
        f"cannot see {tmp_path}/elsewhere: the study and the code must be on a folder that all nodes share"
    )


def test_close_leaves_nothing(tmp_path):
    executor = LocalExecutor(2)
    attempts = [
        attempt_at(tmp_path, trial, mode="children", SEARCH_TEST_SLEEP="0.1", SEARCH_TEST_EPOCHS="50")
        for trial in (1, 2)
    ]
    for attempt in attempts:
        executor.start(attempt)
    wait_for(lambda: all(any("time.sleep(300)" in line for line in tree(a).values()) for a in attempts))
    executor.close()
    assert not any(tree(attempt) for attempt in attempts)


def test_a_node_that_does_not_see_the_study_says_so(tmp_path):
    order = remote.prepare(attempt_at(tmp_path))
    missing = tmp_path / "not-shared.log"
    result = remote.run({**order, "log": str(missing)})
    assert result["code"] == 1 and f"cannot see {missing}: the study and the code must be" in result["fault"]


def test_an_attempt_as_another_machine_runs_it(tmp_path):
    """By value, in a process that cannot import this package: as a worker of Ray or Slurm has it."""
    pickle = pytest.importorskip("cloudpickle")
    pickle.register_pickle_by_value(remote)
    attempt = attempt_at(tmp_path, mode="crash")
    file = tmp_path / "call"
    file.write_bytes(pickle.dumps((remote.run, remote.prepare(attempt))))
    code = "import pickle, sys; run, order = pickle.load(open(sys.argv[1], 'rb')); print(run(order))"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code, file], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "{'code': 1, 'fault': ''}"
    assert executors.read_exit(attempt, False) == executors.Exit(1, "ValueError: this configuration crashes", False)


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
