"""The fake GPU's library, built by g++ on its first use, and the environment in which torch takes it for a GPU.

Everything that it needs of a version of torch is said here and in `abi.h`: CUDA 13, and the functions of its runtime
that torch calls, each of which `cuda.cpp` must have. What does not fit is a UserError of one line.
"""

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from bench.verdict import own_folder
from pipelines.errors import UserError

CUDA = "13"  # whose structs abi.h has
SONAME = "libcuda.so.1"  # the driver's; the runtime's functions are in it too, preloaded before torch's own
SOURCES = tuple(Path(__file__).parent / name for name in ("abi.h", "cuda.cpp"))
TORCH = ("libtorch_cuda.so", "libc10_cuda.so", "libtorch_python.so", "libtorch_cuda_linalg.so")


def environment(devices: int = 1) -> dict[str, str]:
    """This process's environment with `devices` fake GPUs, for processes that it starts.

    Raises:
        UserError: g++ is missing, or torch is none that the library fits.
    """
    folder = str(library().parent)
    kept = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    paths = [folder, *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    return kept | {
        "LD_PRELOAD": f"{folder}/{SONAME}",
        "LD_LIBRARY_PATH": os.pathsep.join(paths),
        "TRITON_LIBCUDA_PATH": folder,
        "FAKE_GPU_DEVICES": str(devices),
        "OMP_NUM_THREADS": "1",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
    }


def library() -> Path:
    """The library's file, in the user's cache under the hash of its sources; built where it is not there."""
    cuda = torch.version.cuda
    if cuda is None or cuda.split(".")[0] != CUDA:
        have = f"is for CUDA {cuda}" if cuda else "has no CUDA"
        raise UserError(f"the fake GPU speaks CUDA {CUDA}, and torch {torch.__version__} {have}: install one that fits")
    words = [source.read_bytes() for source in SOURCES] + [torch.__version__.encode()]
    key = hashlib.sha256(b"\0".join(words)).hexdigest()[:16]
    path = own_folder().parent / "fake_gpu" / key / SONAME
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = _compile(Path(folder) / SONAME)
            _refuse_missing(made)
            os.replace(made, path)
    return path


def _compile(path: Path) -> Path:
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise UserError(f"the fake GPU is built by {compiler}, which is not here: install it (or set CXX)")
    options = ["-std=c++17", "-O1", "-fPIC", "-shared", f"-Wl,-soname,{SONAME}"]
    done = subprocess.run(
        [compiler, *options, str(SOURCES[1]), "-o", str(path), "-ldl"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or [f"exit code {done.returncode}"]
        raise UserError(f"{compiler} cannot build the fake GPU: {lines[0]}")
    return path


def _refuse_missing(made: Path) -> None:
    """Raises UserError where torch calls functions of the CUDA runtime that the library has not."""
    folder = Path(torch.__file__).parent / "lib"
    wanted = {name for name, version in _symbols("--undefined-only", *(folder / name for name in TORCH)) if version}
    missing = sorted(wanted - {name for name, _ in _symbols("--defined-only", made)})
    if missing:
        raise UserError(
            f"torch {torch.__version__} calls what the fake GPU has not: {', '.join(missing)}; add it to {SOURCES[1]}"
        )


def _symbols(which: str, *paths: Path) -> set[tuple[str, bool]]:
    """(name, whether it is of libcudart) of the libraries' dynamic symbols."""
    there = [str(path) for path in paths if path.exists()]
    said = subprocess.run(["nm", "-D", which, *there], capture_output=True, text=True, check=True).stdout
    return {(name, "libcudart" in version) for name, version in re.findall(r" [TUW] (\w+)(\S*)", said)}
