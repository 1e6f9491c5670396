"""Settings that run but look wrong are named."""

import pytest

from engine.config.cautions import global_batch_notice, warnings
from engine.config.load import preset_names
from tests.engine.config.conftest import load


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["models.scheduler.eta_min=0.01"], "above models.optimizer.lr"),
        (["models.scheduler.T_max=30"], "never reaches eta_min"),
        (["models.scheduler.warmup_epochs=20"], "lasts the whole run"),
        (["models.scheduler.name=constant", "models.scheduler.T_max=9"], "models.scheduler.T_max=9 has no effect"),
        (["models.scheduler.name=onecycle", "models.scheduler.warmup_epochs=1"], "onecycle's own climb"),
        (["models.optimizer.momentum=0.5"], "only sgd"),
        (["models.optimizer.lr=0"], "nothing will be learnt"),
        (["loss.mode=baseline", "loss.min_text_size_px=3"], "ignores no text"),
        (["augment.enabled=false", "augment.hflip=0"], "augment.hflip=0.0 has no effect"),
        (["post.polygon_epsilon=0.01"], "regions are quads"),
        (["post.max_candidates=900"], "the contest takes 500"),
        (["data.train=x", "data.val=y", "data.synthetic_train=9"], "data.train is given"),
        (["trainer.patience=20"], "ends before"),
        (["eval.every_epochs=21"], "only the last epoch"),
        (["trainer.ema=true", "eval.ema=false"], "neither judged"),
        (["speed.fused_norms=true", "trainer.kernels=reference"], "slower than when off"),
        (["speed.fused_norms=true", "trainer.device=cpu"], "slower than when off"),
        (["data.progressive=[640,960]", "trainer.max_steps=5"], "may end before"),
        (["data.progressive=[640]", "speed.cuda_graphs=true"], "every canvas keeps the GPU"),
        (["init_from=x", "models.encoder.weights=y.safetensors"], "init_from replaces"),
        (["init_from=x", "models.encoder.weights=", "resume=y"], "brings its own weights"),
    ],
)
def test_doubtful_settings_run_with_one_warning(argv, words):
    found = warnings(load(*argv))
    assert len(found) == 1 and words in found[0], found


@pytest.mark.parametrize("preset", preset_names())
def test_what_a_preset_says_is_no_warning(preset):
    """Nobody typed demo's data.synthetic_train or trainer.ema_decay: only what was typed is spoken of."""
    typed = [f"preset={preset}", "data.train=x", "data.val=y", "trainer.ema=false", "augment.enabled=false"]
    assert [line for line in warnings(load(*typed)) if "no effect" in line] == []
    found = warnings(load(*typed, "data.synthetic_train=7"))
    assert [line for line in found if "no effect" in line] == [
        "data.synthetic_train=7 has no effect: data.train is given"
    ]


def test_fused_norms_on_the_device_at_hand():
    config = load("speed.fused_norms=true")
    assert warnings(config) == [] and warnings(config, 1, "cuda") == []
    assert len(warnings(config, 1, "cpu")) == 1
    assert warnings(load("speed.fused_norms=true", "trainer.kernels=triton"), 1, "cpu") == []


def test_the_rate_is_never_scaled_silently():
    config = load("preset=hrnet_w44_1280")
    notice = global_batch_notice(config, 8)
    assert "16" in notice and "2 of preset" in notice and "not scaled" in notice
    assert global_batch_notice(load("data.batch_size=1", "trainer.accumulate=2"), 1) == ""
    assert global_batch_notice(load("data.global_batch=0"), 8) == ""
