"""Fixtures that the tests of this room share."""

import pytest
import torch

from tests.conftest import DEVICE


@pytest.fixture
def no_compiler(monkeypatch):
    if DEVICE == "cpu":  # half a minute of C++ for each graph
        monkeypatch.setattr(torch, "compile", lambda model, **options: model)
