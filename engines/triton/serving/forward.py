"""What the unary model does: hands a request on to the streaming model and its last response back.

So the engines exist once, and requests of both models share batches. Defaults are filled in here: Triton joins only
requests that have the same inputs.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from engines.backends.base import Array
from engines.bundle.manifest import Manifest
from engines.errors import UsageError
from engines.triton.serving.cancellation import CancelFlags
from engines.triton.serving.service import INTERNAL, INVALID, UNEXPECTED, Asked
from engines.triton.wire import CANCEL, PREVIEW_SCALES, full_inputs, read_order

log = logging.getLogger(__name__)

POLL_SECONDS = 0.005
ASKED_PER_POLL = 4  # a question to the server takes about 0.1 ms


class Waiting(Asked, Protocol):
    """A request of the unary model, which has one response."""

    def answer(self, response: Any) -> None:
        """Respond what the streaming model did, as it is."""


Call = Callable[[Any, Mapping[str, Array], Mapping[str, str]], Any]


class Forwarder:
    """Requests on their way.

    `call` runs the streaming model: a request, its full inputs and parameters -> its last response. `workers` of them
    at once: more than the streaming model takes, so that it is the one that refuses.
    """

    def __init__(self, bundle: Manifest, flags: CancelFlags, call: Call, *, workers: int) -> None:
        self._bundle, self._flags, self._call = bundle, flags, call
        self._lock = threading.Lock()
        self._under_way: dict[str, Waiting] = {}
        self._arrived = threading.Event()
        self._closed = False
        self._workers = ThreadPoolExecutor(workers, thread_name_prefix="forward")
        self._watcher = threading.Thread(target=self._watch, name="cancellations", daemon=True)
        self._watcher.start()

    def take(self, waiting: Waiting) -> None:
        """Start one request; it is answered later, from another thread. Its inputs are read now."""
        try:
            inputs = full_inputs(read_order(waiting.tensor, self._bundle))
        except UsageError as error:
            waiting.fail(INVALID, str(error))
            return
        except Exception:
            log.exception("a request could not be read")
            waiting.fail(INTERNAL, UNEXPECTED)
            return
        self._workers.submit(self._handle, waiting, inputs)

    def close(self) -> None:
        """Wait for what is under way."""
        self._workers.shutdown()
        with self._lock:
            self._closed = True
            self._arrived.set()
        self._watcher.join()
        self._flags.close()

    def _handle(self, waiting: Waiting, inputs: Mapping[str, Array]) -> None:
        token = self._flags.new()
        try:
            with self._lock:
                self._under_way[token] = waiting
                self._arrived.set()
            waiting.answer(self._call(waiting, inputs, {CANCEL: token, PREVIEW_SCALES: "none"}))
        except Exception:
            log.exception("a request could not be handed on")
            waiting.fail(INTERNAL, UNEXPECTED)
        finally:
            with self._lock:
                self._under_way.pop(token, None)
            self._flags.clear(token)

    def _watch(self) -> None:
        """Ask a few of the requests under way at a time, in turns, whether they were cancelled."""
        asked: set[str] = set()
        while True:
            self._arrived.wait()
            time.sleep(POLL_SECONDS)  # first: a request on its way in has no time for questions
            with self._lock:
                if self._closed:
                    return
                if not self._under_way:
                    self._arrived.clear()
                asked &= set(self._under_way)
                if len(asked) == len(self._under_way):
                    asked.clear()
                turn = [item for item in self._under_way.items() if item[0] not in asked][:ASKED_PER_POLL]
            for token, waiting in turn:
                asked.add(token)
                if waiting.cancelled():
                    with self._lock:
                        if token in self._under_way:  # else nobody would clear the flag
                            self._flags.set(token)
