"""Configuration: the command line of the original, errors in one line, presets, what imports it needs."""

import dataclasses
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import cli
from engine.config.cautions import global_batch_notice, warnings
from engine.config.load import (
    from_dict,
    help_text,
    keys,
    keys_and_values,
    load_config,
    preset_names,
    split_extra,
    to_dict,
    to_yaml,
)
from engine.config.settings import Config
from pipelines.errors import UserError
from tests.conftest import ROOT
from tests.engine.config.conftest import load, message

# Every key a user can set. A new one is added here on purpose: it is an interface, and it is in the README.
KEYS = """
preset name run_root seed wandb wandb_project wandb_group wandb_job_type resume init_from
data: train train_weights val test format root image_size progressive batch_size global_batch workers threads
  prefetch hw_decoder_load max_bad_share max_page_mpx max_scans max_annotation_mb max_polygons max_points
  synthetic_train synthetic_val synthetic_size synthetic_seed
augment: enabled hflip rotate_deg rotate_p scale_min scale_max aspect shift crop_tries brightness contrast brightness_p
  hue_deg saturation value hsv_p sharpen_p blur_p blur_sigma noise_p noise_sigma shadow_p fog_p
models.encoder: name weights hrnet_incre_head pad_widths freeze lr_scale decay_scale
models.decoder: kind inner_channels output_channels upsample batch_norm freeze lr_scale decay_scale
models.head: hidden_channels db_k smooth freeze lr_scale decay_scale
models.optimizer: name lr weight_decay momentum beta1 beta2 eps
models.scheduler: name T_max eta_min after_T_max warmup_epochs warmup_start poly_power pct_start
loss: mode prob_weight thresh_weight binary_weight negative_ratio shrink_ratio thresh_min thresh_max min_text_size_px
trainer: max_epochs max_steps max_minutes accumulate clip_norm precision compile channels_last device deterministic ema
  ema_decay precise_bn sync_bn log_every patience checkpoint_every_steps max_failed_saves keep_top_k keep_last kernels
  threads hang_timeout_s nonfinite_limit on_nonfinite rollback_lr max_rollbacks profile overlays
speed: scope max_autotune cuda_graphs combo_kernels force_layout memory_budget optimize_ddp bucket_mib fused_norms
eval: every_epochs batch_size protocol select image_size ema workers
post: shape bin_thresh box_thresh unclip_ratio min_size_px min_unclipped_px score_mode max_candidates connectivity
  polygon_epsilon
"""


def listed_keys() -> list[str]:
    found, section = [], ""
    for word in KEYS.split():
        if word.endswith(":"):
            section = word[:-1] + "."
        else:
            found.append(section + word)
    return found


def test_the_list_of_keys():
    assert list(keys()) == listed_keys()


def test_every_key_has_a_meaning_and_stands_in_the_help():
    text = help_text({"checkpoint": ""}, load())
    for key, field in keys().items():
        assert len(field.metadata["help"]) > 8, key
        assert f"  {key}=" in text
    assert "  checkpoint=" in text
    assert "models.optimizer.lr=0.0001" in text and "(0 to 1)" in text and "paper, baseline" in text


def test_the_command_of_the_original():
    config = load(
        "preset=hrnet_w44_1280", "models.optimizer.lr=0.0001", "models.optimizer.weight_decay=0.00004",
        "models.scheduler.T_max=15", "models.scheduler.eta_min=0.00001", "trainer.max_epochs=20", "wandb=true",
    )  # fmt: skip
    assert config == dataclasses.replace(load(), wandb=True)
    assert (config.models.optimizer.lr, config.models.optimizer.weight_decay) == (1e-4, 4e-5)
    assert (config.models.scheduler.T_max, config.models.scheduler.eta_min) == (15, 1e-5)
    assert config.trainer.max_epochs == 20 and config.models.encoder.name == "hrnet_w44"
    assert warnings(config) == []


