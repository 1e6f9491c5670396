"""The curve of 50 steps of the real loop against tests/golden/loss_50_steps.json: a refactor that moves it is seen.

    python -m tests.test_golden --write      # renews the file after a change of the numbers that is meant

Everything that shapes a step is on: augmentation, accumulation, both masks, clipping, warm-up and schedule, weight decay,
averaging; in float64 and on pages made by numpy's frozen generator and stored without loss, so that no library's
drawing or coding is in it.

The budget: the curve is logged in float32 (1.2e-7 of a number), the weights at the end are float64. TOLERANCES says what
was measured and what is allowed.
"""

import json
import math
import sys
import tempfile
from pathlib import Path

import numpy as np
import safetensors.torch
from PIL import Image

from engine import checkpoint, train
from engine.runlog import read_metrics, versions

GOLDEN = Path(__file__).parent / "golden" / "loss_50_steps.json"
STEPS, PAGES = 50, 12
CURVES = ("loss", "prob_loss", "thresh_loss", "binary_loss", "grad_norm", "lr")
TOLERANCES = {"curve": 1e-6, "weights": 1e-11}
SETTINGS = (
    "preset=demo",
    "seed=3",
    "data.image_size=[64,96]",
    "data.batch_size=1",
    "data.threads=1",
    "augment.hflip=0.5",
    "augment.rotate_deg=12",
    "augment.rotate_p=0.6",
    "augment.noise_p=0.5",
    "augment.shadow_p=0.3",
    "augment.fog_p=0.3",
    "models.encoder.name=lcnet_035",
    "models.decoder.inner_channels=8",
    "models.decoder.output_channels=4",
    "models.head.hidden_channels=4",
    "models.optimizer.lr=2e-4",  # at 4e-3 a difference of 1e-16 is multiplied by ten in each step
    "models.scheduler.name=cosine",
    "models.scheduler.T_max=5",
    "models.scheduler.warmup_epochs=1.5",
    "trainer.precision=float64",
    "trainer.accumulate=2",
    "trainer.max_epochs=100",
    f"trainer.max_steps={STEPS}",
    "trainer.log_every=1",
    "trainer.clip_norm=1",
    "trainer.ema=true",
    "trainer.ema_decay=0.9",
    "trainer.overlays=0",
    "trainer.threads=1",
    "trainer.device=cpu",
    "eval.every_epochs=100",
)


def write_pages(folder: Path) -> Path:
    """PAGES pages of 80 x 110 px with lines of dark bars, as a folder with img/ and gt/."""
    rng = np.random.RandomState(0)  # its stream never changes (NEP 19)
    (folder / "img").mkdir(parents=True)
    (folder / "gt").mkdir()
    for number in range(PAGES):
        page = (225 + rng.randint(0, 25, (110, 80, 3))).astype(np.uint8)
        rows = []
        for line in range(rng.randint(2, 6)):
            left, top = rng.randint(4, 20), 8 + 18 * line
            right, bottom = rng.randint(45, 76), top + rng.randint(9, 13)
            for x in range(left, right, 3):
                page[top + rng.randint(0, 3) : bottom, x : x + 2] = rng.randint(0, 90)
            rows.append(f"{left},{top},{right},{top},{right},{bottom},{left},{bottom},word")
        Image.fromarray(page).save(folder / "img" / f"{number:02}.png")
        (folder / "gt" / f"{number:02}.txt").write_text("\n".join(rows) + "\n")
    return folder


def curve(folder: Path, *changes: str) -> dict:
    """Trains 50 steps in `folder`; returns the logged curves and the norm of every part of the last checkpoint."""
    pages = write_pages(folder / "pages")
    data = (f"data.train={pages}", f"data.val={pages}", f"run_root={folder}", "name=golden")
    assert train.main([*SETTINGS, *data, *changes]) == 0
    records = [r for r in read_metrics(folder / "golden" / "metrics.jsonl") if r["kind"] == "train"]
    last = folder / "golden" / "checkpoints" / "last"
    weights = {}
    for part in checkpoint.PARTS:
        tensors = safetensors.torch.load_file(last / f"{part}.safetensors")
        weights[part] = math.sqrt(sum(float(t.double().square().sum()) for _, t in sorted(tensors.items())))
    return {"curves": {name: [r[name] for r in records] for name in CURVES}, "weights": weights}


def distance(one: dict, other: dict) -> dict[str, float]:
    """Largest relative difference of the curves, and of the weights' norms."""
    pairs = [(a, b) for name in CURVES for a, b in zip(one["curves"][name], other["curves"][name], strict=True)]
    norms = [(one["weights"][part], other["weights"][part]) for part in checkpoint.PARTS]
    worst = {"curve": pairs, "weights": norms}
    return {name: max(abs(a - b) / max(abs(a), abs(b), 1e-12) for a, b in found) for name, found in worst.items()}


def within(found: dict[str, float]) -> bool:
    return all(found[name] <= limit for name, limit in TOLERANCES.items())


def test_the_curve_is_the_golden_one(tmp_path):
    golden = json.loads(GOLDEN.read_text())
    made = curve(tmp_path)
    assert made["curves"]["loss"][-1] < made["curves"]["loss"][0], "nothing is learnt"
    found = distance(made, golden)
    assert within(found), (
        f"the numbers of a training have moved by {found} (allowed {TOLERANCES}); if that is meant, renew the file with "
        f"python -m tests.test_golden --write; it was made with {golden['versions']}, here are {versions()}"
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made_in:
        fresh = curve(Path(made_in), *[item for item in sys.argv[1:] if "=" in item])
    if GOLDEN.exists():
        print("distance to the file:", distance(fresh, json.loads(GOLDEN.read_text())))
    if "--write" in sys.argv:
        GOLDEN.write_text(json.dumps({"versions": versions(), **fresh}, indent=1) + "\n")
