"""How long work takes that may be killed and continued."""

import time
from pathlib import Path

from cgd.files import read_json, write_json


class Stopwatch:
    """Seconds of work; what was kept on disk counts when the work is continued.

    Args:
        path: file that keeps the seconds; None to keep nothing.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.kept = float(read_json(path)) if path and path.is_file() else 0.0
        self._since = time.perf_counter()

    def keep(self) -> float:
        """Write the seconds so far, those of earlier tries included, and return them."""
        now = time.perf_counter()
        self.kept += now - self._since
        self._since = now
        if self.path:
            write_json(self.path, self.kept)
        return self.kept
