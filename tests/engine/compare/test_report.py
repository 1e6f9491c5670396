"""compare.report: cautions stand wherever the verdict is."""

import numpy as np

from engine.compare import report
from engine.compare.plan import SCHEDULE
from tests.engine.compare.conftest import study_of


def test_spreads_that_differ_are_said_wherever_the_verdict_is(tmp_path):
    luck = np.random.default_rng(4)
    sd = {"cosine": 0.001, "onecycle": 0.001, "poly": 0.03}
    plain, _ = report.write(study_of(tmp_path, lambda v, s, e: 0.9 + luck.normal(0, sd[v[SCHEDULE]])))
    assert len(plain["cautions"]) == 1 and plain["cautions"][0] in report.text_of(plain)
    assert plain["cautions"][0] in (tmp_path / "report.md").read_text()
