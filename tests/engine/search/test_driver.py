"""The driver: what becomes of trials, well and ill, and that no kill of it or of them loses or repeats one.

Objectives of `search_objective.py` take the place of trainings; attempts are real processes all the same.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine.jobs import fence
from engine.jobs.executor import Exit
from engine.jobs.tail import Tail
from engine.search import ask, ledger, trials
from engine.search import driver as loop
from engine.search.model import stopping
from engine.search.space import Space
from engine.search.study import ENDED, Confirmation, Runner, Study, Trial
from pipelines.errors import UserError
from tests.engine.search.conftest import RATE, T_MAX, Lines, asks, attempts_of, command, new, run


def test_a_search_ends_with_every_trial_told(place):
    study, lines, done = run(place, "quadratic", budget=5, agents=2)
    assert done and [trial.number for trial in study.trials] == list(range(5))
    assert {trial.state for trial in study.trials} == {"finished"}
    for trial in study.trials:
        assert [epoch for epoch, _ in trial.curve] == [1, 2, 3, 4, 5] and trial.attempts == 1
        assert trial.value == trial.curve[-1][1] == trial.scores["hmean"] and trial.minutes >= 0
        assert (study.folder / "logs" / f"{trial.number:03d}.1.log").exists()
    assert study.trials[0].kind == "preset" and study.trials[0].values == study.first
    assert len({tuple(trial.values.items()) for trial in study.trials}) == 5
    assert sum("starts" in line for line in lines) == sum("finished" in line for line in lines) == 5


def test_a_space_that_is_known_before_the_budget_is_spent_ends_the_search(place):
    """A budget of 4 for the 4 configurations of a space, two of which came from elsewhere."""
    study = Study(place / "s", "s", Space((T_MAX,)), budget=4, agents=2, max_epochs=5)
    study.objective, study.first, study.early_stop = "search_objective:slow_T_max", {"T_max": 15}, {"type": "none"}
    known = [Trial(0, {"T_max": 18}, "imported", 0, state="finished", value=0.8)]
    known.append(Trial(1, {"T_max": 20}, "recommended", 0, state="finished", value=0.7))
    book = ledger.create(study, [event for trial in known for event in ledger.imported_events(trial)])
    found, _, done = run(place, "", book=book)
    assert done and [trial.values["T_max"] for trial in found.searched] == [15, 25]
    assert {(trial.state, trial.attempts) for trial in found.searched} == {("finished", 1)}


def test_ill_trials_are_infeasible_and_the_search_goes_on(place, monkeypatch):
    asks(monkeypatch, *({"lr": 1e-4, "T_max": value} for value in T_MAX.values))
    study, _, done = run(place, "sick")
    diverged, killed, wrong, well = study.trials
    assert done
    assert (diverged.state, diverged.attempts) == ("infeasible", 1) and "is nan" in diverged.reason
    assert (killed.state, killed.attempts, killed.retries, killed.value) == ("finished", 2, 1, 0.9)
    assert (wrong.state, wrong.attempts) == ("infeasible", 1) and "ZeroDivisionError: as told" in wrong.reason
    assert (well.state, well.value) == ("finished", 0.9)
    assert diverged.value is None and wrong.value is None


def test_killed_twice_from_outside_is_given_up(place, monkeypatch):
    asks(monkeypatch, {"lr": 1e-4, "T_max": 15})
    study, _, _ = run(place, "always_killed", budget=1)
    (trial,) = study.trials
    assert (trial.state, trial.attempts) == ("infeasible", 2)
    assert "SIGKILL" in trial.reason and "2 times" in trial.reason


@pytest.mark.parametrize("limit", ["timeout", "stall"])
def test_a_trial_that_hangs_is_given_up(place, monkeypatch, limit):
    asks(monkeypatch, {"lr": 1e-4, "T_max": 15})
    study, _, _ = run(place, "hangs", budget=1, runner=Runner(**{limit: 1.5 / 60}))
    (trial,) = study.trials
    assert (trial.state, trial.value, trial.attempts) == ("infeasible", None, 1)
    assert {"timeout": "timed out", "stall": "no evaluation for"}[limit] in trial.reason


class Queue:
    """An executor whose one job waits or runs as the test says."""

    slots, gpus, notice, waiting = 1, 0, "", True

    def start(self, attempt):
        attempt.folder.parent.mkdir(parents=True)
        return attempt

    def poll(self, handle):
        return None

    def waits(self, handle):
        return self.waiting

    def stop(self, handle, grace_s):
        return None


@pytest.mark.parametrize(("limit", "reason"), [({"stall": 10}, "no evaluation for 10"), ({"timeout": 20}, "after 2")])
def test_the_time_in_which_a_requeued_job_waits_is_not_the_trials(place, monkeypatch, limit, reason):
    minutes = [0.0]
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: 60 * minutes[0]))
    space, runner = Space((RATE, T_MAX)), Runner(**limit)
    book = ledger.create(Study(place / "s", "s", space, budget=1, objective="x:y", runner=runner))
    book.append(**ledger.trial_event(trials.new_trial(book.study, {"lr": 1e-4, "T_max": 15}, "preset", 0)))
    driver = loop.Driver(book, Queue(), Lines())
    loop.start(driver, book.study.trials[0])
    (run,) = driver.running

    def later(passed: float, token: str = "") -> float:
        """Looks at the attempt after so many minutes of waiting, or of a life with this token."""
        minutes[0] += passed
        driver.executor.waiting = not token
        if token:
            record = {"attempt": 1, "id": run.attempt.id, "token": token}
            fence.side_file(run.attempt.folder, "lock").write_text(json.dumps(record))
        loop.watch(driver, run)
        return run.minutes

    assert later(100) == 0
    assert later(0, "a") == 0 and later(9, "a") == pytest.approx(9)
    assert later(300) == later(200) == pytest.approx(9)  # its node was lost
    assert later(0, "b") == pytest.approx(9) and later(9, "b") == pytest.approx(18) and run.verdict is None
    later(4, "b")
    assert run.verdict["state"] == "infeasible" and reason in run.verdict["reason"]
    book.close()


def test_a_trial_that_is_stopped_keeps_its_estimate(place, monkeypatch):
    decided = stopping.Decision(True, "too slow", (0.93, 0.004))
    going = stopping.Decision(False, "", None)
    monkeypatch.setattr(stopping, "decide", lambda trial, study: decided if trial.epochs == 2 else going)
    study, lines, _ = run(place, "slow", budget=1)
    (trial,) = study.trials
    assert (trial.state, trial.reason, trial.estimate) == ("stopped", "too slow", (0.93, 0.004))
    assert trial.epochs == 2 and trial.value == trial.curve[1][1] and study.incumbent() is trial
    assert any("stopped" in line and "too slow" in line for line in lines)


class Script:
    """An executor whose attempts do as the test says: `acts[trial]` is a list of (records, Exit), one an attempt."""

    slots, gpus, notice = 1, 0, ""

    def __init__(self, acts: dict) -> None:
        self.acts, self.stopped, self.forgotten = acts, [], []

    def start(self, attempt):
        records, exit = self.acts[attempt.trial].pop(0)
        attempt.folder.mkdir(parents=True, exist_ok=True)
        lines = [{"kind": "validation", "step": epoch, "epoch": epoch, **scores} for epoch, scores in records]
        (attempt.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return attempt, exit

    def poll(self, handle):
        attempt, exit = handle
        return Exit(143, "stopped", False) if attempt.id in self.stopped else exit

    def stop(self, handle, grace_s):
        assert handle[0].id not in self.stopped, "stopped twice"
        self.stopped.append(handle[0].id)

    def waits(self, handle):
        return False

    def forget(self, folder):
        self.forgotten.append(folder)

    def close(self):
        return None


def scripted(place, monkeypatch, acts: list, **fields) -> Study:
    asks(monkeypatch, *({"lr": 1e-4 / (k + 1), "T_max": 15} for k in range(len(acts))))
    return run(place, "quadratic", Script(dict(enumerate(acts))), budget=len(acts), **fields)[0]


def test_what_an_end_means(place, monkeypatch):
    good = [(1, {"hmean": 0.8}), (2, {"hmean": 0.9, "recall": 0.7})]
    well, bad, memory = Exit(0, "", False), Exit(2, "the loss is nan at step 9", False), Exit(1, "out of memory", True)
    study = scripted(
        place, monkeypatch,
        [
            [(good, well)], [(good, bad)], [(good[:1], memory), (good, well)], [(good, memory), (good, memory)],
            [([], well)], [([(1, {"hmean": None})], None)], [([(1, {"loss": 3.0, "recall": 1.0})], None)],
        ],
    )  # fmt: skip
    states = [(trial.state, trial.attempts, trial.value) for trial in study.trials]
    assert states == [
        ("finished", 1, 0.9), ("infeasible", 1, None), ("finished", 2, 0.9), ("infeasible", 2, None),
        ("infeasible", 1, None), ("infeasible", 1, None), ("infeasible", 1, None),
    ]  # fmt: skip
    reasons = [trial.reason for trial in study.trials]
    assert reasons[0] == reasons[2] == "" and reasons[1] == "the loss is nan at step 9" and "memory" in reasons[3]
    assert "without an evaluation" in reasons[4] and "no number at epoch 1" in reasons[5]
    assert "no val/hmean" in reasons[6] and "recall" in reasons[6]
    assert study.trials[2].curve == [(1, 0.8), (2, 0.9)] and study.trials[0].scores == {"hmean": 0.9, "recall": 0.7}


def refusing(place, monkeypatch, *acts, **fields) -> Study:
    """A search over trainings, whose attempts end as the test says."""
    asks(monkeypatch, *({"lr": 1e-4 / (k + 1), "T_max": 15} for k in range(4)))
    monkeypatch.setattr(trials, "command", lambda study, trial, gpus: [])
    study = Study(place / "s", "s", Space((RATE, T_MAX)), budget=4, early_stop={"type": "none"}, **fields)
    with contextlib.closing(ledger.create(study)) as book:
        script = Script({k: list(act) for k, act in enumerate(acts)})
        loop.search(loop.Driver(book, script, Lines(), poll_s=0.0))
    return book.study


def test_a_fault_that_all_trials_share_ends_the_search_with_its_line(place, monkeypatch):
    well = ([(1, {"hmean": 0.8})], Exit(0, "", False))
    full = ([(1, {"hmean": 0.7})], Exit(2, "runs: disk full; free it", False))
    with pytest.raises(UserError) as caught:
        refusing(place, monkeypatch, [well], [full])
    assert str(caught.value).startswith("runs: disk full; free it (trial 1;") and "\n" not in str(caught.value)
    assert f"engine.search --resume {place / 's'}` goes on" in str(caught.value)
    study = ledger.read(place / "s")
    assert [(t.state, t.retries) for t in study.trials] == [("finished", 0), ("asked", 0)]  # it is tried again
    with contextlib.closing(ledger.Ledger(place / "s")) as book:
        assert loop.search(loop.Driver(book, Script({k: [well] for k in range(1, 4)}), Lines(), poll_s=0.0))
        assert [t.state for t in book.study.trials] == ["finished"] * 4


@pytest.mark.parametrize(
    "end",
    [
        Exit(2, "T_max=15: above trainer.max_epochs", False),  # a searched key
        Exit(2, "diverged at step 9: lower models.optimizer.lr", False),
        Exit(1, "KeyError: 3", False),
    ],
)
def test_a_fault_of_its_own_is_a_trials(place, monkeypatch, end):
    well = [([(1, {"hmean": 0.8})], Exit(0, "", False))]
    study = refusing(place, monkeypatch, [([], end)], well, well, well)
    assert [trial.state for trial in study.trials] == ["infeasible", *["finished"] * 3]


def test_how_a_divergence_begins():
    from engine.config import Config
    from engine.training.faults import Diverged

    run = SimpleNamespace(config=Config(), folder=Path("runs/a"))
    assert str(Diverged("x", SimpleNamespace(step=3, rollback_factor=1.0), run)).startswith(loop.DIVERGED)


def test_an_evaluation_with_pages_that_could_not_be_read_is_left_out(place, monkeypatch, capsys):
    curve = [(1, {"hmean": 0.8, "bad_images": 0.0}), (2, {"hmean": 0.95, "bad_images": 1.0}), (3, {"hmean": 0.85})]
    study = scripted(place, monkeypatch, [[(curve, Exit(0, "", False))], [(curve[1:2], Exit(0, "", False))]])
    assert study.trials[0].curve == [(1, 0.8), (3, 0.85)] and study.trials[0].value == 0.85
    assert study.trials[1].state == "infeasible" and "without an evaluation" in study.trials[1].reason


def test_a_resumed_attempt_repeats_no_epoch_and_a_new_measurement_wins(place, monkeypatch):
    first = [(1, {"hmean": 0.8}), (2, {"hmean": 0.9})]
    again = [(1, {"hmean": 0.8}), (2, {"hmean": 0.85}), (3, {"hmean": 0.86})]
    study = scripted(place, monkeypatch, [[(first, Exit(137, "killed (SIGKILL)", True)), (again, Exit(0, "", False))]])
    assert study.trials[0].curve == [(1, 0.8), (2, 0.85), (3, 0.86)] and study.trials[0].value == 0.86
    lines = [json.loads(line) for line in (study.folder / ledger.FILE).read_text().splitlines()]
    epochs = [(line["attempt"], line["epoch"]) for line in lines if line["event"] == "epoch"]
    assert epochs == [(1, 1), (1, 2), (2, 2), (2, 3)]


def test_a_trial_whose_stop_the_driver_did_not_live_to_note(place, monkeypatch):
    monkeypatch.setattr(
        stopping, "decide", lambda trial, study: stopping.Decision(trial.epochs >= 2, "late", (0.9, 0.01))
    )
    asks(monkeypatch, {"lr": 1e-4, "T_max": 15})
    study = Study(place / "s", "s", Space((RATE, T_MAX)), budget=1, objective="x:y")
    book = ledger.create(study)
    book.append(**ledger.trial_event(trials.new_trial(study, {"lr": 1e-4, "T_max": 15}, "preset", 0)))
    book.append("start", trial=0, attempt=1, id="a", where="local")
    for epoch in (1, 2):
        book.append("epoch", trial=0, attempt=1, epoch=epoch, value=0.5, scores={})
    script = Script({})
    found, _, _ = run(place, "", script, book)
    assert script.forgotten == [trials.run_folder(study, found.trials[0])]  # its job may be with Slurm still
    assert (found.trials[0].state, found.trials[0].reason, found.trials[0].attempts) == ("stopped", "late", 1)


class Again(Script):
    """An executor whose trial k always measures the same; trial 1 is killed the first time it gets to epoch 2."""

    def __init__(self) -> None:
        super().__init__({})
        self.started: list[tuple[int, int]] = []

    def start(self, attempt):
        self.started.append((attempt.trial, attempt.attempt))
        records = [(epoch, {"hmean": 0.9 - 0.1 / epoch - 0.01 * attempt.trial}) for epoch in range(1, 4)]
        act = (records, Exit(0, "", False))
        if attempt.trial == 1 and attempt.attempt == 1:
            act = (records[:2], Exit(137, "killed (SIGKILL)", True))
        self.acts[attempt.trial] = [act]
        return super().start(attempt)


def test_a_driver_that_dies_between_any_two_events(place, monkeypatch):
    """The ledger cut after each of its lines, and resumed: the same trials, curves and values in the end."""
    asks(monkeypatch, *({"lr": 1e-4 / (k + 1), "T_max": 15} for k in range(3)))
    going, late = stopping.Decision(False, "", None), stopping.Decision(True, "late", (0.8, 0.01))
    monkeypatch.setattr(
        stopping, "decide", lambda trial, study: late if (trial.number, trial.epochs) == (2, 2) else going
    )
    monkeypatch.setattr(ask, "unmeasured", lambda study: {"lr": 3e-5, "T_max": 18})
    monkeypatch.setattr(ask, "chosen", lambda study, posterior: study.trials[2:4])
    calm, _, _ = run(place, "quadratic", Again(), budget=3, confirmation=Confirmation(1))
    states = [(trial.kind, trial.state, trial.value, trial.curve) for trial in calm.trials]
    assert [state for _, state, *_ in states] == ["finished", "finished", "stopped", *["finished"] * 3]
    assert [kind for kind, *_ in states][3:] == ["recommended", "confirm", "confirm"]
    lines = (calm.folder / ledger.FILE).read_bytes().splitlines(keepends=True)
    for count in range(1, len(lines) + 1):
        folder = place / f"cut{count}"
        folder.mkdir()
        (folder / ledger.FILE).write_bytes(b"".join(lines[:count]))
        executor = Again()
        found, _, done = run(place, "", executor, ledger.Ledger(folder))
        assert done and [(t.kind, t.state, t.value, t.curve) for t in found.trials] == states, count
        assert [trial.values for trial in found.trials] == [trial.values for trial in calm.trials], count
        assert [(t.repeats, t.seed) for t in found.trials] == [(t.repeats, t.seed) for t in calm.trials], count
        assert len(set(executor.started)) == len(executor.started)
        ended = [trial.number for trial in ledger.read(folder).trials if trial.state in ENDED]
        assert ended == list(range(6)), count


def test_metrics_are_read_as_they_grow(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    assert tail.read() == []
    record = {"kind": "validation", "epoch": 1, "hmean": 0.5}
    path.write_text(json.dumps(record) + "\n" + json.dumps({"kind": "train", "epoch": 0, "loss": 1}) + '\n{"kind": "va')
    assert tail.read() == [record] and tail.read() == []
    with path.open("a") as file:
        file.write('lidation", "epoch": 2}\nnonsense\n')
    assert [found["epoch"] for found in tail.read()] == [2]
    other = tmp_path / "new"
    other.write_text(json.dumps(record) + "\n")
    other.replace(path)  # as a resumed training replaces it
    assert tail.read() == [record]
    path.unlink()
    assert tail.read() == []


# ---- the whole command, killed


def kill_and_resume(place: Path, kills: int, budget: int, seed: int, *argv: str) -> tuple[Study, list[dict]]:
    """Kills the driver, or a trial's attempt, at random moments, and resumes until the search ends by itself."""
    draw, words, done = random.Random(seed), new(place, budget, *argv), 0
    folder = place / "s"
    for _ in range(kills + 30):
        child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done < kills:
            child.stdout.readline()  # past its imports
            deadline = time.monotonic() + draw.uniform(0.0, 1.5)
            while time.monotonic() < deadline and child.poll() is None:
                time.sleep(0.01)
            known = ledger.read(folder).trials if (folder / ledger.FILE).exists() else []
            fresh = [trial for trial in known if trial.state == "running" and not trial.retries]
            living = attempts_of(folder) if fresh and draw.random() < 0.4 else []
            if living:
                os.kill(draw.choice(living), signal.SIGKILL)
                done += 1
                time.sleep(draw.uniform(0.0, 0.5))
            if child.poll() is None:
                child.kill()
                done += 1
        text, _ = child.communicate(timeout=120)
        if child.returncode == 0:
            assert done >= kills
            return ledger.read(folder), [json.loads(line) for line in (folder / ledger.FILE).read_text().splitlines()]
        assert child.returncode == -signal.SIGKILL, text
        if (folder / ledger.FILE).exists():
            words = command(place, "--resume", "s")
    raise AssertionError("it never ended")


