"""The settings of a run: frozen dataclasses, checked at construction. `load` fills them from YAML and `a.b=c`.

Every field carries its meaning and allowed values (`pipelines.options.option`); `--help` and the error messages are
made from them. No torch here: planning a search must work on a machine that has none.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.augment import AugmentConfig
from pipelines.errors import UserError
from pipelines.limits import DEFAULT, Limits
from pipelines.options import check_options, option

# Up to this many pages a rank the host needs longer to start a step's kernels than a GPU to run them: 2 pages of
# HRNet-W44 are 20 ms of counted work and some 4,700 launches.
GRAPH_PAGES = 4
SIZE_MULTIPLE = 32  # the deepest map of the encoder has stride 32


def rounded(length: float, multiple: int = SIZE_MULTIPLE) -> int:
    """A length in pixels as the nearest side of a canvas: a multiple of 32, at least 32."""
    return max(1, round(length / multiple)) * multiple


def _size(config: object, key: str, field: str, multiple: int) -> None:
    """Replaces [N] by [N, N]; refuses other lengths and sides that are no multiple of `multiple`."""
    size = getattr(config, field)
    if len(size) == 1:
        size = size * 2
        object.__setattr__(config, field, size)
    if len(size) not in (0, 2):
        raise UserError(f"{key}={size}: expected N or [H,W]")
    if any(side % multiple for side in size):
        near = [rounded(side, multiple) for side in size]
        raise UserError(f"{key}={size}: sides must be multiples of {multiple}; nearest is [{near[0]},{near[1]}]")


@dataclass(frozen=True)
class DataConfig:
    """What is read, and how it is batched."""

    train: list[str] = option(
        [], "training sources: annotation files, folders or built indexes; [] = built-in synthetic"
    )
    train_weights: list[float] = option(
        [], "share of each training source in an epoch, relative to its size; [] = 1", 0.0
    )
    val: list[str] = option([], "validation sources; give both data.train and data.val, or neither")
    test: list[str] = option([], "test sources, scored once at the end of a training")
    format: str = option("auto", "annotation format; auto detects it from the source")
    root: str = option("", "folder of the images, where it is not found beside the annotations")
    image_size: list[int] = option([1280, 1280], "canvas [H,W] or N, in pixels, multiples of 32", 32, 8192)
    progressive: list[int] = option(
        [], "longer sides of the canvas in the parts of the training before data.image_size; [] = off", 32, 8192
    )
    batch_size: int = option(2, "pages per rank and forward pass", 1, 4096)
    global_batch: int = option(0, "global batch the learning rate was found at (informative; 0 = unknown)", 0)
    workers: int = option(0, "DALI Python worker processes per rank; 0 = in the training process", 0, 256)
    threads: int = option(4, "DALI CPU threads per rank", 1, 256)
    prefetch: int = option(2, "batches prepared ahead", 1, 64)
    hw_decoder_load: float = option(0.9, "share of JPEGs for the GPU's own decoder (A100, H100 and newer)", 0.0, 1.0)
    max_bad_share: float = option(0.05, "share of training pages that may turn out unreadable, rounded up", 0.0, 1.0)
    max_page_mpx: float = option(DEFAULT.pixels / 1e6, "largest page, megapixels; larger ones are refused", 0.01, 1e3)
    max_scans: int = option(DEFAULT.scans, "most scans of a JPEG; more are refused", 1, 256)
    max_annotation_mb: float = option(
        DEFAULT.annotation_mb, "a JSON file, or all text files, at most: 10^6 bytes", 0.001, 1e6
    )
    max_polygons: int = option(DEFAULT.polygons, "most polygons of a page; more are refused", 1, 1000000)
    max_points: int = option(DEFAULT.points, "most points of a polygon; more are simplified or masked out", 16, 100000)
    synthetic_train: int = option(256, "pages of the built-in training set", 1)
    synthetic_val: int = option(32, "pages of the built-in validation set", 1)
    synthetic_size: list[int] = option([1280, 960], "size [H,W] of built-in pages, in pixels", 64, 8192)
    synthetic_seed: int = option(0, "seed of the built-in pages", 0)

    def __post_init__(self) -> None:
        check_options(self, "data.")
        _size(self, "data.image_size", "image_size", SIZE_MULTIPLE)
        _size(self, "data.synthetic_size", "synthetic_size", 1)
        for field in ("image_size", "synthetic_size"):
            if not getattr(self, field):
                raise UserError(f"data.{field}=[]: expected N or [H,W]")
        self._check_progressive()
        if self.train_weights and len(self.train_weights) != len(self.train):
            raise UserError(f"data.train_weights={self.train_weights}: data.train has {len(self.train)} sources")
        if self.train_weights and sum(self.train_weights) <= 0:
            raise UserError(f"data.train_weights={self.train_weights}: at least one must be above 0")

    @property
    def limits(self) -> Limits:
        """The bounds on pages and annotations, for `pipelines`."""
        pixels = round(1e6 * self.max_page_mpx)
        return Limits(pixels, self.max_scans, self.max_annotation_mb, self.max_polygons, self.max_points)

    def _check_progressive(self) -> None:
        sides, last = self.progressive, max(self.image_size)
        if any(side % SIZE_MULTIPLE for side in sides):
            raise UserError(f"data.progressive={sides}: sides must be multiples of {SIZE_MULTIPLE}")
        if any(small >= large for small, large in zip(sides, [*sides[1:], last])):
            raise UserError(f"data.progressive={sides}: sides must grow and stay below data.image_size's {last}")


@dataclass(frozen=True)
class EncoderConfig:
    """The timm backbone."""

    name: str = option("hrnet_w44", "timm model with maps at strides 4, 8, 16 and 32")
    weights: str = option("", "start: empty = random, timm = pretrained from its hub, or a safetensors file")
    hrnet_incre_head: bool = option(True, "keep HRNet's channel-increasing heads (maps of 128/256/512/1024 channels)")
    pad_widths: str = option(
        "none",
        "compute HRNet's first branch in this many zero-padded channels; weights and checkpoints stay as they are",
        choices=("none", "48", "64"),
    )
    freeze: str = option("none", "part that is not trained", choices=("none", "stem", "all"))
    lr_scale: float = option(1.0, "factor on the learning rate of this part", 0.0, 1000.0)
    decay_scale: float = option(1.0, "factor on the weight decay of this part", 0.0, 1000.0)

    def __post_init__(self) -> None:
        check_options(self, "models.encoder.")
        if not self.name:
            raise UserError("models.encoder.name is empty: give a timm model name, e.g. hrnet_w44")


@dataclass(frozen=True)
class DecoderConfig:
    """The feature pyramid."""

    kind: str = option("unet", "kind of decoder", choices=("unet",))
    inner_channels: int = option(256, "channels of the laterals", 1, 4096)
    output_channels: int = option(64, "channels each level gives to the head", 1, 4096)
    upsample: str = option("nearest", "upsampling between levels", choices=("nearest", "bilinear"))
    batch_norm: bool = option(False, "BatchNorm and ReLU after each convolution")
    freeze: bool = option(False, "do not train this part")
    lr_scale: float = option(1.0, "factor on the learning rate of this part", 0.0, 1000.0)
    decay_scale: float = option(1.0, "factor on the weight decay of this part", 0.0, 1000.0)

    def __post_init__(self) -> None:
        check_options(self, "models.decoder.")


@dataclass(frozen=True)
class HeadConfig:
    """The differentiable binarization head."""

    hidden_channels: int = option(64, "channels inside the two branches; 0 = input channels / 4", 0, 4096)
    db_k: float = option(50.0, "steepness k of B = sigmoid(k (P - T))", 0.1, 1000.0)
    smooth: bool = option(False, "nearest upsampling and a convolution instead of transposed convolutions")
    freeze: bool = option(False, "do not train this part")
    lr_scale: float = option(1.0, "factor on the learning rate of this part", 0.0, 1000.0)
    decay_scale: float = option(1.0, "factor on the weight decay of this part", 0.0, 1000.0)

    def __post_init__(self) -> None:
        check_options(self, "models.head.")


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer."""

    name: str = option("adam", "adam has L2 in the gradient, adamw decouples it", choices=("adamw", "adam", "sgd"))
    lr: float = option(1e-4, "peak learning rate; never scaled with the batch", 0.0, 100.0)
    weight_decay: float = option(4e-5, "weight decay", 0.0, 10.0)
    momentum: float = option(0.9, "momentum of sgd", 0.0, 0.9999)
    beta1: float = option(0.9, "first-moment decay of adam and adamw", 0.0, 0.9999)
    beta2: float = option(0.999, "second-moment decay of adam and adamw", 0.0, 0.999999)
    eps: float = option(1e-8, "denominator constant of adam and adamw", 1e-16, 1.0)

    def __post_init__(self) -> None:
        check_options(self, "models.optimizer.")


