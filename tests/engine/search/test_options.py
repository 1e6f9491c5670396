"""The flags of the search: both ways to write one, and a study that may be left out."""

import pytest

from engine.search import options


def test_both_ways_to_write_a_flag():
    found, rest = options.parse(
        [
            "--budget",
            "16",
            "--agents=2",
            "preset=demo",
            "--early-stop=none",
            "--study-root",
            "a b",
            "seed=1",
            "--dry-run",
        ]
    )
    assert (found.budget, found.agents, found.early_stop, found.study_root) == (16, 2, "none", "a b")
    assert found.dry_run and rest == ["preset=demo", "seed=1"]
    assert found.given() == ["--budget", "--agents", "--early-stop", "--study-root", "--dry-run"]
    assert options.parse(["--timeout", "1.5", "--import=a.csv"])[0].timeout == 1.5
    assert options.parse([])[0] == options.Options()


@pytest.mark.parametrize(
    ("argv", "resume", "rest"),
    [
        (["--resume", "s"], "s", []),
        (["--resume"], options.NEWEST, []),
        (["--resume", "--budget", "9"], options.NEWEST, []),
        (["--resume", "a=b"], options.NEWEST, ["a=b"]),
        (["--resume=a=b"], "a=b", []),
    ],
)
def test_resume_with_and_without_a_study(argv, resume, rest):
    found, others = options.parse(argv)
    assert (found.resume, others) == (resume, rest)
