"""What happens to one training sample: every random number it needs, drawn from its own counter-based stream.

Stateless: `draw(config, seed, epoch, index)` is a pure function, so any worker, rank or resumed run makes the same
sample. Numbers are always drawn in the same order, whatever is switched off, so that two configurations differ in the
switched op only and share all other draws. numpy only: the configuration is imported where torch is not wanted.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from pipelines.errors import UserError
from pipelines.options import check_options, option

LIGHT_GRID = 16  # shadow and fog are drawn on a 16x16 map; the device stretches it over the canvas
NOISE_MARGIN = 256  # noise comes from one fixed tile, this much larger than the canvas, read at a drawn offset
FOG_LEVEL = 235.0  # grey level that fog blends towards


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of training samples; probabilities end in `_p`. Defaults follow the published HRNet-W44 recipe."""

    enabled: bool = option(True, "augment training samples; false = letterbox only, as in evaluation")
    hflip: float = option(0.5, "probability of a left-right flip", 0, 1)
    rotate_deg: float = option(12.0, "largest rotation, degrees, both ways", 0, 180)
    rotate_p: float = option(0.6, "probability of a rotation", 0, 1)
    scale_min: float = option(0.88, "smallest scale relative to the page fitted into the canvas", 0.05, 8)
    scale_max: float = option(1.12, "largest scale relative to the page fitted into the canvas", 0.05, 8)
    aspect: float = option(1.1, "largest change of width/height, as a ratio, both ways", 1, 4)
    shift: float = option(0.06, "largest shift off the centre, share of the canvas side", 0, 1)
    crop_tries: int = option(20, "placements tried to cut no text instance; the least cutting one wins", 1, 1000)
    brightness: float = option(0.1, "largest added brightness, share of white, both ways", 0, 1)
    contrast: float = option(0.1, "largest relative change of contrast, both ways", 0, 0.9)
    brightness_p: float = option(0.5, "probability of brightness and contrast", 0, 1)
    hue_deg: float = option(20.0, "largest turn of the hue, degrees, both ways", 0, 180)
    saturation: float = option(0.15, "largest relative change of saturation, both ways", 0, 1)
    value: float = option(0.1, "largest relative change of value, both ways", 0, 0.9)
    hsv_p: float = option(0.5, "probability of hue, saturation and value", 0, 1)
    sharpen_p: float = option(0.4, "probability of sharpening; excludes blur in the same sample", 0, 1)
    blur_p: float = option(0.2, "probability of a Gaussian blur; sharpen_p + blur_p <= 1", 0, 1)
    blur_sigma: float = option(1.5, "largest sigma of the blur, canvas pixels", 0.3, 16)
    noise_p: float = option(0.2, "probability of Gaussian noise", 0, 1)
    noise_sigma: float = option(7.0, "largest sigma of the noise, grey levels of 255", 0, 64)
    shadow_p: float = option(0.3, "probability of a cast shadow", 0, 1)
    fog_p: float = option(0.2, "probability of fog", 0, 1)

    def __post_init__(self) -> None:
        check_options(self, "augment.")
        if self.scale_min > self.scale_max:
            raise UserError(f"augment.scale_min={self.scale_min} is above augment.scale_max={self.scale_max}")
        if self.sharpen_p + self.blur_p > 1:
            raise UserError(
                f"augment.sharpen_p={self.sharpen_p} and augment.blur_p={self.blur_p}: their sum must be at most 1"
            )

    @property
    def colours(self) -> bool:
        """Whether any sample can get brightness, contrast, hue, saturation or value."""
        return self.enabled and (self.brightness_p > 0 or self.hsv_p > 0)

    @property
    def blurs(self) -> bool:
        """Whether any sample can get blurred or sharpened."""
        return self.enabled and (self.blur_p > 0 or self.sharpen_p > 0)

    @property
    def noises(self) -> bool:
        """Whether any sample can get noise."""
        return self.enabled and self.noise_p > 0 and self.noise_sigma > 0

    @property
    def lights(self) -> bool:
        """Whether any sample can get shadow or fog."""
        return self.enabled and (self.shadow_p > 0 or self.fog_p > 0)


class Draw(NamedTuple):
    """The random numbers of one sample. None, 0 and 1 stand for "not in this sample"."""

    hflip: bool
    angle_deg: float  # positive turns the page clockwise on the canvas (y points down)
    scale: float  # relative to the page fitted into the canvas
    aspect: float  # width is multiplied by sqrt(aspect), height divided by it
    shift: np.ndarray  # (2,) float64 x, y in -1..1 times the largest shift, share of the canvas side
    crop: np.ndarray  # (crop_tries, 2) float64 in 0..1, placements x, y
    colour: np.ndarray | None  # (3, 4) float32: rgb -> colour[:, :3] @ rgb + colour[:, 3], grey levels of 255
    blur_mix: float  # image + blur_mix * (blurred - image): 1 blurs, negative sharpens, 0 nothing
    blur_sigma: float  # canvas pixels
    noise_sigma: float  # grey levels, 0 = none
    noise_offset: tuple[int, int]  # y, x into the noise tile, each below NOISE_MARGIN
    light: np.ndarray | None  # (16, 16, 2) float32: image * light[..., 0] + light[..., 1]


