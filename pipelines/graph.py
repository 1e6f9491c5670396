"""The DALI graph of training and evaluation: one body, on the CPU (`device_id=None`) and on a GPU.

    encoded bytes -> decode -> [antialiased resize] -> warp_affine -> [colour] -> [blur or sharpen] -> [noise]
                  -> [shadow and fog] -> ImageNet normalise, NHWC

Everything random comes in as data (pipelines.source); the graph draws nothing. Steps in brackets are left out of the
graph when the configuration never uses them, and skip the samples of a batch that do not use them. Pixels stay uint8 up
to the normalisation: a quarter of the bytes of float32 in each step, and saturation as a camera has it.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.pipeline import Pipeline
from nvidia.dali.types import DALIDataType, DALIImageType, DALIInterpType

from pipelines.augment import AugmentConfig
from pipelines.source import fields_of

# ImageNet statistics, grey levels of 255, RGB
MEAN = [0.485 * 255, 0.456 * 255, 0.406 * 255]
STD = [0.229 * 255, 0.224 * 255, 0.225 * 255]
LINEAR = DALIInterpType.INTERP_LINEAR


@dataclasses.dataclass(frozen=True)
class LoaderOptions:
    """How batches are made: where, and with how much help. Which pages they hold does not hang on it.

    Attributes:
        device_id: GPU to decode and warp on; None = the CPU.
        threads: DALI's CPU threads (decoding, and everything on the CPU).
        workers: processes that run a training's source; 0 = this process does. An evaluation has none.
        prefetch: batches prepared ahead.
        hw_decoder_load: share of the JPEGs that the GPU's JPEG decoder takes, where it has one; CUDA cores and the CPU
            decode the rest. Without effect on the CPU.
    """

    device_id: int | None = None
    threads: int = 2
    workers: int = 0
    prefetch: int = 2
    hw_decoder_load: float = 0.9


DEFAULT = LoaderOptions()


class Outputs(NamedTuple):
    """Outputs of the graph, in order; all but the image are in host memory."""

    image: Any  # (H, W, 3) float32 on the CPU, float16 on the GPU
    shape: Any  # (3,) int64 of the decoded image: height, width, channels
    points: Any
    offsets: Any
    ignore: Any
    row: Any
    matrix: Any


def define(
    source: Any,
    canvas_hw: tuple[int, int],
    augment: AugmentConfig,
    batch_size: int,
    options: LoaderOptions = DEFAULT,
    largest_wh: tuple[int, int] = (0, 0),
) -> Pipeline:
    """The pipeline that yields `Outputs`, to be built (which needs the GPU, where there is one).

    Args:
        source: callable of a BatchInfo giving the columns `source.fields_of(augment)`; picklable when workers > 0.
        augment: decides which steps the graph has.
        batch_size: largest batch.
        largest_wh: largest stored width and height: the hardware decoder's memory is taken once, for those.
    """
    decoder: dict[str, float] = {}
    if options.device_id is not None:
        decoder = {
            "hw_decoder_load": options.hw_decoder_load,
            "preallocate_width_hint": largest_wh[0],
            "preallocate_height_hint": largest_wh[1],
        }
    return _graph(
        source,
        canvas_hw,
        augment,
        options.workers > 0,
        decoder,
        batch_size=batch_size,
        num_threads=options.threads,
        device_id=options.device_id,
        prefetch_queue_depth=options.prefetch,
        py_num_workers=max(1, options.workers),
        py_start_method="spawn",  # fork would copy a process that holds CUDA and threads
        seed=0,
        exec_dynamic=True,
    )


def device_bytes(
    sizes_wh: np.ndarray, canvas_hw: tuple[int, int], augment: AugmentConfig, batch_size: int, prefetch: int
) -> int:
    """GPU memory that a pipeline comes to hold, bytes: the batch with the largest page, twice (one is decoded while
    another is warped), the canvas at each step, and the outputs that wait. sizes_wh: (N, 2) pixels of all pages.
    """
    pixels = sizes_wh.astype(np.int64).prod(1)
    decoded = 3 * (int(pixels.max()) + (batch_size - 1) * int(np.median(pixels)))
    steps = 2 * 3 + (2 * 12 if augment.lights else 0)  # two of uint8, two of float32
    return 2 * decoded + batch_size * canvas_hw[0] * canvas_hw[1] * (steps + 6 * (prefetch + 2))


@pipeline_def(enable_conditionals=True)
def _graph(
    source: Any, canvas_hw: tuple[int, int], augment: AugmentConfig, parallel: bool, decoder: dict[str, Any]
) -> tuple[Any, ...]:
    gpu = Pipeline.current().device_id is not None
    fields = fields_of(augment)
    given = fn.external_source(
        source=source,
        num_outputs=len(fields),
        batch=True,
        batch_info=True,
        parallel=parallel,
    )
    sample = dict(zip(fields, given))
    # Orientation is in the matrix (geometry.orient), hence not adjusted here. Full frames: GPU ROI decode crashes with
    # the codec of this DALI generation (NVIDIA/nvImageCodec#55).
    decoder |= {"device": "mixed" if gpu else "cpu", "output_type": DALIImageType.RGB}
    image = fn.decoders.image(sample["encoded"], adjust_orientation=False, **decoder)
    shape = image.shape()
    image = _warp(image, sample, canvas_hw, gpu)
    image = _photometric(image, sample, canvas_hw, augment, gpu)
    image = fn.crop_mirror_normalize(
        image, dtype=DALIDataType.FLOAT16 if gpu else DALIDataType.FLOAT, output_layout="HWC", mean=MEAN, std=STD
    )
    return tuple(
        Outputs(image, shape, sample["points"], sample["offsets"], sample["ignore"], sample["row"], sample["matrix"])
    )


def _warp(image: Any, sample: dict[str, Any], canvas_hw: tuple[int, int], gpu: bool) -> Any:
    """The page on the canvas. The matrix goes from output to input, pixel centres at i + 0.5."""
    if sample["resize"]:
        image = fn.resize(image, size=sample["size_hw"], interp_type=LINEAR, antialias=True)
    placing: dict[str, Any] = {"inverse_map": True, "size": list(canvas_hw), "interp_type": LINEAR}
    if gpu:
        return fn.warp_affine(image, matrix=sample["inverse"], fill_value=0, **placing)
    # On the CPU warp_affine goes pixel by pixel, 26.7 ms for 1280x640; this is OpenCV's vectorised warp, 4.6 ms, with
    # coordinates rounded to 1/32 pixel.
    matrix = fn.cat(sample["inverse"], types.Constant(np.array([[0, 0, 1]], np.float32)), axis=0)
    return fn.experimental.warp_perspective(image, matrix=matrix, fill_value=[0.0] * 3, **placing)


def _photometric(
    image: Any, sample: dict[str, Any], canvas_hw: tuple[int, int], augment: AugmentConfig, gpu: bool
) -> Any:
    """Colour, blur or sharpening, noise, shadow and fog: uint8, or float32 where shadow and fog are possible.

    They end within 0..255 by themselves, and rounding floats to uint8 costs 7 ms for 1280x640 on a CPU.
    `augment.xs and sample["x_on"]`: the left is known when the graph is built and leaves the step out; the right is one
    flag per sample and becomes a DALI conditional.
    """
    if augment.colours and sample["colour_on"]:
        image = fn.reshape(fn.coord_transform(image, MT=sample["colour"], dtype=DALIDataType.UINT8), layout="HWC")
    if augment.colours and sample["tone_on"]:
        image = fn.brightness_contrast(image, brightness=sample["tone_gain"], brightness_shift=sample["tone_shift"])
    if augment.blurs and sample["blur_on"]:
        image = fn.filter(image, _on(sample["blur_kernel"], gpu))
    if augment.noises and sample["noise_on"]:
        image = fn.cast(image + _on(sample["noise"], gpu), dtype=DALIDataType.UINT8)
    if augment.lights:
        if sample["light_on"]:
            gain = _stretch(_on(sample["light_gain"], gpu), canvas_hw)
            image = image * gain + _stretch(_on(sample["light_offset"], gpu), canvas_hw)
        else:
            image = fn.cast(image, dtype=DALIDataType.FLOAT)
    return image


def _stretch(grid: Any, canvas_hw: tuple[int, int]) -> Any:
    """A coarse map stretched over the canvas."""
    return fn.resize(fn.reshape(grid, layout="HWC"), size=list(canvas_hw), interp_type=LINEAR)


def _on(data: Any, gpu: bool) -> Any:
    """Data where the image is."""
    return data.gpu() if gpu else data
