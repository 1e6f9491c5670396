"""The pictures of a study."""

from search_studies import LR, PUBLISHED

from engine.search.report import figures
from engine.search.space import Parameter


def test_axes_have_round_values_inside_the_bounds():
    lr = figures.ticks_of(Parameter(LR, "float", 1e-5, 2e-4, "log"))
    assert lr == [1e-5, 2e-5, 5e-5, 1e-4, 2e-4]
    wide = figures.ticks_of(Parameter(LR, "float", 1e-8, 1.0, "log"))
    assert 2 <= len(wide) <= 9
    assert figures.ticks_of(Parameter("a", "float", 1.1, 1.3, "log")) == [1.1, 1.3]
    assert figures.ticks_of(Parameter("a", "int", 2, 6)) == [2, 3, 4, 5, 6]
    assert figures.ticks_of(PUBLISHED.parameters[2]) == [15, 18, 20, 25]
