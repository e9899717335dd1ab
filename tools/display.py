"""Progress on stderr, as the tools show it."""

import sys
import threading
import time

from tqdm import tqdm


class Display:
    """An anomaly.progress.Report on stderr: a bar on a terminal, else a line every few seconds.

    A thread keeps it alive in long steps. What failed at once shows nothing but its own line.
    """

    SECONDS = 5.0       # between lines when stderr is not a terminal

    def __init__(self) -> None:
        self._label, self._done, self._total, self._note = "", 0, 0, ""
        self._bar: tqdm | None = None
        self._start, self._stop, self._lock = 0.0, threading.Event(), threading.RLock()

    def __enter__(self) -> "Display":
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        return self

    def __call__(self, label: str, done: int, total: int, note: str = "") -> None:
        """Something is now at done of total; the same label goes on with the same bar."""
        with self._lock:
            if label != self._label:
                self._close()
                self._start = time.monotonic()
                if sys.stderr.isatty():
                    self._bar = tqdm(desc=label, total=total, initial=done)
            self._label, self._done, self._total, self._note = label, done, total, note
            if self._bar is not None:
                self._bar.set_postfix_str(note, refresh=False)
                self._bar.update(done - self._bar.n)
            if done >= total:
                if self._bar is None:
                    self._line()
                self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._label, self._bar = "", None

    def _line(self) -> None:
        print(f"{self._label}: {self._done}/{self._total} {self._note} "
              f"({time.monotonic() - self._start:.0f} s)", file=sys.stderr, flush=True)

    def _beat(self) -> None:
        while not self._stop.wait(1.0 if sys.stderr.isatty() else self.SECONDS):
            with self._lock:
                if self._bar is not None:
                    self._bar.refresh()
                elif self._label:
                    self._line()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._close()
