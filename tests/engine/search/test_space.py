"""The space: values, coordinates, and what can be listed."""

import math

import pytest
from search_studies import LR, TMAX

from engine.search.space import Parameter, Space
from pipelines.errors import UserError


def test_what_has_no_list_of_values():
    assert Parameter("x", "float").options() is None
    assert Parameter("n", "int", 0, 10**9).options() is None  # more than any budget can try: not listed


def test_trials_beyond_a_space_keep_their_distance():
    narrow = Space((Parameter(LR, "float", 5e-5, 2e-4, "log"), Parameter(TMAX, "ordinal", values=(15, 18))))
    units = narrow.coordinates({LR: 2.5e-5, TMAX: 20})
    assert units == pytest.approx([-0.5, math.log(20 / 15) / math.log(18 / 15)])
    assert narrow.coordinates({LR: 1e-4, TMAX: 15}) == pytest.approx(narrow.unit({LR: 1e-4, TMAX: 15}))
    choice = Parameter("a", "choice", values=("x", "y"))
    with pytest.raises(UserError):
        choice.coordinate("z")
