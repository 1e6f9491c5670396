"""The settings themselves, without a command line."""

import pytest

from engine.config import Config, changed
from engine.config.load import from_dict, keys_and_values, load_config
from pipelines.errors import UserError


def test_changed_settings_differ_in_the_named_keys_alone():
    config, _ = load_config(["preset=demo"])
    values = {"seed": 7, "data.batch_size": 3, "trainer.ema": False, "models.optimizer.lr": 0.5}
    before, after = keys_and_values(config), keys_and_values(changed(config, values))
    assert {key: after[key] for key in after if after[key] != before[key]} == values
    assert changed(config, {}) == config


def test_changed_settings_are_checked_together():
    wide = {"data.image_size": [2048, 2048], "data.progressive": [1280]}
    config = changed(Config(), wide)  # one after the other, progressive would not lie below image_size
    assert config == from_dict({"data": {"image_size": [2048, 2048], "progressive": [1280]}})
    with pytest.raises(UserError, match=r"stay below data.image_size"):
        changed(config, {"data.image_size": [640, 640]})
    with pytest.raises(UserError, match=r"data.batch_size=0"):
        changed(config, {"data.batch_size": 0})
    with pytest.raises(TypeError):
        changed(config, {"data.batchsize": 1})
