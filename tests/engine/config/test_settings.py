"""The settings themselves, without a command line."""

import pytest

from engine.config import Config, changed
from engine.config.load import from_dict, keys_and_values, load_config
from pipelines.errors import UserError
from tests.engine.config.conftest import load, message


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


def test_cuda_graphs_are_not_replayed_over_gradients_that_are_summed():
    assert "trainer.accumulate=2" in message("speed.cuda_graphs=true", "trainer.accumulate=2")


def test_cuda_graphs_are_chosen_where_the_host_is_what_a_step_waits_for():
    few, many = ["data.batch_size=4"], ["data.batch_size=5"]
    for typed, expected in (
        (few, True),
        (many, False),
        ([*many, "speed.cuda_graphs=true"], True),
        ([*few, "speed.cuda_graphs=false"], False),
        ([*few, "trainer.accumulate=2"], False),
        ([*few, "data.progressive=[640]"], False),
    ):
        assert load_config(["preset=hrnet_w44_1280", *typed])[0].cuda_graphs == expected
    assert not load_config(["preset=hrnet_w44_1280_fast"])[0].cuda_graphs


def test_settings_that_cannot_work():
    frozen = ("models.encoder.freeze=all", "models.decoder.freeze=true")
    assert load(*frozen).models.decoder.freeze
    assert "nothing is left to train" in message(*frozen, "models.head.freeze=true")
    assert "nothing is left to learn" in message(*(f"loss.{part}_weight=0" for part in ("prob", "thresh", "binary")))
    assert "one of them" in message("speed.fused_norms=true", "trainer.sync_bn=true")
    assert "at least one" in message("data.train=[a,b]", "data.train_weights=[0,0]")