@pytest.mark.parametrize(
    ("item", "key", "expected"),
    [
        ("models.optimizer.lr=1e-4", "models.optimizer.lr", 1e-4),
        ("models.optimizer.lr=1", "models.optimizer.lr", 1.0),
        ("trainer.max_steps=1e3", "trainer.max_steps", 1000),
        ("wandb=false", "wandb", False),
        ("data.image_size=640", "data.image_size", [640, 640]),
        ("data.image_size=[640]", "data.image_size", [640, 640]),
        ("data.image_size=[640,960]", "data.image_size", [640, 960]),
        ("eval.image_size=960", "eval.image_size", [960, 960]),
        ("eval.image_size=[]", "eval.image_size", []),
        ("data.train=/a/b=c d.json", "data.train", ["/a/b=c d.json"]),
        ("data.train=[a.json,b]", "data.train", ["a.json", "b"]),
        ("data.train=12", "data.train", ["12"]),
        ("data.train=[]", "data.train", []),
        ("name=007", "name", "007"),
        ("name=true", "name", "true"),
        ("name=", "name", ""),
        ("models.encoder.weights=null", "models.encoder.weights", "null"),
    ],
)
def test_values_as_users_write_them(item, key, expected):
    value = keys_and_values(load(item))[key]
    assert value == expected and type(value) is type(expected)


def test_later_wins_and_the_preset_is_always_first():
    assert load("seed=1", "seed=2").seed == 2
    config = load("models.optimizer.lr=0.5", "preset=resnet18_640", "preset=demo")
    assert config.preset == "demo" and config.models.optimizer.lr == 0.5
    assert config.models.encoder.name == load("preset=demo").models.encoder.name


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("models.optimizer.lr=abc", ["models.optimizer.lr=abc", "a number"]),
        ("models.optimizer.lr=.nan", ["models.optimizer.lr=nan", "0 to 100"]),
        ("models.optimizer.lr=.inf", ["models.optimizer.lr=inf", "0 to 100"]),
        ("models.optimizer.lr=true", ["models.optimizer.lr=True", "a number"]),
        ("models.optimizer.lr=", ["models.optimizer.lr=", "a number"]),
        ("models.optimizer.lr=-1", ["models.optimizer.lr=-1", "0 to 100"]),
        ("models.optimizer.lr=[1,2]", ["models.optimizer.lr", "a number"]),
        ("data.batch_size=2.5", ["data.batch_size=2.5", "a whole number", "1 to 4096"]),
        ("data.batch_size=0", ["data.batch_size=0", "1 to 4096"]),
        ("wandb=maybe", ["wandb=maybe", "true or false"]),
        ("wandb=1", ["wandb=1", "true or false"]),
        ("data.image_size=1000", ["data.image_size=[1000, 1000]", "multiples of 32", "[992,992]"]),
        ("data.image_size=[32,64,96]", ["data.image_size", "[H,W]"]),
        ("data.image_size=[1280", ["data.image_size=[1280", "list of whole numbers"]),
        ("data.image_size=[]", ["data.image_size=[]", "[H,W]"]),
        ("data.train_weights=[1,2]", ["data.train_weights", "0 sources"]),
        ("loss.mode=papre", ["loss.mode=papre", "paper, baseline"]),
        ("loss.thresh_min=0.8", ["loss.thresh_min=0.8", "loss.thresh_max=0.7"]),
        ("post.connectivity=6", ["post.connectivity=6", "4, 8"]),
        ("augment.scale_min=2", ["augment.scale_min", "augment.scale_max"]),
        ("name=../x", ["name=../x", "run_root"]),
        ("resume=auto", ["resume=auto", "name=NAME"]),
        ("name=${oc.env:HOME}", ["name=${oc.env:HOME}", "interpolation"]),
        ("data.train=pages ${1}", ["data.train=pages ${1}", "rename (or link to) a file with ${"]),
        ("data.batch_size=${seed}", ["data.batch_size", "interpolation"]),
        ("models.optimiser.lr=1", ["models.optimiser.lr", "did you mean models.optimizer.lr?"]),
        ("lr=1", ["unknown key lr", "did you mean models.optimizer.lr?"]),
        ("traner.max_epoch=1", ["did you mean trainer.max_epochs?"]),
        ("checkpont=x", ["did you mean checkpoint?"]),
        ("frobnicate=1", ["unknown key frobnicate", "--help"]),
        ("models.optimizer=adam", ["is a section", "models.optimizer.lr"]),
        ("--seeed=3", ["unknown key seeed", "did you mean seed?"]),
        ("learning_rate=1e-3", ["did you mean models.optimizer.lr?"]),
        ("model.learning_rate=1e-3", ["did you mean models.optimizer.lr?"]),
        ("gradient_clip_val=1", ["did you mean trainer.clip_norm?"]),
        ("trainer.accumulate_grad_batches=2", ["did you mean trainer.accumulate?"]),
        ("ckpt_path=runs/a", ["did you mean checkpoint?"]),
        ("max_epochs=3", ["did you mean trainer.max_epochs?"]),
        ("batch_size=3", ["did you mean data.batch_size or"]),
        ("devices=8", ["did you mean torchrun --nproc_per_node?"]),
        ("+trainer.ema=true", ["'+trainer.ema=true'", "write trainer.ema=true"]),
        ("++seed=3", ["Hydra's ++ is not needed: write seed=3"]),
        ("~trainer.ema", ["cannot be left out; set trainer.ema to another value"]),
        ("train", ["unexpected argument 'train'", "key=value"]),
        ("preset=hrnet_w44_1208", ["preset=hrnet_w44_1208", "did you mean hrnet_w44_1280?"]),
        ("preset=nowhere.yaml", ["preset=nowhere.yaml", "cannot be read"]),
    ],
)
def test_wrong_items_name_key_value_and_mend(item, words):
    text = message(item, extra={"checkpoint": ""})
    assert [word for word in words if word not in text] == [], text


