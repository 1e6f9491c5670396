"""`python -m MODULE ...` without its imports: a process forked from one that has imported what all commands import.

    done = forked.run(["engine.evaluate", "checkpoint=run"], cwd=folder, env={**os.environ}, timeout=60)
    done.returncode, done.stdout, done.stderr

Importing torch, timm and DALI takes 5 s of CPU, most of what a short command takes. The parent imports them once and
does nothing else, so every child begins as a fresh interpreter that has just imported them. What belongs to a process
of its own (torchrun, signals, kills) is started as one by the tests that need it. A path FILE.py in the place of the
module is `python FILE.py` where the project is not installed.
"""

import atexit
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

SERVER = """
import atexit, gc, json, os, runpy, sys, threading, traceback
import numpy, cv2, timm, torch, nvidia.dali.fn, omegaconf, torch._dynamo, torch.utils.data, scipy.stats, rich.console
import matplotlib.figure, shapely.geometry

ROOT = os.environ["PYTHONPATH"]
gc.freeze()  # a collection in a child would copy all of it
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child:
        print(json.dumps({"pid": child}), flush=True)
        _, status = os.waitpid(child, 0)
        print(json.dumps({"returncode": os.waitstatus_to_exitcode(status)}), flush=True)
        continue
    for number, path in ((0, os.devnull), (1, job["stdout"]), (2, job["stderr"])):
        os.dup2(os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY), number)
    os.environ.clear()
    os.environ.update(job["env"])
    os.chdir(job["cwd"])
    sys.argv = job["argv"]
    code = 0
    try:
        if job["argv"][0].endswith(".py"):  # `python FILE` where the project is not installed
            sys.path[:] = [os.path.dirname(job["argv"][0]), *(p for p in sys.path if p not in ("", ROOT))]
            sys.meta_path[:] = [finder for finder in sys.meta_path if "Editable" not in str(finder)]
            runpy.run_path(job["argv"][0], run_name="__main__")
        else:
            sys.path[:0] = [job["cwd"], *filter(None, job["env"].get("PYTHONPATH", "").split(os.pathsep))]
            runpy.run_module(job["argv"][0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # as at the end of an interpreter, but for freeing every module, which takes a second
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)
"""


@functools.cache
def _server(root: str, thread: int) -> subprocess.Popen:
    """The parent of a thread's processes: one of them at a time."""
    kept = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}  # a user's process has none
    started = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root,
        env={**kept, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    atexit.register(started.kill)
    return started


def run(
    argv: Sequence[str], cwd: str | Path, env: Mapping[str, str], timeout: float, root: str | Path = ""
) -> subprocess.CompletedProcess:
    """What `subprocess.run([sys.executable, "-m", *argv], cwd=cwd, env=env, capture_output=True, text=True)` returns.

    Args:
        timeout: seconds after which the process is killed; its exit code is -9 then.
        root: of the checkout whose environment the parent has; "" = where the tests run.
    """
    server = _server(str(root or Path.cwd()), threading.get_ident())
    assert server.stdin is not None and server.stdout is not None
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "stdout"), Path(folder, "stderr")
        out.touch()
        err.touch()
        job = {"argv": list(argv), "cwd": str(Path(cwd).resolve()), "env": dict(env)}
        server.stdin.write(json.dumps(job | {"stdout": str(out), "stderr": str(err)}) + "\n")
        server.stdin.flush()
        pid = json.loads(server.stdout.readline())["pid"]
        clock = threading.Timer(timeout, os.kill, (pid, signal.SIGKILL))
        clock.start()
        code = json.loads(server.stdout.readline())["returncode"]
        clock.cancel()
        return subprocess.CompletedProcess([*argv], code, out.read_text(), err.read_text())
