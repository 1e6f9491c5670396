"""The mean of probability maps is taken where every map shows the same pixels, and the report says what it brings."""

import contextlib
import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from engine import evaluate
from engine.checkpoint import store
from engine.config.load import load_config
from engine.detection import ensemble_file
from engine.detection.ensemble import onto
from engine.detection.maps import prob_batches
from engine.detection.open import open_member
from engine.detection.pages import detect_pages
from engine.distributed import start
from engine.ensemble import Ensemble, Member, load, soup
from engine.ensemble.__main__ import find, main
from engine.evaluation import compare
from engine.evaluation.cleval import CLEval, evaluate_page
from engine.search import ledger
from engine.search.space import Parameter, Space
from engine.search.study import Study, Trial
from pipelines.errors import UserError
from pipelines.geometry import compose, invert, letterbox
from pipelines.index.bare import BareIndex
from pipelines.synthetic import receipts
from tests.conftest import TINY


def _val(trained):
    """The annotation file of the tiny run's validation pages, seed 1."""
    config, _ = load_config(list(TINY))
    return receipts.ensure(trained.parent / ".synthetic", 4, 1, *config.data.synthetic_size)


def _bright(image):
    """A detector whose logits are the brightness of each pixel: every shift of its map is the mean's doing."""
    return image.mean(1, keepdim=True)


@pytest.fixture
def spot(tmp_path):
    """A page of 150 x 200 px with one smooth bright spot at (61.3, 120.8), and its index."""
    y, x = np.mgrid[0:200, 0:150] + 0.5
    value = 255 * np.exp(-((x - 61.3) ** 2 + (y - 120.8) ** 2) / (2 * 18.0**2))
    Image.fromarray(np.repeat(value.round().astype(np.uint8)[..., None], 3, 2)).save(tmp_path / "spot.png")
    return BareIndex([tmp_path / "spot.png"])


def _middle(ensemble, pages, config):
    """The spot's place in source pixels: the centroid of the mean map above its background."""
    with contextlib.closing(prob_batches(ensemble, pages, config, start(config.trainer.device))) as batches:
        ((batch, maps),) = list(batches)
    assert tuple(maps.shape[1:]) == ensemble.canvas
    y, x = np.mgrid[0 : maps.shape[1], 0 : maps.shape[2]] + 0.5
    weight = np.maximum(torch.logit(maps[0].double(), 1e-9).cpu().numpy() - 0.5, 0)
    canvas = np.array([[(weight * x).sum(), (weight * y).sum()]]) / weight.sum()
    matrix = invert(batch.matrix[0])
    return (canvas @ matrix[:, :2].T + matrix[:, 2])[0]


def _member(canvas, forward=_bright, weight=1.0, *settings):
    config, _ = load_config([*TINY, f"eval.image_size=[{canvas[0]},{canvas[1]}]", *settings])
    return Member(str(canvas), config, forward, weight)


@pytest.mark.parametrize("flips", ["none", "h", "v", "hv"])
def test_flips_and_other_canvases_do_not_move_the_map(spot, flips):
    alone = Ensemble([_member((256, 192))])
    config = ensemble_file.joint_config(alone)
    reference = _middle(alone, spot, config)
    assert np.abs(reference - [61.3, 120.8]).max() < 0.05, "8 bits a pixel"
    flipped = dataclasses.replace(alone, flips=flips)
    assert np.abs(_middle(flipped, spot, config) - reference).max() < 1e-4
    for other in ((256, 256), (224, 192), (192, 160)):  # margins elsewhere, other roundings, smaller
        both = Ensemble([_member((256, 192)), _member(other)], flips)
        assert both.canvas == max((256, 192), other, key=np.prod)
        assert np.abs(_middle(both, spot, config) - reference).max() < 0.01, other


def test_scales_do_not_move_the_map(spot):
    alone = Ensemble([_member((256, 192))])
    config = ensemble_file.joint_config(alone)
    reference = _middle(alone, spot, config)
    for scales in ((1.0, 0.75), (1.0, 1.25), (1.0, 2.0), (0.8, 1.0, 1.25)):
        scaled = dataclasses.replace(alone, scales=scales)
        assert np.abs(_middle(scaled, spot, config) - reference).max() < 0.01, scales