@settings(derandomize=True, max_examples=150, deadline=None)
@given(st.sampled_from([*listed_keys(), "", "data", "x.y"]), st.text(max_size=12))
def test_any_text_loads_or_ends_in_one_line(key, text):
    try:
        config, _ = load_config([f"{key}={text}"])
    except UserError as error:
        assert "\n" not in str(error) or "\n" in text
    else:
        assert from_dict(to_dict(config)) == config


@pytest.mark.parametrize("name", preset_names())
def test_presets_load_without_warnings_and_survive_yaml(name, tmp_path):
    config = load(f"preset={name}")
    assert config.preset == name and warnings(config) == []
    assert from_dict(to_dict(config)) == config
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    assert load(f"preset={file}") == config
    assert global_batch_notice(config, 1) == ""


def test_presets_hold_the_published_values():
    found = {name: load(f"preset={name}") for name in preset_names()}
    assert set(found) == {
        "hrnet_w44_1280", "hrnet_w44_1280_fast", "hrnet_w44_1280_before", "resnet18_640", "demo", "receipts_cpu",
    }  # fmt: skip

    def searched(config: Config) -> tuple:
        o, s = config.models.optimizer, config.models.scheduler
        return o.name, o.lr, o.weight_decay, s.T_max, s.eta_min, config.trainer.max_epochs, config.data.batch_size

    assert searched(found["hrnet_w44_1280"]) == ("adam", 1e-4, 4e-5, 15, 1e-5, 20, 2)
    assert searched(found["hrnet_w44_1280_fast"]) == ("adamw", 1e-4, 4e-5, 15, 1e-5, 20, 16)
    assert searched(found["hrnet_w44_1280_before"]) == ("adam", 4.5e-4, 6e-5, 20, 8e-6, 20, 2)
    hrnet = [config for name, config in found.items() if name.startswith("hrnet")]
    assert all((c.eval.protocol, c.eval.select, c.trainer.clip_norm) == ("contest", "macro", 1.0) for c in hrnet)
    assert all(c.augment == hrnet[0].augment and c.post == hrnet[0].post for c in hrnet)
    base = found["resnet18_640"]
    assert (base.loss.mode, base.models.scheduler.name, base.post.max_candidates) == ("baseline", "constant", 300)
    assert (base.models.optimizer.lr, base.models.optimizer.weight_decay, base.data.batch_size) == (1e-3, 1e-4, 16)
    assert not (base.augment.colours or base.augment.blurs or base.augment.noises or base.augment.lights)
    for name in ("demo", "receipts_cpu"):
        assert (found[name].eval.protocol, found[name].eval.select) == ("official", "micro")
        assert found[name].models.encoder.weights == "", "a preset that must run without a network"