def undisturbed(place: Path, budget: int) -> Study:
    done = subprocess.run(new(place, budget), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return ledger.read(place / "s")


def check_same(found: Study, events: list[dict], calm: Study) -> None:
    """The same configurations, curves and values as without any kill."""
    check_complete(found, events)
    assert [trial.values for trial in found.trials] == [trial.values for trial in calm.trials]
    assert [trial.curve for trial in found.trials] == [trial.curve for trial in calm.trials]


def check_complete(found: Study, events: list[dict]) -> None:
    """No trial lost, none repeated, every attempt closed."""
    assert len({tuple(trial.values.items()) for trial in found.trials}) == found.budget
    assert all(trial.state == "finished" and len(trial.curve) == 5 for trial in found.trials)
    for name in ("trial", "end"):
        numbers = [event["trial"] for event in events if event["event"] == name]
        assert sorted(numbers) == list(range(found.budget)), name
    starts = [(event["trial"], event["attempt"]) for event in events if event["event"] == "start"]
    assert len(set(starts)) == len(starts)
    closed = [(event["trial"], event["attempt"]) for event in events if event["event"] in ("cut", "end")]
    assert sorted(closed) == sorted(starts)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [3, 20])
def test_killed_at_random_moments_no_trial_is_lost_or_repeated(place, kills):
    budget = 3 if kills == 3 else 20
    (place / "calm").mkdir()
    calm = undisturbed(place / "calm", budget)
    found, events = kill_and_resume(place, kills, budget, seed=kills)
    check_same(found, events, calm)
    assert not attempts_of(place)


@pytest.mark.slow
def test_killed_with_several_agents(place):
    """The order of ends differs, so do the configurations; nothing is lost or repeated all the same."""
    check_complete(*kill_and_resume(place, 20, 40, 5, "--agents", "3"))
    assert not attempts_of(place)
