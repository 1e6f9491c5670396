"""Two Slurm nodes on one machine, for the test of the Slurm executor: munged, slurmctld, two slurmd, all of ours.

Needs root, Debian's `slurm-wlm` and `munge`, and device files (mknod) that stand for 4 GPUs a node.
"""

import contextlib
import os
import platform
import shutil
import socket
import stat
import subprocess
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={ports[0]}
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
MpiDefault=none
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 Gres=gpu:4 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 Gres=gpu:4 State=UNKNOWN
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=60 State=UP
"""


def missing() -> str:
    """Why there can be no cluster here, "" when there can."""
    absent = [name for name in PROGRAMS if not shutil.which(name)]
    if absent:
        return f"no {absent[0]} (Debian: slurm-wlm, munge)"
    return "" if os.geteuid() == 0 else "slurmd needs root"


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [s.getsockname()[1] for s in sockets]


@contextlib.contextmanager
def running(folder: Path):
    """Starts the daemons in `folder` and yields the environment that finds them; they end afterwards."""
    for name in ("state", "spool-n1", "spool-n2"):
        (folder / name).mkdir()
    for number in range(4):
        os.mknod(folder / f"gpu{number}", stat.S_IFCHR | 0o666, os.makedev(195, number))
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(host=platform.node(), folder=folder, ports=_free_ports(3)))
    (folder / "gres.conf").write_text(f"NodeName=n[1-2] Name=gpu File={folder}/gpu[0-3]\n")
    environment = {**os.environ, "SLURM_CONF": str(conf)}
    sock, key, pid = (f"--{name}={folder}/munge.{name.split('-')[0]}" for name in ("socket", "key-file", "pid-file"))
    munge = ["munged", "--foreground", "--force", sock, key, pid, f"--seed-file={folder}/munge.seed"]
    slurmd = [["slurmd", "-D", "-N", node, "-f", str(conf)] for node in ("n1", "n2")]
    daemons = []
    try:
        for command in (munge, ["slurmctld", "-D", "-f", str(conf)], *slurmd):
            with open(folder / "daemons.log", "ab") as log:
                daemons.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            time.sleep(1.0)
        yield environment
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