def test_a_preset_file_of_ones_own(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("trainer: {max_epochs: 3}\n")
    config = load(f"preset={file}", "seed=4")
    assert (config.trainer.max_epochs, config.seed, config.preset) == (3, 4, str(file))
    for text, word in (
        ("trainer: {max_epoch: 3}", "did you mean trainer.max_epochs?"),
        ("name: ${oc.env:HOME}", "interpolation"),
        ("trainer: 3", "is a section"),
        ("a: [", "not a YAML"),
        ("- 1", "not a YAML"),
        ("name: !!python/object/apply:os.getcwd []", "not a YAML"),
    ):
        file.write_text(text)
        assert word in message(f"preset={file}")


def test_a_base_replaces_the_preset():
    base = to_dict(load("preset=demo", "seed=5"))
    config, extras = load_config(
        ["post.box_thresh=0.6", "checkpoint=a=b"], extra={"checkpoint": "", "out": "x"}, base=base
    )
    assert (config.seed, config.preset, config.post.box_thresh) == (5, "demo", 0.6)
    assert extras == {"checkpoint": "a=b", "out": "x"}
    assert "comes from" in message("preset=demo", base=base) or "come from" in message("preset=demo", base=base)
    assert "unknown key data.traim" in message(base={"data": {"traim": 1}})
    assert split_extra(["seed=1", "out=2"], {"out": ""}) == ({"out": "2"}, ["seed=1"])


def test_import_needs_no_torch():
    code = (
        "import sys, engine.config.load, engine.run.log, engine.cli\n"
        "heavy = ('torch', 'triton', 'nvidia.dali', 'timm', 'cv2', 'wandb', 'matplotlib')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


PROGRAM = """
import sys
from engine import cli
from pipelines.errors import UserError
def main(argv):
    if argv == ["stop"]: raise KeyboardInterrupt
    if argv == ["bug"]: raise RuntimeError("a bug")
    config, extras, dry_run = cli.parse(argv, {"output": "o"}, "What it does.")
    print(config.seed, extras, dry_run)
    return 3
cli.run(main)
"""


def start(*argv: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", PROGRAM, *argv]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_entry_point_exit_codes():
    done = start("seed=3", "--dry-run", "output=x")
    assert (done.returncode, done.stdout) == (3, "3 {'output': 'x'} True\n")
    done = start("sed=3")
    assert (done.returncode, done.stderr) == (2, "error: unknown key sed; did you mean seed?\n")
    done = start("sed=3", RANK="1")
    assert (done.returncode, done.stderr) == (2, ""), "one rank says it for all"
    assert (start("stop").returncode, start("bug").returncode) == (130, 1)
    assert "a bug" in start("bug").stderr


def test_help_and_print_config(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.parse(["--help", "preset=demo"], {"output": "o"}, "What it does.")
    text = capsys.readouterr().out
    assert caught.value.code == 0 and text.startswith("What it does.")
    assert "output=o" in text and "--dry-run" in text and "preset=demo" in text and "hrnet_w44_1280_fast" in text
    with pytest.raises(SystemExit) as caught:
        cli.parse(["--print-config", "seed=9"], {}, "")
    assert caught.value.code == 0 and capsys.readouterr().out.rstrip() == to_yaml(load("seed=9")).rstrip()
    assert cli.wants_help(["a", "-h"]) and not cli.wants_help(["help"])


def test_the_three_w44_presets_differ_only_where_they_say():
    base, fast, before = (to_dict(load_config([f"preset=hrnet_w44_1280{end}"])[0]) for end in ("", "_fast", "_before"))

    def differing(one, other, prefix=""):
        return {
            f"{prefix}{k}" if not isinstance(v, dict) else name
            for k, v in one.items()
            for name in (differing(v, other[k], f"{prefix}{k}.") if isinstance(v, dict) else {k})
            if isinstance(v, dict) or v != other[k]
        }

    assert differing(base, fast) == {
        "preset", "data.batch_size", "data.global_batch", "models.optimizer.name", "eval.batch_size",
    }  # fmt: skip
    assert differing(base, before) == {
        "preset", "models.optimizer.lr", "models.optimizer.weight_decay", "models.scheduler.T_max",
        "models.scheduler.eta_min",
    }  # fmt: skip


def test_one_page_of_32_pixels_is_refused_in_one_line():
    """BatchNorm raised a traceback of torch's: its deepest map has a single pixel."""
    for size in (["data.image_size=32"], ["data.image_size=64", "data.progressive=[32]"]):
        with pytest.raises(UserError, match="BatchNorm sees one pixel"):
            load_config(["preset=demo", "data.batch_size=1", *size])
        load_config(["preset=demo", "data.batch_size=2", *size])
    load_config(["preset=demo", "data.batch_size=1", "data.image_size=[32,64]"])
