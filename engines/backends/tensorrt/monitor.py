"""Watching a build: how far it is, and an end to it when the user wants one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

POLL = 0.1  # seconds between looks for Ctrl-C while TensorRT builds in another thread


def monitor_of(trt: Any, progress: Callable[[float], None]) -> Any:
    """Turns TensorRT's nested phases into one share of the work, and stops the build when asked to."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.cancelled = False
            self.failure: BaseException | None = None
            self._most = 0.0
            self._phases: dict[str, tuple[str | None, int, int]] = {}
            self._lock = threading.Lock()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock:
                self._phases[phase_name] = (parent_phase, max(num_steps, 1), 0)
            self._tell()

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self._lock:
                parent, steps, _ = self._phases.get(phase_name, (None, max(step + 1, 1), 0))
                self._phases[phase_name] = (parent, steps, min(step + 1, steps))
            self._tell()
            return not self.cancelled

        def phase_finish(self, phase_name: str) -> None:
            with self._lock:
                self._phases.pop(phase_name, None)

        def _tell(self) -> None:
            with self._lock:
                phases = dict(self._phases)
            inner: dict[str | None, float] = {}
            for name, (parent, steps, done) in reversed(phases.items()):  # children were entered after their parents
                share = min((done + inner.get(name, 0.0)) / steps, 1.0)
                inner[parent if parent in phases else None] = share
            self._most = max(self._most, inner.get(None, 0.0))  # between two phases the sum falls back
            try:
                progress(self._most)
            except BaseException as error:  # TensorRT would print it and say that the user cancelled
                self.failure, self.cancelled = error, True

    return Monitor()


def in_a_thread(work: Callable[[], Any], monitor: Any) -> Any:
    """Run the builder beside the main thread: Python handles no signal while C++ holds the main thread."""
    result: list[Any] = []
    failure: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            result.append(work())
        except BaseException as error:
            failure.append(error)
        finally:
            done.set()

    threading.Thread(target=run, name="tensorrt-builder", daemon=True).start()
    # Not thread.join: before Python 3.13, one that was interrupted takes the thread for finished, and Python then
    # ends while the builder runs, which aborts the process.
    try:
        while not done.wait(POLL):
            pass
    except KeyboardInterrupt:
        monitor.cancelled = True  # the builder stops at its next step
        done.wait()
        raise
    if failure:
        raise failure[0]
    return result[0]
