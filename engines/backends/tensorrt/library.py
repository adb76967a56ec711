"""The vendor's module: `tensorrt` on Jetsons and servers, `tensorrt_rtx` on RTX cards."""

from __future__ import annotations

import importlib
import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from engines.backends.cuda import Cuda
from engines.bundle.plans import Platform
from engines.errors import BackendError, OutOfMemoryError, VarExportError
from engines.machine import system
from engines.packages import install_command

log = logging.getLogger(__name__)
# TensorRT writes to the first logger of a process until that ends, even after all that was made with it is gone.
_LOGGERS: list[Any] = []


@dataclass(frozen=True)
class Flavour:
    """One of the two products."""

    name: str
    """The backend's name."""
    module: str
    title: str
    install: str


FLAVOURS = {
    flavour.name: flavour
    for flavour in (
        Flavour(
            "tensorrt",
            "tensorrt",
            "TensorRT",
            "on a Jetson it is part of JetPack (make the venv with --system-site-packages), "
            f"elsewhere: {install_command('tensorrt')}",
        ),
        Flavour("tensorrt-rtx", "tensorrt_rtx", "TensorRT-RTX", install_command("rtx")),
    )
}


class Library:
    """The module with one logger: what TensorRT says goes to `logging`, and its last errors into ours."""

    def __init__(self, flavour: Flavour, module: Any) -> None:
        self.flavour, self.trt = flavour, module
        self.version = str(module.__version__)
        self.complaints: deque[str] = deque(maxlen=4)
        self.logger = _logger(module, self.complaints)

    @contextmanager
    def translated(self, doing: str) -> Iterator[None]:
        """The border: whatever TensorRT raises inside becomes one line of ours."""
        self.complaints.clear()
        try:
            yield
        except (VarExportError, KeyboardInterrupt):
            raise
        except Exception as error:
            raise self.error(doing, str(error)) from error

    def error(self, doing: str, detail: str = "") -> BackendError:
        """What went wrong while `doing`, with what TensorRT logged of it."""
        said = " ".join(" ".join([detail, *self.complaints]).split())
        text = f"{self.flavour.title} {self.version} failed while {doing}: {said[:600] or 'it did not say why'}"
        lower = said.lower()
        if "out of memory" in lower or "outofmemory" in lower or "memoryallocation" in lower:
            return OutOfMemoryError(f"{text}; lower --batch, or build with --weight-streaming")
        return BackendError(text)

    def platform(self, cuda: Cuda | None) -> Platform:
        """What a plan must fit that is built or run here; `cuda` is None where no GPU is asked."""
        return Platform(
            target=self.flavour.name,
            version=self.version,
            cuda=cuda.version if cuda else "",
            system=system(),
            gpu=cuda.name if cuda else None,
            compute_capability=cuda.compute_capability if cuda else None,
        )

    def check(self, value: Any, doing: str) -> Any:
        """`value`, unless TensorRT said no with None or False."""
        if value is None or value is False:
            raise self.error(doing)
        return value


def load(name: str) -> Library:
    """The library of a backend's name. Raises `BackendError` where it is not installed."""
    flavour = FLAVOURS[name]
    try:
        module = importlib.import_module(flavour.module)
    except (ImportError, OSError) as error:
        raise BackendError(f"{flavour.title} is not installed ({error}); {flavour.install}") from error
    if module.__file__ is None:  # any folder of that name on the path can be imported
        folder = next(iter(module.__path__))
        raise BackendError(f"{flavour.title} is not installed ({folder} is no module of it); {flavour.install}")
    return Library(flavour, module)


def _logger(trt: Any, complaints: deque[str]) -> Any:
    levels = {
        trt.ILogger.Severity.INTERNAL_ERROR: logging.ERROR,
        trt.ILogger.Severity.ERROR: logging.ERROR,
        trt.ILogger.Severity.WARNING: logging.INFO,  # hundreds of lines of no use to who runs an engine
        trt.ILogger.Severity.INFO: logging.DEBUG,
        trt.ILogger.Severity.VERBOSE: logging.DEBUG,
    }

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            level = levels.get(severity, logging.DEBUG)
            if level == logging.ERROR:
                complaints.append(message)
                log.debug("%s", message)  # it becomes part of an exception
            elif level == logging.INFO:
                log.info("%s", message)

    logger = Logger()
    _LOGGERS.append(logger)
    return logger
