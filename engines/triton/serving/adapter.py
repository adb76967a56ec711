"""The two models, as Triton's Python backend calls them. Everything that knows `triton_python_backend_utils` is here.

A repository's `model.py` names one of the classes as `TritonPythonModel`.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from engines.backends.base import Array
from engines.errors import VarExportError
from engines.foreign import parse_json
from engines.joining.batch import METRICS
from engines.spec.choices import device_of
from engines.triton.serving.cancellation import CancelFlags
from engines.triton.serving.forward import Forwarder
from engines.triton.serving.service import INTERNAL, UNAVAILABLE, Service
from engines.triton.wire import CANCEL, FACTS, read_parameters, unpack_facts

METRICS_SECONDS = 1.0
LATER = {
    "Exceeds maximum queue size": "the queue is full; try again later",
    "Request timeout expired": "the request waited too long in the queue; try again later",
}
"""Triton's messages that mean UNAVAILABLE: between models, their code is lost."""


class _Model:
    """What both models share: settings, the log, errors at load."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Called once by Triton; an error fails the load with its message."""
        import triton_python_backend_utils as pb_utils

        self.pb = pb_utils
        self.name, self.instance = args["model_name"], args["model_instance_name"]
        self.folder = Path(args["model_repository"]) / args["model_version"]
        self.config = parse_json(args["model_config"])
        logging.getLogger("engines").addHandler(_TritonLog(pb_utils.Logger))
        try:
            self.start()
        except VarExportError as error:
            raise pb_utils.TritonModelException(str(error)) from None

    def start(self) -> None:
        """Load. Raises `VarExportError`."""
        raise NotImplementedError

    def setting(self, name: str) -> str:
        """A parameter of the model's configuration; empty where it has none."""
        return str(self.config["parameters"].get(name, {"string_value": ""})["string_value"])


class StreamModel(_Model):
    """The decoupled model, which owns the engines: a response per scale."""

    def start(self) -> None:
        """Load the engines."""
        self.flags = CancelFlags(self.setting("unary_model"))
        self.metrics = _Metrics(self.pb, {"model": self.name, "instance": self.instance})
        self.service = Service.load(
            self.folder / self.setting("bundle"),  # an absolute path replaces the folder
            self.metrics.count,
            max_batch=self.config["max_batch_size"],
            backend=self.setting("backend") or None,
            provider=self.setting("provider"),
            device=device_of(self.setting("device")) if self.setting("device") else None,
            threads=int(self.setting("threads")) if self.setting("threads") else None,
            precision_hint=self.setting("precision_hint") or None,
            check=self.setting("check"),
        )

    def execute(self, requests: Sequence[Any]) -> None:
        """Answer a batch of Triton's."""
        self.service.run([_Streamed(self.pb, request, self.flags) for request in requests])

    def finalize(self) -> None:
        """Free the engines."""
        self.service.close()
        self.metrics.close()


class UnaryModel(_Model):
    """The model with one response per request; it has no engines."""

    def start(self) -> None:
        """Read the facts of the model."""
        manifest = unpack_facts(self.setting(FACTS), f"the configuration of {self.name}")
        self.stream = self.setting("stream_model")
        flags = CancelFlags(self.name, own=True)
        self.forwarder = Forwarder(manifest, flags, self.call, workers=int(self.setting("workers")))

    def execute(self, requests: Sequence[Any]) -> None:
        """Take requests; they are answered from other threads, so the next ones need not wait."""
        for request in requests:
            self.forwarder.take(_Unary(self.pb, request))

    def call(self, waiting: _Unary, inputs: Mapping[str, Array], parameters: Mapping[str, str]) -> Any:
        """The last response of the streaming model."""
        request = self.pb.InferenceRequest(
            model_name=self.stream,
            requested_output_names=waiting.outputs,
            inputs=_tensors(self.pb, inputs),
            request_id=waiting.id,
            timeout=waiting.timeout,
            parameters=dict(parameters),
        )
        last = None
        for response in request.exec(decoupled=True):
            if response.has_error() or response.output_tensors():  # else a final flag alone
                last = response
        return last

    def finalize(self) -> None:
        """Wait for what is under way."""
        self.forwarder.close()


