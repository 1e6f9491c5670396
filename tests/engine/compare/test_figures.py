"""compare.figures: any number of schedules."""

from engine.compare import report
from tests.engine.compare.conftest import study_of


def test_more_schedules_than_colours_are_drawn(tmp_path):
    """Functions (--objective) name schedules as they like."""
    study = study_of(tmp_path, lambda v, s, e: 0.9 + 0.001 * s, ("schedules=a,b,c,d,e,f", "seeds=2"))
    report.write(study)
    assert (tmp_path / "figures" / "curves.png").stat().st_size > 10_000
