"""Command lines that load, and those that end in one line."""

import pytest

from engine.config import Config
from engine.config.load import load_config
from pipelines.errors import UserError


def load(*argv: str) -> Config:
    return load_config(list(argv))[0]


def message(*argv: str, **others) -> str:
    with pytest.raises(UserError) as caught:
        load_config(list(argv), **others)
    assert "\n" not in str(caught.value)
    return str(caught.value)
