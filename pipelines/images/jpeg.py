"""Damage inside a JPEG that decoders pass over: a walk over its markers, and what libjpeg mutters while decoding."""

import functools
import io
import os
import re
import tempfile
from typing import Any

import numpy as np
from PIL import Image

# In entropy-coded data 0xFF is followed by 0x00 (a stuffed zero), a restart marker, or 0xFF (fill).
# One 0xFF, not a run of them, in each pattern: a run in front of what fits no marker would take its length squared.
_ANY_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")
# The next marker with a length, as libjpeg finds it: bytes between, restart markers and 0xff01 are passed over.
_NEXT_MARKER = re.compile(rb"\xff([^\x00\x01\xff\xd0-\xd7])")
_FILL = re.compile(rb"\xff*(?=\xff)")
_RESTART = re.compile(rb"\xff([\xd0-\xd7])")
_SOI, _EOI, _SOS, _DRI, _DNL = 0xD8, 0xD9, 0xDA, 0xDD, 0xDC
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL = {0xC0, 0xC1, 0xC9}
# What may stand between the scans of a progressive file: tables, comments, application data, the next scan.
_BETWEEN_SCANS = {0xC4, 0xDB, 0xFE, _DRI, _SOS, _DNL, *range(0xE0, 0xF0)}


def is_jpeg(data: bytes) -> bool:
    """Whether the bytes start as a JPEG."""
    return data[:3] == b"\xff\xd8\xff"


def scan_markers(data: bytes) -> tuple[str, str]:
    """Walks the markers of a JPEG (ITU T.81, annex B).

    Returns:
        (kind, detail): ("", "") for a sound file, `truncated` when it ends before its end marker, `corrupt` when a
        marker stands where none may or restart markers are out of order. Bytes after the end marker are allowed.
    """
    at, interval, scans = 2, 0, 0
    while True:
        fill = _FILL.match(data, at)
        at = fill.end() if fill else at
        if at + 2 > len(data):
            return "truncated", f"ends at byte {len(data)} without an end marker"
        if data[at] != 0xFF:
            return "corrupt", f"no marker at byte {at}"
        marker = data[at + 1]
        if marker == _EOI:
            return ("", "") if scans else ("corrupt", "end marker before any image data")
        if scans and marker not in _BETWEEN_SCANS:
            return "corrupt", f"marker 0xff{marker:02x} inside the image data at byte {at}"
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if at + 2 + length > len(data):
            return "truncated", f"ends inside the segment at byte {at}"
        if length < 2:
            return "corrupt", f"segment of length {length} at byte {at}"
        if marker == _DRI:
            interval = int.from_bytes(data[at + 4 : at + 6], "big")
        at += 2 + length
        if marker == _SOS:
            scans += 1
            found = _ANY_MARKER.search(data, at)
            end = found.end() - 2 if found else len(data)
            problem = _restarts(data, at, end, interval)
            if problem:
                return "corrupt", problem
            at = end


def count_scans(data: Any, limit: int) -> int:
    """Scans of a JPEG, counted up to `limit` + 1. A file of one scan, the usual one, is read up to its start only.

    Decoders take a pass over the whole page for each: 1,000 scans of a page of 25 Mpx are 2 MB and minutes of a core.
    Bytes that are no marker where one should be are passed over, as libjpeg does.

    Args:
        data: bytes or a memory map.
    """
    at, scans, components = 2, 0, 0
    while scans <= limit:
        found = _NEXT_MARKER.search(data, at)
        if not found or found.end() + 2 > len(data):
            break
        at = found.end()
        marker, length = data[at - 1], int.from_bytes(data[at : at + 2], "big")
        if marker == _EOI:
            break
        if marker in _FRAMES and at + 8 <= len(data):
            components = data[at + 7] if marker in _SEQUENTIAL else 0
        if marker == _SOS:
            scans += 1
            if scans == 1 and at + 2 < len(data) and data[at + 2] == components:
                break  # sequential, and all components are in it
        at += length
    return scans


def _restarts(data: bytes, start: int, end: int, interval: int) -> str:
    """What is wrong with the restart markers of one scan: they count 0 to 7 round and round; "" for nothing."""
    for k, found in enumerate(_RESTART.finditer(data, start, end)):
        if not interval:
            return f"restart marker at byte {found.start()}, but the file has no restart interval"
        if data[found.start() + 1] != 0xD0 + k % 8:
            return f"restart marker out of order at byte {found.start()}"
    return ""


def decoder(device_id: int | None = None) -> Any:
    """A DALI pipeline that decodes one picture, fed as "data": the decoder of training (on the CPU libjpeg-turbo)."""
    from nvidia.dali import fn, pipeline_def  # takes half a second, which `check` alone pays

    @pipeline_def(batch_size=1, num_threads=1, prefetch_queue_depth=1)
    def decode() -> Any:
        return fn.decoders.image(fn.external_source(name="data"), device="cpu" if device_id is None else "mixed")

    made = decode(device_id=device_id)
    made.build()
    return made


_decoder = functools.lru_cache(decoder)


def decodes(data: bytes) -> bool:
    """Whether the decoder that training uses takes the bytes of an image file; its mutterings are not shown."""
    return _decode(data)[0]


def libjpeg_complaint(data: bytes) -> str:
    """What libjpeg-turbo writes to stderr while DALI decodes (it repairs and goes on), or its error; "" for nothing."""
    good, lines = _decode(data)
    said = [re.sub(r"\x1b\[[0-9;]*m|\[ERROR\]|\[libjpeg_turbo_decoder\]", "", line).strip() for line in lines]
    return "; ".join(dict.fromkeys([text for text in said if text] or ["cannot be decoded"][: not good]))


def _decode(data: bytes) -> tuple[bool, list[str]]:
    """Whether DALI decodes an image file, and the lines that its libraries write to stderr meanwhile.

    Catches file descriptor 2 of the whole process meanwhile: call it where no other thread writes.
    """
    pipeline = _decoder()
    good = True
    with tempfile.TemporaryFile() as catch:
        before = os.dup(2)
        os.dup2(catch.fileno(), 2)
        try:
            pipeline.feed_input("data", [np.frombuffer(data, np.uint8)])
            pipeline.run()
        except RuntimeError:
            good = False
            # A pipeline is of no use after an error.
            _decoder.cache_clear()
        finally:
            os.dup2(before, 2)
            os.close(before)
        catch.seek(0)
        return good, catch.read().decode("utf-8", errors="replace").splitlines()


@functools.lru_cache
def libjpeg_talks() -> bool:
    """Whether `libjpeg_complaint` hears anything on this machine, tried on a JPEG with a hole in its middle."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG", quality=90)
    good = file.getvalue()
    middle = len(good) * 2 // 3
    return bool(libjpeg_complaint(good[:middle] + bytes(64) + good[middle + 64 :])) and not libjpeg_complaint(good)