def generator(seed: int, epoch: int, index: int = 0, repeat: int = 0, stream: int = 0) -> np.random.Generator:
    """Random numbers of one sample: Philox keyed by (seed, epoch), the others in the counter's top words.

    Streams are at least 2^128 draws apart, so they never meet (Salmon et al., "Parallel random numbers: as easy as
    1, 2, 3", SC 2011).
    """
    mask = (1 << 64) - 1
    key, counter = np.array([seed & mask, epoch & mask], np.uint64), np.array([0, stream, repeat, index], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def draw(config: AugmentConfig, seed: int, epoch: int, index: int, repeat: int = 0) -> Draw:
    """All random numbers of sample `index` in `epoch`; the same key always gives the same draw.

    `repeat`, how often the sample came already in this epoch (a data set with a weight above 1), is part of the key.
    """
    if not config.enabled:
        return Draw(False, 0.0, 1.0, 1.0, np.zeros(2), np.full((1, 2), 0.5), None, 0.0, 1.0, 0.0, (0, 0), None)
    rng = generator(seed, epoch, index, repeat)
    u = rng.random(24)
    sign = 2.0 * rng.random(8) - 1.0
    light = _light(rng, config, u)
    crop = rng.random((config.crop_tries, 2))  # last: its length may differ between configurations
    blur_mix, blur_sigma = _blur(config, u)
    noise = config.noise_sigma * (0.4 + 0.6 * u[8]) if u[7] < config.noise_p else 0.0
    log_min, log_max = math.log(config.scale_min), math.log(config.scale_max)
    return Draw(
        hflip=bool(u[0] < config.hflip),
        angle_deg=float(config.rotate_deg * sign[0]) if u[1] < config.rotate_p else 0.0,
        scale=math.exp(log_min + (log_max - log_min) * u[2]),
        aspect=float(config.aspect ** sign[1]),
        shift=config.shift * sign[2:4],
        crop=crop,
        colour=_colour(config, u, sign),
        blur_mix=blur_mix,
        blur_sigma=blur_sigma,
        noise_sigma=float(noise),
        noise_offset=(int(u[9] * NOISE_MARGIN), int(u[10] * NOISE_MARGIN)),
        light=light,
    )


def _blur(config: AugmentConfig, u: np.ndarray) -> tuple[float, float]:
    """Mix and sigma: one Gaussian serves the blur (towards it) and the sharpening (away from it, an unsharp mask)."""
    if u[5] < config.sharpen_p:
        return -(0.2 + 0.8 * float(u[6])), 1.0
    if u[5] < config.sharpen_p + config.blur_p:
        return 1.0, 0.3 + (config.blur_sigma - 0.3) * float(u[6])
    return 0.0, 1.0


# RGB -> YIQ (NTSC 1953), enough digits that greys have no hue. Hue is a turn of the (I, Q) plane and saturation a
# stretch of it, as in DALI's fn.hsv.
_YIQ = np.array([[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
_RGB = np.linalg.inv(_YIQ)


def hsv_matrix(hue_deg: float, saturation: float, value: float) -> np.ndarray:
    """(3, 3) float64 that turns the hue and multiplies saturation and value of an RGB triple."""
    c, s = math.cos(math.radians(hue_deg)), math.sin(math.radians(hue_deg))
    turn = np.array([[1, 0, 0], [0, saturation * c, -saturation * s], [0, saturation * s, saturation * c]])
    return value * (_RGB @ turn @ _YIQ)


def _colour(config: AugmentConfig, u: np.ndarray, sign: np.ndarray) -> np.ndarray | None:
    """One 3x4 colour matrix for hue, saturation, value, then contrast and brightness (image * alpha + 255 * beta)."""
    matrix = np.eye(3, 4)
    if u[3] < config.hsv_p:
        hue, saturation = config.hue_deg * sign[4], 1 + config.saturation * sign[5]
        matrix[:, :3] = hsv_matrix(hue, saturation, 1 + config.value * sign[6])
    if u[4] < config.brightness_p:
        matrix *= 1 + config.contrast * sign[7]
        matrix[:, 3] += 255 * config.brightness * (2 * u[11] - 1)
    elif u[3] >= config.hsv_p:
        return None
    return matrix.astype(np.float32)


def _light(rng: np.random.Generator, config: AugmentConfig, u: np.ndarray) -> np.ndarray | None:
    """Shadow and fog as one gain and offset map, or None. Draws its numbers in any case, to keep the stream in step."""
    bumps = rng.random((4, 4))
    shadow, fog = u[12] < config.shadow_p, u[13] < config.fog_p
    if not (shadow or fog):
        return None
    axis = (np.arange(LIGHT_GRID) + 0.5) / LIGHT_GRID
    x, y = axis[None, :], axis[:, None]
    gain, offset = np.ones((LIGHT_GRID, LIGHT_GRID)), np.zeros((LIGHT_GRID, LIGHT_GRID))
    if shadow:
        # a band with straight soft edges (one grid cell wide), anywhere, at any angle: what an arm or a phone casts
        angle, middle, half = math.pi * u[14], 0.2 + 0.6 * u[15], 0.1 + 0.3 * u[16]
        across = (x - 0.5) * math.cos(angle) + (y - 0.5) * math.sin(angle) + 0.5
        inside = np.clip((half - np.abs(across - middle)) * LIGHT_GRID + 0.5, 0, 1)
        gain = 1 - (0.2 + 0.3 * u[17]) * inside
    if fog:
        # four bumps a side, smoothed onto the grid: density varies over the page as real haze and glare do
        ramp = np.clip(np.abs(axis[:, None] * 4 - (np.arange(4) + 0.5)[None, :]), 0, 1)
        weight = (1 - ramp) / (1 - ramp).sum(1, keepdims=True)
        density = (0.1 + 0.3 * u[18]) * (0.5 + weight @ bumps @ weight.T)
        gain, offset = gain * (1 - density), FOG_LEVEL * density
    return np.stack([gain, offset], axis=2).astype(np.float32)
