"""Fixtures that the tests of this room share."""

import pytest

from bench import roofline


@pytest.fixture(scope="module")
def w44():
    return roofline.load("hrnet_w44_1280")