class _Request:
    """What both kinds of requests share."""

    def __init__(self, pb: Any, request: Any) -> None:
        self.pb, self.request, self.sender = pb, request, request.get_response_sender()
        self.outputs = list(request.requested_output_names())

    def tensor(self, name: str) -> Array | None:
        found = self.pb.get_input_tensor_by_name(self.request, name)
        value: Array | None = None if found is None else found.as_numpy()
        return value

    def fail(self, code: str, message: str) -> None:
        error = self.pb.TritonError(message, getattr(self.pb.TritonError, code))
        self.finish(self.pb.InferenceResponse(output_tensors=[], error=error))

    def finish(self, response: Any) -> None:
        self.sender.send(response, flags=self.pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


class _Streamed(_Request):
    """An `Incoming` of the service."""

    def __init__(self, pb: Any, request: Any, flags: CancelFlags) -> None:
        super().__init__(pb, request)
        self.flags = flags

    def parameter(self, name: str) -> str | None:
        value = self._parameters.get(name)
        return None if value is None else str(value)

    @cached_property
    def _parameters(self) -> Mapping[str, Any]:
        return read_parameters(self.request.parameters())

    def cancelled(self) -> bool:
        token = self.parameter(CANCEL)
        return self.flags.is_set(token) if token is not None else bool(self.sender.is_cancelled())

    def send(self, outputs: Mapping[str, Array], *, final: bool) -> None:
        wanted = {name: value for name, value in outputs.items() if name in self.outputs}
        response = self.pb.InferenceResponse(output_tensors=_tensors(self.pb, wanted))
        if final:
            self.finish(response)
        else:
            self.sender.send(response)


class _Unary(_Request):
    """A `Waiting` of the forwarder. Two threads use it, and none may ask for a request that was answered."""

    def __init__(self, pb: Any, request: Any) -> None:
        super().__init__(pb, request)
        self.id, self.timeout = request.request_id(), request.timeout()
        self.lock = threading.Lock()
        self.answered = False

    def cancelled(self) -> bool:
        with self.lock:
            return not self.answered and bool(self.sender.is_cancelled())

    def answer(self, response: Any) -> None:
        if response is None:
            self.fail(INTERNAL, "the streaming model sent nothing")
        elif response.has_error():
            error = response.error()
            later = next((ours for theirs, ours in LATER.items() if theirs in error.message()), None)
            if later is not None:
                error = self.pb.TritonError(later, getattr(self.pb.TritonError, UNAVAILABLE))
            self.finish(self.pb.InferenceResponse(output_tensors=[], error=error))
        else:
            self.finish(self.pb.InferenceResponse(output_tensors=response.output_tensors()))

    def finish(self, response: Any) -> None:
        with self.lock:
            self.answered = True
            super().finish(response)


class _Metrics:
    """`engines.joining.batch.METRICS` as counters of Triton's own page.

    Each increment is a question to the server, a dozen per batch: they are added up here and sent once a second.
    """

    def __init__(self, pb: Any, labels: Mapping[str, str]) -> None:
        self._labels = dict(labels)
        self._families = {
            name: pb.MetricFamily(name=name, description=text, kind=pb.MetricFamily.COUNTER)
            for name, text in METRICS.items()
        }
        self._metrics: dict[tuple[str, str], Any] = {}
        self._lock = threading.Lock()
        self._sums: dict[tuple[str, str], float] = {}
        self._ended = threading.Event()
        self._sender = threading.Thread(target=self._send, name="metrics", daemon=True)
        self._sender.start()

    def count(self, name: str, labels: Mapping[str, str], value: float) -> None:
        key = (name, json.dumps(labels))
        with self._lock:
            self._sums[key] = self._sums.get(key, 0.0) + value

    def close(self) -> None:
        self._ended.set()
        self._sender.join()

    def _send(self) -> None:
        while not self._ended.wait(METRICS_SECONDS):
            with self._lock:
                sums, self._sums = self._sums, {}
            for (name, labels), value in sums.items():
                if (name, labels) not in self._metrics:
                    all_labels = {**self._labels, **json.loads(labels)}
                    self._metrics[name, labels] = self._families[name].Metric(labels=all_labels)
                self._metrics[name, labels].increment(value)


class _TritonLog(logging.Handler):
    """Lines of `logging` in the server's log."""

    def __init__(self, logger: Any) -> None:
        super().__init__()
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        if record.levelno >= logging.ERROR:
            self._logger.log_error(line)
        elif record.levelno >= logging.WARNING:
            self._logger.log_warn(line)
        else:
            self._logger.log_info(line)


def _tensors(pb: Any, arrays: Mapping[str, Array]) -> list[Any]:
    return [pb.Tensor(name, np.ascontiguousarray(array)) for name, array in arrays.items()]
