"""An executor of this machine, and the processes of its attempts."""

import pytest

from engine.jobs.local import LocalExecutor


@pytest.fixture
def local():
    executor = LocalExecutor(4)
    yield executor
    executor.close()


def wrappers(processes: dict[int, str]) -> list[int]:
    """Wrapper and keeper, in the order they were started."""
    return sorted(pid for pid, words in processes.items() if "engine.jobs.attempt" in words)


def trainings(processes: dict[int, str]) -> list[int]:
    return sorted(pid for pid in set(processes) - set(wrappers(processes)) if "search.objective" in processes[pid])
