"""How long work takes that may be killed and continued."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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

    @contextmanager
    def ticking(self, every: float = 10.0) -> Iterator[None]:
        """Keep the seconds now and then, for work that does not do so itself."""
        over = threading.Event()

        def tick() -> None:
            while not over.wait(every):
                with suppress(OSError):  # a full disk is for the work itself to tell
                    self.keep()

        thread = threading.Thread(target=tick, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
