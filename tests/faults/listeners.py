"""Listening TCP sockets of a job's processes, from /proc."""

import ipaddress
import os
from pathlib import Path

LISTEN = "0A"


def _inodes(pid: int) -> set[str]:
    found = set()
    try:
        for entry in os.scandir(f"/proc/{pid}/fd"):
            target = os.readlink(entry.path)
            if target.startswith("socket:["):
                found.add(target[8:-1])
    except OSError:  # it has ended
        pass
    return found


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """`0100007F` -> 127.0.0.1: words of 4 bytes, each in the machine's (little-endian) order."""
    raw = bytes.fromhex(text)
    return ipaddress.ip_address(b"".join(raw[i : i + 4][::-1] for i in range(0, len(raw), 4)))


def listening(pids: list[int]) -> set[tuple[int, str, int]]:
    """(process, address, port) of every listening TCP socket that these processes hold."""
    table = {}
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            words = line.split()
            address, port = words[1].split(":")
            if words[3] == LISTEN:
                table[words[9]] = (str(_address(address)), int(port, 16))
    return {(pid, *table[inode]) for pid in pids for inode in _inodes(pid) if inode in table}


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches it; `::ffff:127.0.0.1` counts."""
    found = ipaddress.ip_address(address)
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback
