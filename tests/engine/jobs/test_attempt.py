"""An attempt's processes: whoever is killed, whenever, nothing of it is left; of two attempts the newer one writes."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from search_attempts import TREE, attempt_at, tree, wait_for

from engine.jobs import attempt as wrapper
from engine.jobs import executor as executors
from engine.jobs import fence
from engine.jobs.tail import Tail
from engine.run.log import read_metrics
from engine.search import objective
from pipelines.errors import UserError
from tests.conftest import ROOT, SUPPORT, TINY
from tests.engine.jobs.conftest import trainings, wrappers

SURVIVE_S = 5.0


def _gone(attempt) -> None:
    wait_for(lambda: not tree(attempt), SURVIVE_S)


def _start_driver(study, attempt) -> subprocess.Popen:
    """A process of its own that runs one attempt in the TREE of this one."""
    words = [str(study), "local", "children", "0.1", attempt.environment[TREE]]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{SUPPORT}"}
    return subprocess.Popen([sys.executable, SUPPORT / "search_attempts.py", *words], env=environment)


@pytest.mark.parametrize("moment", [0.0, 0.2, 1.0])
def test_a_killed_driver_takes_everything_along(tmp_path, moment):
    attempt = attempt_at(tmp_path)
    driver = _start_driver(tmp_path, attempt)
    wait_for(lambda: tree(attempt))
    if moment == 1.0:  # with a grandchild in a session of its own that does not hear SIGTERM
        wait_for(lambda: any("time.sleep(300)" in line for line in tree(attempt).values()))
    time.sleep(moment)
    driver.kill()
    driver.wait()
    _gone(attempt)


@pytest.mark.parametrize("moment", [0.0, 0.1, 1.0])
def test_a_killed_wrapper_takes_everything_along(tmp_path, local, moment):
    attempt = attempt_at(tmp_path, mode="children", SEARCH_TEST_SLEEP="0.1", SEARCH_TEST_EPOCHS="50")
    handle = local.start(attempt)
    if moment == 1.0:
        wait_for(lambda: any("time.sleep(300)" in line for line in tree(attempt).values()))
    time.sleep(moment)
    handle.job.kill()
    _gone(attempt)
    end = wait_for(lambda: local.poll(handle))
    assert (end.code, end.outside) == (137, True) and end.reason == "killed (SIGKILL)"


@pytest.mark.slow
def test_at_twenty_random_moments_nothing_is_left(tmp_path):
    """SIGKILL to the driver, or to any one process of the attempt, in the 1.5 s in which its tree grows."""
    generator, victims = random.Random(5), []
    for trial in range(20):
        attempt = attempt_at(tmp_path / str(trial))
        driver = _start_driver(tmp_path / str(trial), attempt)
        wait_for(lambda: tree(attempt))  # noqa: B023
        time.sleep(generator.uniform(0.0, 1.5))
        processes = tree(attempt)
        victim = generator.choice([driver.pid, *sorted(processes)])
        victims.append("driver" if victim == driver.pid else processes[victim].split()[2])
        os.kill(victim, signal.SIGKILL)
        if victim != driver.pid:
            time.sleep(generator.uniform(0.0, 0.3))
            driver.kill()  # a killed keeper or grandchild ends no attempt
        driver.wait()
        _gone(attempt)
    assert {"driver", "engine.jobs.attempt", "engine.search.objective"} <= set(victims), victims


def test_a_killed_keeper_is_replaced(tmp_path, local):
    attempt = attempt_at(tmp_path, mode="children", SEARCH_TEST_SLEEP="0.1", SEARCH_TEST_EPOCHS="50")
    handle = local.start(attempt)
    wait_for(lambda: any("time.sleep(300)" in line for line in tree(attempt).values()))
    keeper = next(pid for pid in wrappers(tree(attempt)) if pid != handle.job.pid)
    os.kill(keeper, signal.SIGKILL)
    wait_for(lambda: keeper not in tree(attempt) and len(wrappers(tree(attempt))) == 2)
    handle.job.kill()
    _gone(attempt)


def test_a_killed_training_is_an_outside_cause_and_its_children_go(tmp_path, local):
    attempt = attempt_at(tmp_path, mode="children", SEARCH_TEST_SLEEP="0.1", SEARCH_TEST_EPOCHS="50")
    handle = local.start(attempt)
    wait_for(lambda: any("time.sleep(300)" in line for line in tree(attempt).values()))
    os.kill(trainings(tree(attempt))[0], signal.SIGKILL)
    assert wait_for(lambda: local.poll(handle)) == executors.Exit(137, "killed (SIGKILL)", True)
    assert not tree(attempt)  # an end is only told when nothing is left
    record = executors.read_record(attempt)
    assert (record["signal"], record["code"]) == (9, 137) and record["seconds"] > 0.1 and record["peak_mib"] > 5


def test_a_training_that_is_deaf_to_sigterm_is_killed_after_the_grace(tmp_path, local):
    attempt = attempt_at(tmp_path, mode="hang")
    handle = local.start(attempt)
    metrics = attempt.folder / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and read_metrics(metrics))
    time.sleep(0.2)
    local.stop(handle, 0.5)
    assert local.poll(handle) is None  # stop does not wait
    begin = time.monotonic()
    end = wait_for(lambda: local.poll(handle))
    assert (end.code, end.reason, end.outside) == (137, "stopped", False)
    assert executors.read_record(attempt)["signal"] == signal.SIGKILL  # the wrapper saw to it and wrote so
    assert 0.2 < time.monotonic() - begin < SURVIVE_S
    assert not tree(attempt)


def test_a_sigterm_from_elsewhere_is_an_outside_cause(tmp_path, local):
    attempt = attempt_at(tmp_path, SEARCH_TEST_SLEEP="30")
    handle = local.start(attempt)
    wait_for(lambda: trainings(tree(attempt)))
    handle.job.terminate()
    assert wait_for(lambda: local.poll(handle)) == executors.Exit(143, "killed (SIGTERM)", True)


def test_a_stop_file_ends_an_attempt_and_no_other(tmp_path, local):
    attempt = attempt_at(tmp_path, SEARCH_TEST_SLEEP="30")
    stop = fence.side_file(attempt.folder, "stop")
    stop.parent.mkdir()
    stop.write_text(json.dumps({"id": "of an earlier attempt", "grace": 0}))
    handle = local.start(attempt)
    wait_for(lambda: trainings(tree(attempt)))
    time.sleep(1.5)
    assert local.poll(handle) is None
    wrapper.write_json(stop, {"id": attempt.id, "grace": 1.0})
    wait_for(lambda: local.poll(handle))
    assert executors.read_exit(attempt, asked=True) == executors.Exit(143, "stopped", False)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("", executors.Exit(0, "", False)),
        ("crash", executors.Exit(1, "ValueError: this configuration crashes", False)),
        ("nan", executors.Exit(2, "the objective is nan at epoch 2", False)),
        ("oom", executors.Exit(1, "out of memory", True)),
        ("memory", executors.Exit(1, "out of memory", True)),
        ("kill", executors.Exit(137, "killed (SIGKILL)", True)),
    ],
)
def test_how_an_attempt_ended(tmp_path, local, mode, expected):
    attempt = attempt_at(tmp_path, mode=mode)
    handle = local.start(attempt)
    assert wait_for(lambda: local.poll(handle)) == expected
    record = executors.read_record(attempt)
    assert set(record) == {field.name for field in dataclasses.fields(wrapper.End)}
    assert (record["id"], record["attempt"], record["code"]) == (attempt.id, 1, expected.code)
    epochs = [r["epoch"] for r in read_metrics(attempt.folder / "metrics.jsonl")]
    assert epochs == ([1, 2, 3, 4, 5] if mode == "" else [1])


def test_a_program_that_is_not_there_is_one_line(tmp_path, local):
    attempt = dataclasses.replace(attempt_at(tmp_path), command=["/no/such/program"])
    handle = local.start(attempt)
    end = wait_for(lambda: local.poll(handle))
    assert end == executors.Exit(127, "/no/such/program: No such file or directory", False)
    assert attempt.log.read_text() == "error: /no/such/program: No such file or directory\n"


def test_the_log_is_appended_to_and_only_this_attempts_lines_count(tmp_path, local):
    attempt = attempt_at(tmp_path, mode="crash")
    attempt.log.parent.mkdir()
    attempt.log.write_text("CUDA out of memory\n")
    handle = local.start(attempt)
    assert wait_for(lambda: local.poll(handle)).reason == "ValueError: this configuration crashes"
    assert attempt.log.read_text().startswith("CUDA out of memory\nGPUs")


TORCHRUN_KILLED = "exitcode  : -9 (pid: 5)\n traceback : Signal 9 (SIGKILL) received by PID 5\n"


@pytest.mark.parametrize(
    ("status", "cause", "tail", "expected"),
    [
        (0, "", "CUDA out of memory, the step was repeated", (0, 0, "", False)),
        (0, wrapper.STOPPED, "", (0, 0, "stopped", False)),
        (15, wrapper.STOPPED, "", (143, 15, "stopped", False)),
        (15, wrapper.DRIVER_ENDED, "", (143, 15, "driver ended", True)),
        (9, wrapper.TOOK_OVER, "", (75, 9, "a newer attempt took over", True)),
        (9, "", "slurmstepd: error: Detected 1 oom_kill event in StepId=1.0", (137, 9, "out of memory", True)),
        (15, "", "", (143, 15, "killed (SIGTERM)", True)),
        (11, "", "Segmentation fault", (139, 11, "killed (SIGSEGV)", False)),
        (256, "", TORCHRUN_KILLED, (1, 0, "killed (SIGKILL)", True)),
        (256, "", "exitcode : -15\nexitcode : 1\nKeyError: 3\n", (1, 0, "KeyError: 3", False)),
        (
            512,
            "",
            "error: the loss is nan at step 3: lower it\nE1125 torchrun says more\n",
            (2, 0, "the loss is nan", False),
        ),
        (256, "", "error: data.train=x: no pages in it\nexitcode  : 2 (pid: 5)\n", (2, 0, "data.train=x", False)),
        (768, "", "", (3, 0, "exit code 3", False)),
        (75 << 8, "", "", (143, 0, "stopped by a signal", True)),
        (75 << 8, wrapper.STOPPED, "", (75, 0, "stopped", False)),
        (256, "", "exitcode  : 71 (pid: 5)\nexitcode : -9\n", (143, 0, "a rank hung", True)),
    ],
)
def test_what_an_end_means(status, cause, tail, expected):
    code, number, reason, outside = wrapper.verdict(status, cause, tail)
    assert (code, number, reason[: len(expected[2])], outside) == expected


def test_the_value_an_objective_returns(tmp_path):
    def records(function, metric="val/hmean"):
        objective.run(function, {"x": 1}, tmp_path / "run", metric)
        return [(r["kind"], r["epoch"], r.get("loss", r.get("hmean")), r["score"]) for r in read_metrics(path)]

    path = tmp_path / "run" / "metrics.jsonl"
    assert records(lambda values, report: values["x"]) == [("validation", 1, 1.0, 1.0)]
    assert records(lambda values, report: report(4, 0.5)) == [("validation", 4, 0.5, 0.5)]  # returns None
    assert records(lambda v, report: report(2, 0.5) or 0.25, "loss")[-1] == ("validation", 2, 0.25, 0.25)
    assert len(records(lambda v, report: report(1, 0.5) or report(2, 0.4) or 0.5)) == 2  # the best, said again
    with pytest.raises(UserError, match="reported nothing"):
        records(lambda values, report: None)
    with pytest.raises(UserError, match="the objective is inf at epoch 1"):
        records(lambda values, report: float("inf"))


def test_the_records_of_each_attempt_are_in_a_file_of_its_own(tmp_path):
    """ext4 gives a new file the number of the one just removed: one who reads on from his place would miss records."""
    tail = Tail(tmp_path / "metrics.jsonl")
    for attempt in range(3):

        def function(values, report, attempt=attempt):
            report(1, 0.5 + attempt)
            report(2, 0.6 + attempt)

        objective.run(function, {}, tmp_path, "val/hmean")
        assert [record["hmean"] for record in tail.read()] == [0.5 + attempt, 0.6 + attempt]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("text", ["search_objective", "no_such_module:f", "search_objective:nothing"])
def test_an_objective_that_is_not_there_is_one_line(text):
    with pytest.raises(UserError, match=f"--objective {text}"):
        objective.load(text)


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["wrapper", "torchrun", "stop"])
def test_two_ranks_under_torchrun_go_too(tmp_path, local, victim):
    folder = tmp_path / "trials" / "001"
    train = ["-m", "engine.train", *TINY, "trainer.max_epochs=500", f"run_root={folder.parent}", "name=001"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    attempt = dataclasses.replace(
        attempt_at(tmp_path, OMP_NUM_THREADS="1"), command=[*launch, *train, "resume=auto", "eval.workers=1"]
    )
    handle = local.start(attempt)
    wait_for(lambda: (folder / "metrics.jsonl").exists() and read_metrics(folder / "metrics.jsonl"), 120)
    words = list(tree(attempt).values())
    ranks = [line for line in words if "-u -m engine.train" in line]
    assert len(ranks) == 2 and any("spawn_main" in line for line in words), words
    if victim == "stop":
        local.stop(handle, 4.0)
    elif victim == "wrapper":
        handle.job.kill()
    else:
        os.kill(
            next(
                p
                for p, line in tree(attempt).items()
                if "torch.distributed.run" in line and p not in wrappers(tree(attempt))
            ),
            signal.SIGKILL,
        )
    _gone(attempt)
    assert wait_for(lambda: local.poll(handle)).outside == (victim != "stop")
