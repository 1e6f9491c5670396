"""Fixtures that the tests of this room share."""

import pytest
from data_sets import SQUARE, data_set, noise_jpeg
from loaded_pages import PAGES, write_pages


@pytest.fixture
def good(tmp_path):
    pages = {f"{k}.jpg": (noise_jpeg(k), [SQUARE]) for k in range(3)}
    return data_set(tmp_path / "good", pages)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return write_pages(tmp_path_factory.mktemp("pages"), PAGES)
