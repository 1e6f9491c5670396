"""What a training that runs has logged since the last look.

tail = Tail(folder / "metrics.jsonl")
new = tail.read()  # validation records
"""

from pathlib import Path
from typing import Any

from engine.files import json_lines


class Tail:
    """Reads the validation records that were appended to a metrics.jsonl since the last look.

    A resumed training replaces the file by one without the records after its checkpoint, an objective by an empty one;
    the file is then read from its start, and the caller finds records it knows.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._inode, self._offset = 0, 0

    def read(self) -> list[dict[str, Any]]:
        """New records of kind validation, in file order; a line that is still being written waits for its end."""
        records = []
        try:
            state = self.path.stat()
            if state.st_ino != self._inode or state.st_size < self._offset:
                self._inode, self._offset = state.st_ino, 0
            for end, record in json_lines(self.path, self._offset, torn=False):
                self._offset = end
                if record and record.get("kind") == "validation" and isinstance(record.get("epoch"), int):
                    records.append(record)
        except OSError:  # not there yet, or just replaced
            pass
        return records
