"""The records of metrics.jsonl as a running training appends them"""

import json
import os
from pathlib import Path
from typing import Any


class Tail:
    """Reads the validation records that were appended to a metrics.jsonl since the last look.

    A resumed training replaces the file by one without the records after its checkpoint, an objective by an empty one;
    the file is then read from its start, and the caller finds records it knows.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file, self._offset = 0, 0  # inode

    def read(self) -> list[dict[str, Any]]:
        """New records of kind validation, in file order; a line that is still being written waits for its end."""
        try:
            with self.path.open("rb") as file:
                state = os.fstat(file.fileno())
                if state.st_ino != self._file or state.st_size < self._offset:
                    self._file, self._offset = state.st_ino, 0
                if state.st_size == self._offset:
                    return []
                file.seek(self._offset)
                data = file.read()
        except OSError:  # not there yet, or just replaced
            return []
        whole = data.rpartition(b"\n")[0]
        self._offset += len(whole) + bool(whole)
        return [record for line in whole.split(b"\n") if (record := _record(line))]


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # torn by a kill
        return None
    known = isinstance(record, dict) and record.get("kind") == "validation" and isinstance(record.get("epoch"), int)
    return record if known else None