def test_the_warp_is_exact_for_ramps_and_zero_beyond_the_canvas():
    """Bilinear sampling reproduces linear maps, so a map of x (in source pixels) must stay one: no half pixel moves."""
    size = (150, 200)
    for view, target in (((96, 128), (256, 256)), ((256, 192), (224, 320)), ((512, 384), (128, 96))):
        to_source = invert(letterbox(size, view))
        y, x = np.mgrid[0 : view[0], 0 : view[1]] + 0.5
        for axis in (0, 1):
            ramp = to_source[axis, 0] * x + to_source[axis, 1] * y + to_source[axis, 2]
            reference = letterbox(size, target)
            to_view = compose(letterbox(size, view), invert(reference))[None]
            found = onto(torch.from_numpy(ramp)[None].float(), to_view, target)[0].numpy()
            v, u = np.mgrid[0 : target[0], 0 : target[1]] + 0.5
            source = (
                np.einsum("ij,jhw->ihw", invert(reference)[:, :2], np.stack([u, v])) + invert(reference)[:, 2:, None]
            )
            inner = ((source > 4) & (source < np.array(size)[:, None, None] - 4)).all(0)
            assert inner.any() and np.abs(found - source[axis])[inner].max() < 0.01
    ones = onto(torch.ones(1, 64, 64), np.array([[[1.0, 0, -32], [0, 1, 0]]]), (64, 128))[0]
    assert ones[:, 32:96].eq(1).all() and ones[:, :32].eq(0).all() and ones[:, 96:].eq(0).all()


def test_a_model_with_itself_is_itself_and_weights_weigh(spot):
    one = _member((256, 192))
    config = ensemble_file.joint_config(Ensemble([one]))
    ranks = start(config.trainer.device)

    def maps(forward):
        with contextlib.closing(prob_batches(forward, spot, config, ranks)) as batches:
            return next(m.cpu() for _, m in batches)

    plain = maps(_bright)
    assert torch.equal(maps(Ensemble([one])), plain)
    assert torch.equal(maps(Ensemble([one, one])), plain)
    dark = dataclasses.replace(one, forward=lambda image: _bright(image) - 2)
    mixed = maps(Ensemble([dataclasses.replace(one, weight=3.0), dark]))
    assert torch.allclose(mixed, (3 * plain + maps(dark.forward)) / 4, atol=1e-6)


def test_detections_of_a_run_with_itself_are_its_own(trained, tmp_path):
    """Through files: the same boxes as engine.evaluate's, from ensemble.yaml too."""
    ranks = start("auto")
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    places = find([str(trained), str(copy)])
    both = Ensemble([open_member(place, ["post.bin_thresh=0.05", "post.box_thresh=0"], ranks) for place in places])
    config = ensemble_file.joint_config(both)
    path = ensemble_file.save(tmp_path, both, places, config)
    entries = yaml.safe_load(path.read_text())["members"]
    assert entries[1]["checkpoint"].startswith("copy/") and entries[0]["checkpoint"].startswith("/")
    again, config_again = load(tmp_path, ranks)
    assert config_again.post == config.post and again.canvas == (96, 128)
    pages = BareIndex(sorted((trained.parent / ".synthetic").rglob("*.jpg"))[:3])
    results = [list(detect_pages(forward, pages, config, ranks)) for forward in (both.members[0].forward, both, again)]
    assert sum(len(found.polygons) for _, found in results[0]) > 0
    for other in results[1:]:
        for (row, found), (row_, found_) in zip(results[0], other, strict=True):
            assert row == row_ and np.array_equal(found.polygons, found_.polygons)
            assert np.array_equal(found.scores, found_.scores)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"kind": "other"}, "no ensemble file"),
        ({"members": []}, "members must be a list"),
        ({"members": [{"checkpoint": 3}]}, "member 1: expected checkpoint"),
        ({"members": [{"checkpoint": "gone"}]}, "no such folder"),
        ({"flips": "x"}, "flips=x: allowed is none, h, v, hv"),
        ({"scales": [0.5]}, "1 must be among them"),
        ({"scales": [1, 1000]}, "0.25 to 4"),
        ({"scales": "big"}, "expected numbers"),
        ({"flips": ["h"]}, "flips="),
        ({"flips": {"h": 1}}, "flips="),
        ({"post": [1]}, "post must be settings"),
        ({"post": {"bin_tresh": 0.2}}, r"ensemble.yaml: .*post.bin_tresh"),
        ({"post": {"bin_thresh": "low"}}, r"ensemble.yaml: .*post.bin_thresh"),
        ({"members": [{"checkpoint": "x", "weight": 10**400}]}, "weight must be a number above 0"),
        ({"extra": 1}, "has no key extra"),
    ],
)
def test_an_ensemble_file_is_checked_field_by_field(trained, tmp_path, change, words):
    values = {"kind": "dbnet-ensemble", "version": 1, "members": [{"checkpoint": str(trained)}]}
    (tmp_path / "ensemble.yaml").write_text(yaml.safe_dump(values))
    assert len(ensemble_file.read(tmp_path)[0]) == 1
    (tmp_path / "ensemble.yaml").write_text(yaml.safe_dump(values | change))
    with pytest.raises(UserError, match=words):
        ensemble_file.read(tmp_path)


@pytest.mark.parametrize("canvas", ["large", [True, 32], [33, 32], [32, 32, 32], [1 << 40, 32], {}, None, [[32], 32]])
def test_the_canvas_of_a_file_is_checked_as_eval_image_size(trained, tmp_path, canvas):
    values = {"kind": "dbnet-ensemble", "version": 1, "members": [{"checkpoint": str(trained), "canvas": canvas}]}
    (tmp_path / "ensemble.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=r"ensemble.yaml: member 1: canvas must be"):
        ensemble_file.read(tmp_path)


def test_settings_of_the_command_line_come_after_those_of_the_file(trained, tmp_path):
    values = {"kind": "dbnet-ensemble", "version": 1, "post": {"bin_thresh": 0.2, "box_thresh": 0.6}}
    values["members"] = [{"checkpoint": str(trained), "canvas": [64, 96]}]
    (tmp_path / "ensemble.yaml").write_text(yaml.safe_dump(values))
    ensemble, config = load(tmp_path, start("auto"))
    assert ensemble.canvas == (64, 96) and (config.post.bin_thresh, config.post.box_thresh) == (0.2, 0.6)
    ensemble, config = load(tmp_path, start("auto"), ["eval.image_size=[128,128]", "post.box_thresh=0.1"])
    assert ensemble.canvas == (128, 128) and (config.post.bin_thresh, config.post.box_thresh) == (0.2, 0.1)


def test_a_run_folder_with_an_ensembles_file_in_it_stays_a_run(trained, tmp_path):
    (tmp_path / "ensemble.yaml").write_text("kind: dbnet-ensemble")
    assert ensemble_file.is_ensemble(tmp_path) and ensemble_file.is_ensemble(tmp_path / "ensemble.yaml")
    (tmp_path / "checkpoints").mkdir()
    assert not ensemble_file.is_ensemble(tmp_path) and ensemble_file.is_ensemble(tmp_path / "ensemble.yaml")


def test_a_studys_best_three_finished_trials(trained, tmp_path):
    """By the ledger: not the stopped one, whatever its value, nor the fourth best."""
    study = Study(tmp_path / "study", "study", Space((Parameter("models.optimizer.lr", "float", 1e-4, 1e-1, "log"),)))
    ends = (("finished", 0.5), ("finished", 0.9), ("stopped", 0.95), ("finished", 0.7), ("finished", 0.6))
    with contextlib.closing(ledger.create(study)) as book:
        for number, (state, value) in enumerate(ends):
            folder = f"trials/{number:03d}"
            book.append_all(
                [ledger.trial_event(Trial(number, {"models.optimizer.lr": 0.01}, "random", 0, folder=folder))]
            )
            book.append("epoch", trial=number, attempt=1, epoch=1, value=value)
            book.append("end", trial=number, attempt=1, state=state)
            shutil.copytree(trained, tmp_path / "study" / folder)
    places = find([str(tmp_path / "study")])
    assert [place.path.parent.parent.name for place in places] == ["001", "003", "004"]
    shutil.rmtree(tmp_path / "study" / "trials" / "003")
    with pytest.raises(UserError, match="003: no such folder"):
        find([str(tmp_path / "study")])


def test_difference_and_its_standard_error_against_the_plain_jackknife():
    rng = np.random.default_rng(0)

    def page(shift):
        gt = [np.array([[x, 0], [x + 40, 0], [x + 40, 10], [x, 10]], np.float32) for x in range(0, 300, 50)]
        kept = [g + shift for g in gt if rng.random() < 0.7]
        return evaluate_page(kept, gt, ["abcd"] * len(gt))

    ours, theirs = [page(1) for _ in range(12)], [page(3) for _ in range(12)]
    for select, name in (("micro", "hmean"), ("macro", "hmean_macro")):

        def hmean(pages, name=name):
            metric = CLEval()
            for item in pages:
                metric.add(item)
            return metric.compute()[name]

        without = [hmean(ours[:i] + ours[i + 1 :]) - hmean(theirs[:i] + theirs[i + 1 :]) for i in range(len(ours))]
        gain, error = compare.difference(ours, theirs, select)
        assert gain == pytest.approx(hmean(ours) - hmean(theirs), abs=1e-12)
        assert error == pytest.approx(
            np.sqrt(11 / 12 * np.square(np.array(without) - np.mean(without)).sum()), rel=1e-6
        )
    assert compare.difference(ours, ours, "micro") == (0.0, 0.0)
    assert compare.difference(ours[:1], theirs[:1], "micro")[1] is None
    pairs = ((0.01, 0.004), (-0.01, 0.004), (0.01, 0.006), (0.5, None), (0.0, 0.0))
    assert [compare.verdict(*pair) for pair in pairs] == ["gain", "loss", "noise", "noise", "noise"]


def _judged(score):
    return compare.Judged("", "member", [], {"score": score}, 1.0)


def test_the_greedy_soup_adds_what_does_not_lower_the_score():
    tensors = [{"w": torch.tensor([v]), "n": torch.tensor(i)} for i, v in enumerate((4.0, 0.0, 8.0, 100.0))]
    asked = []

    def judge(weights):  # best at 6
        asked.append(weights["w"].item())
        return _judged(-abs(weights["w"].item() - 6))

    made = soup.greedy(tensors, [_judged(-2), _judged(-6), _judged(-2), _judged(-94)], lambda w: w, judge)
    assert made.ingredients == [0, 2] and made.tensors["w"].item() == 6 and made.tensors["n"].item() == 0
    assert asked == [6, 4, pytest.approx(112 / 3)], "in the order of their scores"
    alone = soup.greedy(tensors[:2], [_judged(0), _judged(-6)], lambda w: w, judge)
    assert alone.ingredients == [0] and alone.tensors["w"] is tensors[0]["w"]


def test_the_command_from_end_to_end(trained, tmp_path, capsys):
    """Three checkpoints: table, JSON, files; the soup is a run folder that evaluate gives the same score."""
    val, out = _val(trained), tmp_path / "out"
    steps = sorted((trained / "checkpoints").glob("step_*"))
    assert len(steps) == 2
    arguments = [
        *map(str, steps),
        f"data.val={val}",
        "post.bin_thresh=0.05",
        "post.box_thresh=0",
        f"run_root={tmp_path}",
    ]
    flags = ["--flips", "h", "--scales", "1,1.5", "--soup", "--bn-batches", "1", "--out", str(out), "--json"]
    data = sorted((trained.parent / ".synthetic").rglob("*.json"))
    train_pages = next(str(path) for path in data if path != val)
    assert main([*arguments, *flags, f"data.train={train_pages}"]) == 0
    shown = capsys.readouterr()
    result = json.loads(shown.out)
    assert "--select" in shown.err and result == json.loads((out / "report.json").read_text())
    assert [row["kind"] for row in result["rows"]] == ["member", "member", "ensemble", "ensemble", "soup"]
    assert "flips h, scales 1,1.5" in result["rows"][3]["name"] and result["pages"] == 4
    assert sum(row["difference"] is None for row in result["rows"]) == 1
    for row, step in zip(result["rows"], steps, strict=False):
        target = tmp_path / "evaluation.json"
        assert evaluate.main([f"checkpoint={step}", f"output={target}", *arguments[2:]]) == 0
        assert json.loads(target.read_text())["hmean"] == pytest.approx(row["hmean"], abs=1e-12)
    assert evaluate.main([f"checkpoint={out / 'soup'}", f"output={target}", *arguments[2:]]) == 0
    assert json.loads(target.read_text())["hmean"] == pytest.approx(result["rows"][-1]["hmean"], abs=1e-12)
    assert store.load_state(store.locate(out / "soup"))["soup"]
    assert Image.open(out / "ensemble.png").width == 900
    capsys.readouterr()
    assert main([str(out), f"data.val={val}", f"run_root={tmp_path}"]) == 0  # the file again
    table = capsys.readouterr().out
    assert "the best member" in table and "flips h, scales 1,1.5" in table
    again = [line for line in table.splitlines() if line.startswith("mean of maps")]
    assert f"{result['rows'][3]['hmean']:.4f}" in again[0]


def test_members_of_other_protocols_are_judged_by_the_same(trained, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(trained, other, symlinks=True)
    path = store.locate(other)
    values = store.load_settings(path)
    changed = {"protocol": "contest", "select": "macro"}
    store.replace_settings(path, yaml.safe_dump(values | {"eval": values["eval"] | changed}))
    loose = ["post.bin_thresh=0.05", "post.box_thresh=0"]
    assert main([str(trained), str(other), f"data.val={_val(trained)}", *loose, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["protocol"] == "official" and result["rows"][0]["hmean"] > 0
    assert result["rows"][0]["hmean"] == result["rows"][1]["hmean"] == result["rows"][2]["hmean"]


def test_a_soup_is_judged_with_the_settings_it_is_written_with(trained, tmp_path, capsys):
    """The second checkpoint alone has settings with which it finds anything, as a tuned one may."""
    run = tmp_path / "run"
    shutil.copytree(trained, run, symlinks=True)
    first, second = sorted((run / "checkpoints").glob("step_*"))
    for path, post in ((first, {"box_thresh": 1.0}), (second, {"bin_thresh": 0.05, "box_thresh": 0.0})):
        values = store.load_settings(path)
        store.replace_settings(path, yaml.safe_dump(values | {"post": values["post"] | post}))
    val = f"data.val={_val(trained)}"
    out = tmp_path / "out"
    assert main([str(first), str(second), val, "--soup", "--out", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["rows"][1]["hmean"] > result["rows"][0]["hmean"] == 0 and result["rows"][-1]["kind"] == "soup"
    assert evaluate.main([f"checkpoint={out / 'soup'}", val]) == 0
    assert json.loads(capsys.readouterr().out)["hmean"] == pytest.approx(result["rows"][-1]["hmean"], abs=1e-12)
    assert result["rows"][-1]["hmean"] > 0


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["{run}", "{run}"], "is the same checkpoint as"),
        (["gone"], "member=gone: no such folder"),
        (["{run}", "--flips", "x"], "invalid choice"),
        (["{run}", "--scales", "a"], "expected numbers with commas"),
        (["{run}", "--scales", "0.5"], "1 must be among them"),
        (["{run}", "--weights", "1,2"], "2 numbers for 1 members"),
        (["{run}", "--weights", "0"], "must be above 0"),
        (["{run}", "--select", "x"], "are for --soup"),
        (["{run}", "data.vall=x"], "unknown key data.vall"),
        (["data.val=x"], "PATH is missing"),
        (["{run}"], "data.val=PATH is missing"),
        (["{run}", "data.val=x", "--soup", "--bn-batches", "1"], "needs training pages"),
    ],
)
def test_errors_name_the_mend(trained, arguments, words):
    with pytest.raises(UserError, match=words):
        main([item.format(run=trained) for item in arguments])


def test_weights_of_different_networks_have_no_soup():
    small, _ = load_config(list(TINY))
    other, _ = load_config([*TINY, "models.decoder.upsample=bilinear"])
    tensors = {"w": torch.zeros(3)}
    soup.check_alike(["a", "b"], [small, small], [tensors, tensors])
    with pytest.raises(UserError, match="a and b are different networks"):
        soup.check_alike(["a", "b"], [small, other], [tensors, tensors])
    with pytest.raises(UserError, match="a and b are different networks"):
        soup.check_alike(["a", "b"], [small, small], [tensors, {"w": torch.zeros(4)}])
