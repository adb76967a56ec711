"""A server as if it were a `Pipeline`: what `var-run --url` draws with."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from engines.backends.base import Array
from engines.draw.request import FORCED, make_request
from engines.draw.results import Preview, Result, Timings
from engines.errors import BackendError, UsageError, VarExportError
from engines.joining.orders import Order
from engines.packages import install_command
from engines.spec.sampling import OPTIONS, Sampling
from engines.triton.wire import FACTS, INPUTS, full_inputs, unpack_facts

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from engines.editing.mask import Mask
    from engines.spec.sampling import SamplingOptions

SCHEME = "triton"
GRPC_PORT = 8001
_TYPES = {tensor.name: tensor.dtype for tensor in INPUTS}
Edited = tuple[NDArray[np.uint8], NDArray[np.bool_]]
"""Squares (1 or B, R, R, 3), and the cells of them that are redrawn (1 or B, S, S)."""
_YOURS = ("StatusCode.INVALID_ARGUMENT", "StatusCode.NOT_FOUND")


class RemotePipeline(AbstractContextManager["RemotePipeline"]):
    """The models of a repository that `var-export triton` wrote, over gRPC.

    An `engines.draw.results.ImageSource`, as a `Pipeline` is; `manifest` has the facts of its bundle.
    """

    def __init__(self, url: str) -> None:
        """Args: url: `triton://HOST[:PORT][/MODEL]`. Raises `UsageError`, and `BackendError` where nobody answers."""
        host, self.model = _parse(url)
        try:
            import tritonclient.grpc as grpc
        except ImportError as error:
            raise BackendError(f"--url needs a package ({error}): {install_command('triton')}") from error
        self._grpc, self.url = grpc, url
        self._client = grpc.InferenceServerClient(host)
        try:
            config = self._asked(lambda: self._client.get_model_config(self.model)).config
        except BaseException:
            self._client.close()
            raise
        self.max_batch = int(config.max_batch_size)
        self._stream_model = config.parameters["stream_model"].string_value
        self.manifest = unpack_facts(config.parameters[FACTS].string_value, url)
        self._takes = {tensor.name for tensor in config.input}

    def generate(
        self,
        classes: Sequence[int],
        *,
        seeds: Sequence[int],
        edited: Edited | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Result:
        """One image per class. Raises `UsageError`, `BackendError`; timings are empty: the server has them.

        Args: edited: from `keeping`.
        """
        order = self._order(classes, seeds, edited, sampling)
        request = order.request
        given, parts = full_inputs(order), []
        for start in range(0, len(order), self.max_batch):
            inputs = self._tensors({name: array[start : start + self.max_batch] for name, array in given.items()})
            parts.append(self._asked(lambda inputs=inputs: self._client.infer(self.model, inputs)))
        images, tokens = (np.concatenate([part.as_numpy(name) for part in parts]) for name in ("image", "tokens"))
        texts = request.texts(self.manifest)
        if edited is not None:
            texts = tuple({**text, FORCED: "True"} for text in texts)
        return Result(images, tokens, tokens, request.classes, request.seeds, Timings(), texts)

    def stream(
        self,
        classes: Sequence[int],
        *,
        seeds: Sequence[int],
        edited: Edited | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Iterator[Preview]:
        """The images after each scale. Raises as `generate`, and for more images than the server takes at once."""
        order = self._order(classes, seeds, edited, sampling)
        if len(order) > self.max_batch:
            raise UsageError(f"{len(order)} images to stream, but {self.url} takes {self.max_batch}: lower --batch")
        inputs = self._tensors(full_inputs(order))
        arrived: queue.Queue[tuple[Any, Exception | None]] = queue.Queue()
        self._client.start_stream(lambda result, error: arrived.put((result, error)))
        finished = False
        try:
            self._client.async_stream_infer(self._stream_model, inputs)
            while not finished:
                result, error = arrived.get()
                if error is not None:
                    finished = True
                    raise self._translated(error)
                scale, finished = int(result.as_numpy("scale")[0, 0]), bool(result.as_numpy("final")[0, 0])
                which = np.arange(len(order), dtype=np.int64)
                yield Preview(scale, result.as_numpy("image"), result.as_numpy("tokens"), finished, which)
        finally:
            self._client.stop_stream(cancel_requests=not finished)

    def keeping(self, squares: NDArray[np.uint8], redrawn: Mask) -> dict[str, Any]:
        """See `ImageSource`. Raises `UsageError` where the server's models are older than this."""
        if "picture" not in self._takes:
            raise UsageError(f"{self.url} does not edit: write its repository again with var-export triton")
        return {"edited": (squares, redrawn)}

    def reconstruct(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """See `ImageSource`: an edit that redraws nothing, which takes as long as an image."""
        config, count = self.manifest.config, len(images)
        kept = self.keeping(images, np.zeros((count, config.latent_size, config.latent_size), np.bool_))
        return self.generate([config.unconditional_class] * count, seeds=[0] * count, cfg=0, **kept).images

    def describe_runtime(self) -> dict[str, Any]:
        """What the server says of itself, for reports."""
        server = self._asked(self._client.get_server_metadata)
        return {"url": self.url, "model": self.model, "server": server.name, "version": server.version}

    def close(self) -> None:
        """End the connection."""
        self._client.close()

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _order(
        self, classes: Sequence[int], seeds: Sequence[int], edited: Edited | None, sampling: SamplingOptions
    ) -> Order:
        request = make_request(self.manifest, classes, seeds=seeds, **sampling)
        for option in OPTIONS:
            if (
                option.name not in self._takes
                and (request.sampling[option.name] != getattr(Sampling(), option.name)).any()
            ):
                raise UsageError(
                    f"{self.url} takes no {option.name}: write its repository again with var-export triton"
                )
        if edited is None:
            return Order(request)
        return Order(request, *(np.broadcast_to(array, (len(request), *array.shape[1:])) for array in edited))

    def _tensors(self, arrays: Mapping[str, Array]) -> list[Any]:
        tensors = []
        known = {name: array for name, array in arrays.items() if name in self._takes}
        for name, array in known.items():  # a server that is older than an option does as without it
            tensors.append(self._grpc.InferInput(name, list(array.shape), _TYPES[name]))
            tensors[-1].set_data_from_numpy(np.ascontiguousarray(array))
        return tensors

    def _asked(self, question: Any) -> Any:
        try:
            return question()
        except Exception as error:
            raise self._translated(error) from error

    def _translated(self, error: Exception) -> Exception:
        """As an error of ours: what the request is to blame for, or the server."""
        from tritonclient.utils import InferenceServerException

        if not isinstance(error, InferenceServerException):
            return error
        kind: type[VarExportError] = UsageError if error.status() in _YOURS else BackendError
        return kind(f"{self.url}: {error.message()}")


def _parse(url: str) -> tuple[str, str]:
    """Host with port, and model."""
    try:
        parts = urlsplit(url)
        port = parts.port or GRPC_PORT
    except ValueError as error:
        raise UsageError(f"{url!r:.100} is no address: {error}") from error
    model = parts.path.strip("/")
    if parts.scheme != SCHEME or not parts.hostname or "/" in model or parts.query or parts.fragment:
        raise UsageError(f"{url!r:.100} is no address such as {SCHEME}://localhost:{GRPC_PORT} or .../MODEL")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{host}:{port}", model or "var"
