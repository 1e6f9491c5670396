"""What the loader asks of DALI on a GPU (described here, without one), and that it copies no pixels."""

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines import graph, loader
from pipelines.augment import AugmentConfig
from pipelines.graph import LoaderOptions
from pipelines.index.build import build
from pipelines.source import NOT_AUGMENTED
from tests.conftest import DEVICE

CANVAS = (96, 128)


def described(device_id, augment=NOT_AUGMENTED):
    """Every operator of the graph in words; a GPU is needed to build the pipeline, not to describe it."""
    options = LoaderOptions(device_id, threads=1, prefetch=3, hw_decoder_load=0.75)
    pipeline = graph.define(lambda info: None, CANVAS, augment, 2, options, largest_wh=(1500, 3000))
    pipeline._build_graph()
    assert pipeline._prefetch_queue_depth == 3
    return [str(operator.spec) for operator in pipeline._ops]


def only(operators, name):
    (found,) = [spec for spec in operators if spec.startswith(f"OpSpec for {name}:")]
    return found


def test_the_hardware_decoders_options_reach_the_decoder():
    spec = only(described(0), "decoders__Image")
    for words in ("device: mixed", "hw_decoder_load: 0.75", "width_hint: 1500", "height_hint: 3000"):
        assert words in spec, spec


def test_a_cpu_gets_none_of_them():
    spec = only(described(None), "decoders__Image")
    assert "device: cpu" in spec and "hw_decoder_load" not in spec and "hint" not in spec


def test_every_step_on_pixels_is_on_the_gpu():
    operators = described(0, AugmentConfig())
    for name in ("WarpAffine", "CoordTransform", "BrightnessContrast", "Filter", "CropMirrorNormalize", "Resize"):
        specs = [spec for spec in operators if spec.startswith(f"OpSpec for {name}:")]
        assert specs and all("device: gpu" in spec for spec in specs), name
    assert not [spec for spec in operators if "WarpPerspective" in spec]
    assert "dtype: 8" in only(operators, "CropMirrorNormalize")  # float16


def write_pages(folder, sizes, orientation=1):
    (folder / "img").mkdir(parents=True)
    (folder / "gt").mkdir()
    exif = Image.Exif()
    exif[0x0112] = orientation
    for i, size in enumerate(sizes):
        Image.new("RGB", size, (200, 190, 180)).save(folder / "img" / f"{i}.jpg", exif=exif)
        (folder / "gt" / f"{i}.txt").write_text("10,10,50,10,50,30,10,30,word\n", encoding="utf-8")
    return build(folder, folder / "index")


class Calls:
    """Stands in for DALI's pools and the GPU's memory, and for a pipeline that cannot be built without a GPU."""

    def __init__(self, monkeypatch, free):
        self.device, self.pinned, self.options, self.largest_wh = [], [], None, None
        monkeypatch.setattr(loader.backend, "PreallocateDeviceMemory", lambda size, _gpu: self.device.append(size))
        monkeypatch.setattr(loader.backend, "PreallocatePinnedMemory", self.pinned.append)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _gpu: (free, free))
        monkeypatch.setattr(graph, "define", self.define)

    def define(self, _source, _canvas, _augment, _batch_size, options, largest_wh):
        self.options, self.largest_wh = options, largest_wh
        return self

    def build(self):
        pass


def test_pools_are_grown_before_the_pipeline_starts(tmp_path, monkeypatch):
    """Sizes as stored in the file, on their side here; one page larger than the rest sets the memory."""
    index = write_pages(tmp_path / "pages", [(120, 90)] * 5 + [(400, 300)], orientation=6)
    assert tuple(index.size_wh[5]) == (300, 400)
    calls = Calls(monkeypatch, free=1 << 34)
    given = {"image_size": CANVAS, "batch_size": 4, "options": LoaderOptions(0, prefetch=2, hw_decoder_load=0.5)}
    loader.train_loader(index, augment=AugmentConfig(noise_p=0.5), seed=0, **given)
    assert calls.largest_wh == (400, 300) and calls.options == given["options"]
    canvas = CANVAS[0] * CANVAS[1]
    decoded = 3 * (400 * 300 + 3 * 120 * 90)
    assert calls.device == [2 * decoded + 4 * canvas * (6 + 24 + 6 * 4)]
    assert calls.pinned == [3 * canvas * 2]


def test_pools_are_left_alone_where_memory_is_short_or_there_is_no_gpu(tmp_path, monkeypatch):
    index = write_pages(tmp_path / "pages", [(120, 90)] * 4)
    calls = Calls(monkeypatch, free=1 << 20)
    loader.eval_loader(index, image_size=CANVAS, batch_size=4, options=LoaderOptions(0))
    assert calls.options.device_id == 0 and calls.device == [] and calls.pinned == []
    loader.eval_loader(index, image_size=CANVAS, batch_size=4, options=LoaderOptions(None))
    assert calls.options.device_id is None and calls.device == [] and calls.pinned == []


def test_the_hint_leaves_outliers_out():
    assert loader.largest_wh(np.array([[1000, 2000], [3000, 1000], [9000, 9000]], np.int32)) == (3000, 2000)
    assert loader.largest_wh(np.array([[9000, 9000]], np.int32)) == (0, 0)
    tall_and_wide = np.array([[16000, 1000], [1000, 16000]], np.int32)
    assert loader.largest_wh(tall_and_wide) == (0, 0), "a buffer of 256 Mpx for pages of 16"


@pytest.mark.parametrize("augment", [NOT_AUGMENTED, AugmentConfig(shadow_p=0.5)], ids=["off", "full"])
def test_torch_sees_dalis_own_buffer(tmp_path, augment):
    """Every page of the tensor lies where DALI wrote it, in channels_last."""
    index = write_pages(tmp_path / "pages", [(120, 90), (90, 120)] * 4)
    device_id = 0 if DEVICE == "cuda" else None
    given = {"image_size": CANVAS, "batch_size": 4, "augment": augment, "seed": 0}
    made = loader.train_loader(index, **given, options=LoaderOptions(device_id))
    stream = None if device_id is None else torch.cuda.current_stream()
    for _ in range(3):
        outputs = graph.Outputs(*made._pipeline.run(stream))
        image = made._batch(outputs).image
        assert image.is_contiguous(memory_format=torch.channels_last) and image.shape == (4, 3, *CANVAS)
        assert [page.data_ptr() for page in image] == [outputs.image[n].data_ptr() for n in range(4)]
    made.close()
