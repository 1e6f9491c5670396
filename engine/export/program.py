"""torch.export's program and AOTInductor's package: the network for PyTorch without this project.

program = torch.export.load("FILE.pt2").module()             # any device, any batch, sides of multiples of 32
package = torch._inductor.aoti_load_package("FILE.pt2")      # compiled for the machine it was made on; C++ loads it
prob_map = program(image)                                    # (N, 3, H, W) float32 -> (N, 1, H, W) float32
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from engine.export.check import Run
from engine.export.network import EXAMPLE, ProbMap, dynamic_shapes
from engine.export.onnx_file import quiet

FACTS = "dbnet_engine.json"  # a text file inside the program's archive


def trace(module: ProbMap) -> torch.export.ExportedProgram:
    """The network as a graph of any batch, and sides of multiples of 32."""
    with quiet():
        return torch.export.export(module, (torch.zeros(EXAMPLE),), dynamic_shapes=dynamic_shapes())


def write(program: torch.export.ExportedProgram, path: Path, facts: Mapping[str, str]) -> None:
    """Writes the program with its weights; `facts` as the text file FACTS within."""
    torch.export.save(program, path, extra_files={FACTS: json.dumps(dict(facts), indent=1)})


def open_program(path: Path) -> Run:
    """A written program, to run."""
    return _runner(torch.export.load(path).module())


def write_package(program: torch.export.ExportedProgram, path: Path) -> None:
    """Compiles the program for this machine's CPU: minutes of a core."""
    with quiet():
        torch._inductor.aoti_compile_and_package(program, package_path=str(path))


def open_package(path: Path) -> Run:
    """A compiled package, to run."""
    return _runner(torch._inductor.aoti_load_package(str(path)))


def _runner(call) -> Run:
    def run(image: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return call(torch.from_numpy(image)).numpy()

    return run
