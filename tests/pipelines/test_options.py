"""pipelines.options: one field's meaning and range make the help and the refusal."""

import dataclasses
import math

import pytest

from pipelines.errors import UserError
from pipelines.options import allowed, check_options, option


@dataclasses.dataclass(frozen=True)
class Some:
    share: float = option(0.5, "a share", low=0, high=1)
    count: int = option(1, "a count", low=1)
    mode: str = option("paper", "a mode", choices=("paper", "baseline"))
    sides: list = option([64, 96], "sides, px", low=32)
    free: float = option(0.0, "any")


def test_lists_are_of_one_instance():
    first = Some()
    first.sides.append(1)
    assert Some().sides == [64, 96]


def test_what_is_allowed_in_words():
    words = {field.name: allowed(field.metadata) for field in dataclasses.fields(Some)}
    assert words == {
        "share": "0 to 1",
        "count": "at least 1",
        "mode": "paper, baseline",
        "sides": "at least 32",
        "free": "",
    }


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"share": 1.5}, r"a\.share=1\.5: allowed is 0 to 1"),
        ({"share": math.nan}, r"a\.share=nan: allowed is 0 to 1"),
        ({"count": 0}, r"a\.count=0: allowed is at least 1"),
        ({"mode": "papr"}, r"a\.mode=papr: allowed is paper, baseline"),
        ({"sides": [64, 8]}, r"a\.sides=\[64, 8\]: allowed is at least 32"),
        ({"free": math.inf}, r"a\.free=inf: allowed is a finite number"),
        ({"count": 2**63}, r"a\.count=9223372036854775808: allowed is at least 1"),
    ],
)
def test_a_value_out_of_range_is_named(values, words):
    check_options(Some())
    with pytest.raises(UserError, match=words):
        check_options(Some(**values), "a.")