@dataclass(frozen=True)
class SchedulerConfig:
    """The learning-rate schedule."""

    name: str = option("cosine", "shape of the schedule", choices=("cosine", "onecycle", "poly", "constant"))
    T_max: int = option(15, "epochs from lr down to eta_min (cosine)", 1, 100000)
    eta_min: float = option(1e-5, "learning rate at the end (cosine, poly, onecycle)", 0.0, 100.0)
    after_T_max: str = option(
        "mirror",
        "cosine past T_max: mirror climbs again as torch does, hold stays at eta_min",
        choices=("mirror", "hold"),
    )
    warmup_epochs: float = option(0.0, "linear warm-up, in epochs (fractions allowed)", 0.0, 1000.0)
    warmup_start: float = option(0.001, "learning rate at the start of the warm-up, as a share of lr", 0.0, 1.0)
    poly_power: float = option(0.9, "exponent of poly", 0.01, 100.0)
    pct_start: float = option(0.3, "share of onecycle that climbs", 0.0, 1.0)

    def __post_init__(self) -> None:
        check_options(self, "models.scheduler.")


@dataclass(frozen=True)
class ModelsConfig:
    """The detector and how it is optimized."""

    encoder: EncoderConfig = dataclasses.field(default_factory=EncoderConfig)
    decoder: DecoderConfig = dataclasses.field(default_factory=DecoderConfig)
    head: HeadConfig = dataclasses.field(default_factory=HeadConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig = dataclasses.field(default_factory=SchedulerConfig)

    def __post_init__(self) -> None:
        if self.encoder.freeze == "all" and self.decoder.freeze and self.head.freeze:
            raise UserError("models.*.freeze: encoder, decoder and head are all frozen; nothing is left to train")


@dataclass(frozen=True)
class LossConfig:
    """Targets and loss (DBNet, arXiv 1911.08947)."""

    mode: str = option(
        "paper", "baseline: no masks, no minimum size, L1 over all pixels", choices=("paper", "baseline")
    )
    prob_weight: float = option(5.0, "weight of the probability BCE", 0.0, 1000.0)
    thresh_weight: float = option(10.0, "weight of the threshold L1", 0.0, 1000.0)
    binary_weight: float = option(1.0, "weight of the binary Dice", 0.0, 1000.0)
    negative_ratio: float = option(3.0, "hardest negatives kept for each positive pixel", 0.0, 1000.0)
    shrink_ratio: float = option(0.4, "r of D = A (1 - r^2) / L", 0.01, 0.99)
    thresh_min: float = option(0.3, "threshold target far from the border", 0.0, 1.0)
    thresh_max: float = option(0.7, "threshold target on the border", 0.0, 1.0)
    min_text_size_px: float = option(8.0, "texts with a shorter side are ignored, in canvas pixels", 0.0, 1000.0)

    def __post_init__(self) -> None:
        check_options(self, "loss.")
        if self.thresh_min >= self.thresh_max:
            raise UserError(f"loss.thresh_min={self.thresh_min}: must be below loss.thresh_max={self.thresh_max}")
        if self.prob_weight + self.thresh_weight + self.binary_weight <= 0:
            raise UserError("loss.*_weight: all three are 0; nothing is left to learn from")


@dataclass(frozen=True)
class TrainerConfig:
    """The training loop."""

    max_epochs: int = option(20, "length of the run, in epochs", 1, 100000)
    max_steps: int = option(0, "stop after this many steps; 0 = off", 0)
    max_minutes: float = option(0.0, "stop after this many minutes, with a checkpoint; 0 = off", 0.0)
    accumulate: int = option(1, "forward passes per step", 1, 4096)
    clip_norm: float = option(1.0, "largest gradient norm; 0 = no clipping", 0.0, 1e6)
    precision: str = option(
        "auto",
        "network arithmetic; auto = bf16 on a GPU, float32 elsewhere",
        choices=("auto", "bf16", "float32", "float64"),
    )
    compile: bool = option(False, "torch.compile the network")
    channels_last: bool = option(True, "NHWC memory format")
    device: str = option("auto", "where to train; auto = the GPU when there is one", choices=("auto", "cpu", "cuda"))
    deterministic: bool = option(False, "bitwise repeatable on a GPU, slower")
    ema: bool = option(False, "keep an exponential moving average of the weights")
    ema_decay: float = option(0.9998, "decay of the average per step", 0.0, 0.999999)
    precise_bn: int = option(
        0, "training batches per rank from which BatchNorm statistics are estimated anew at the end; 0 = off", 0, 100000
    )
    sync_bn: bool = option(False, "BatchNorm over the batches of all GPUs, slow; trainer.precise_bn does without")
    log_every: int = option(20, "steps between two lines of metrics", 1)
    patience: int = option(0, "stop after this many evaluations without a better result; 0 = off", 0)
    checkpoint_every_steps: int = option(0, "steps between checkpoints; 0 = at the end of each epoch only", 0)
    max_failed_saves: int = option(
        5, "stop when this many checkpoints in a row could not be written (full disk); 0 = train on", 0
    )
    keep_top_k: int = option(3, "best checkpoints kept", 1, 1000)
    keep_last: int = option(2, "newest checkpoints kept", 1, 1000)
    kernels: str = option(
        "auto",
        "targets, loss, boxes and fused norms by Triton kernels or their PyTorch reference; auto = triton on a GPU",
        choices=("auto", "triton", "reference"),
    )
    threads: int = option(0, "torch CPU threads; 0 = torch's choice", 0, 1024)
    hang_timeout_s: float = option(
        600.0, "seconds without a step after which the rank that hangs is named and the run ends; 0 = off", 0.0
    )
    nonfinite_limit: int = option(
        5, "steps skipped in a row, for a loss or gradient that is no number, are too many", 1
    )
    on_nonfinite: str = option(
        "stop", "then: stop, or go back to the last checkpoint with a lower lr", choices=("stop", "rollback")
    )
    rollback_lr: float = option(0.5, "factor on the learning rate at each rollback", 0.0001, 1.0)
    max_rollbacks: int = option(3, "rollbacks before the run stops", 1, 1000)
    profile: bool = option(False, "record a few steps: a trace and a table of the step in the run's folder profile/")
    overlays: int = option(8, "pictures of the worst validation pages, drawn anew at each best result", 0, 10000)

    def __post_init__(self) -> None:
        check_options(self, "trainer.")


@dataclass(frozen=True)
class SpeedConfig:
    """How the network is compiled and distributed; nothing here changes what is computed, beyond rounding."""

    scope: str = option(
        "model", "what trainer.compile compiles: the whole network, or its repeated blocks", choices=("model", "blocks")
    )
    max_autotune: bool = option(False, "time several kernels for each convolution while compiling; takes long")
    cuda_graphs: str = option(
        "auto",
        "replay each compiled graph as one CUDA graph; auto = on a GPU, up to 4 pages a rank and one canvas",
        choices=("auto", "true", "false"),
    )
    combo_kernels: bool = option(False, "join small kernels that do not wait for each other; not timed yet")
    force_layout: bool = option(False, "switch on Inductor's own channels-last pass, which it leaves out for HRNet")
    memory_budget: float = option(
        1.0, "share of the activations kept for the backward pass; the rest is computed again", 0.0, 1.0
    )
    optimize_ddp: str = option(
        "ddp_optimizer",
        "split the compiled graph at gradient buckets, so that sums overlap with the backward pass, or keep it whole",
        choices=("ddp_optimizer", "no_optimization"),
    )
    bucket_mib: int = option(25, "gradients summed over the ranks at a time, in MiB", 1, 4096)
    fused_norms: bool = option(
        False, "BatchNorm, shortcut and ReLU as one operator that moves fewer bytes in training; not timed yet"
    )

    def __post_init__(self) -> None:
        check_options(self, "speed.")


@dataclass(frozen=True)
class EvalConfig:
    """How a model is judged."""

    every_epochs: int = option(1, "epochs between evaluations; the last epoch is always evaluated", 1)
    batch_size: int = option(4, "pages per rank and forward pass", 1, 4096)
    protocol: str = option(
        "official", "CLEval as published, or the contest's (no transcriptions)", choices=("official", "contest")
    )
    select: str = option(
        "micro", "H-mean that picks the best: micro = all texts, macro = mean of pages", choices=("micro", "macro")
    )
    image_size: list[int] = option([], "canvas [H,W] or N, in pixels, multiples of 32; [] = data.image_size", 32, 8192)
    ema: bool = option(True, "judge the averaged weights when trainer.ema keeps them")
    workers: int = option(0, "processes per rank that score pages with CLEval; 0 = in this process", 0, 256)

    def __post_init__(self) -> None:
        check_options(self, "eval.")
        _size(self, "eval.image_size", "image_size", SIZE_MULTIPLE)


@dataclass(frozen=True)
class PostConfig:
    """From probability maps to text regions."""

    shape: str = option("quad", "shape of a region", choices=("quad", "polygon"))
    bin_thresh: float = option(0.3, "probability of a text pixel", 0.0, 1.0)
    box_thresh: float = option(0.4, "least mean probability of a region", 0.0, 1.0)
    unclip_ratio: float = option(1.5, "growth of a region: D' = A ratio / L", 0.0, 10.0)
    min_size_px: float = option(3.0, "least short side before the growth, in canvas pixels", 0.0, 1000.0)
    min_unclipped_px: float = option(5.0, "least short side after the growth, in canvas pixels", 0.0, 1000.0)
    score_mode: str = option(
        "fast", "mean over the box (fast) or over the region's own pixels (slow)", choices=("fast", "slow")
    )
    max_candidates: int = option(500, "regions kept per page, best scores first", 1, 100000)
    connectivity: int = option(8, "neighbours of a pixel", choices=(4, 8))
    polygon_epsilon: float = option(0.002, "simplification of polygons, as a share of the perimeter", 0.0, 0.1)

    def __post_init__(self) -> None:
        check_options(self, "post.")


@dataclass(frozen=True)
class Config:
    """Everything that decides a run."""

    preset: str = option("hrnet_w44_1280", "settings to start from: a name of engine/config/presets or a YAML file")
    name: str = option("", "folder of the run below run_root; empty = preset and UTC time")
    run_root: str = option("runs", "folder that holds the runs")
    seed: int = option(0, "seed of weights, order and augmentation", 0, 10**9)
    wandb: bool = option(False, "send metrics to Weights & Biases (offline without key or network)")
    wandb_project: str = option("dbnet-engine", "Weights & Biases project")
    wandb_group: str = option("", "Weights & Biases group; a search groups its trials under the study's name")
    wandb_job_type: str = option("", "Weights & Biases job type, e.g. how a search chose the trial")
    resume: str = option("none", "none, auto = the run's newest checkpoint if there is one, or a checkpoint folder")
    init_from: str = option("", "checkpoint folder, or safetensors file, whose weights start a new run; empty = none")
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    models: ModelsConfig = dataclasses.field(default_factory=ModelsConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    trainer: TrainerConfig = dataclasses.field(default_factory=TrainerConfig)
    speed: SpeedConfig = dataclasses.field(default_factory=SpeedConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    post: PostConfig = dataclasses.field(default_factory=PostConfig)

    def __post_init__(self) -> None:
        check_options(self)
        if self.name in (".", "..") or "/" in self.name or "\0" in self.name:
            raise UserError(f"name={self.name}: expected a plain folder name; the folder above it is run_root")
        if not self.resume:
            raise UserError("resume is empty: expected none, auto or a checkpoint folder")
        if self.speed.cuda_graphs == "true" and self.trainer.accumulate > 1:
            raise UserError(
                f"speed.cuda_graphs=true with trainer.accumulate={self.trainer.accumulate}: a replayed graph would "
                "write over gradients that are still being summed; set one of them to its default"
            )
        parts = len(self.data.progressive) + 1
        if self.trainer.max_epochs < parts:
            raise UserError(
                f"data.progressive={self.data.progressive}: {parts} canvas sizes need trainer.max_epochs of at least "
                f"{parts}, not {self.trainer.max_epochs}"
            )
        if self.speed.fused_norms and self.trainer.sync_bn:
            raise UserError(
                "speed.fused_norms=true with trainer.sync_bn=true: a fused norm knows its own rank's batch only; set "
                "one of them to false"
            )
        self._check_statistics()
        if self.resume == "auto" and not self.name:
            raise UserError("resume=auto needs name=NAME: without it every start makes a new run folder")

    @property
    def cuda_graphs(self) -> bool:
        """Whether compiled graphs are replayed as CUDA graphs, on a GPU: `speed.cuda_graphs`, decided."""
        if self.speed.cuda_graphs != "auto":
            return self.speed.cuda_graphs == "true"
        # A canvas has a graph and its memory of its own; sums of gradients would be written over.
        return self.data.batch_size <= GRAPH_PAGES and not self.data.progressive and self.trainer.accumulate == 1

    def _check_statistics(self) -> None:
        """The deepest map of a canvas of 32 x 32 is one pixel, and BatchNorm learns nothing from a single one."""
        smallest = (self.data.progressive or [max(self.data.image_size)])[0]
        alone = self.data.batch_size == 1 and not self.trainer.sync_bn
        if smallest == SIZE_MULTIPLE and alone and self.models.encoder.freeze != "all":
            raise UserError(
                "data.batch_size=1 with a canvas of 32x32 px: BatchNorm sees one pixel of the deepest map and cannot "
                "train; raise data.image_size (or data.progressive) or data.batch_size"
            )


def changed(config: Config, values: Mapping[str, Any]) -> Config:
    """The configuration with other values for some keys, checked anew: `changed(config, {"data.progressive": []})`.

    Raises:
        UserError: a value out of range, or values that cannot work together.
        TypeError, AttributeError: there is no such key.
    """
    changed_config: Config = _replaced(config, values)
    return changed_config


def _replaced(section: Any, values: Mapping[str, Any]) -> Any:
    """A settings dataclass with other values for some of its keys (`a`, or `b.c` of a section `b` in it)."""
    own: dict[str, Any] = {}
    below: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        name, dot, rest = key.partition(".")
        if dot:
            below.setdefault(name, {})[rest] = value
        else:
            own[name] = value
    sections = {name: _replaced(getattr(section, name), inside) for name, inside in below.items()}
    return dataclasses.replace(section, **own, **sections)
