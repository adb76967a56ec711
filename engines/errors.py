"""Everything that this project raises on purpose, as one tree.

    VarExportError
    ├── UsageError          an argument, option or input file that the user can correct
    │   ├── CheckpointError     a checkpoint that cannot be read, or does not fit its partner
    │   └── BundleError         a bundle that is missing, damaged, foreign or incomplete
    ├── BackendError        a runtime that is not installed, or cannot do what was asked
    │   └── OutOfMemoryError    the device has too little memory for the batch
    ├── CancelledError      the caller's own `stop` ended the work
    └── CheckFailedError    a check ran to its end and did not pass
        └── NotFiniteError      what was computed is not finite

The commands print a `UsageError` or `BackendError` as one line and exit with 2, a `CheckFailedError`
with 1. Anything outside the tree is a bug and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Sequence

from engines.words import one_line


class VarExportError(Exception):
    """Base of all errors that this project raises on purpose. Its message is one printable line, whatever is in it."""

    exit_code = 2

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(message))


class UsageError(VarExportError, ValueError):
    """An argument or input that the user can correct; the message says how."""


class CheckpointError(UsageError):
    """A checkpoint cannot be read, is incomplete, or does not fit the file it is paired with."""


class BundleError(UsageError):
    """A bundle is missing, damaged, written by another version, or lacks what was asked of it."""


class BackendError(VarExportError, RuntimeError):
    """A runtime is missing, or refused a graph, a provider or a device."""


class OutOfMemoryError(BackendError):
    """The device has too little memory; the message says what to lower."""


class CancelledError(VarExportError):
    """The `stop` of `Pipeline.generate` or `stream` said so; the pipeline is as good as before."""


class CheckFailedError(VarExportError, RuntimeError):
    """A fidelity check or self-test ran and did not pass."""

    exit_code = 1

    def __init__(self, message: str, parts: Sequence[str] = ()) -> None:
        """`parts`: of the model, those of `engines.spec.contract.PARTS` that failed, where that is known."""
        super().__init__(message)
        self.parts = tuple(parts)


class NotFiniteError(CheckFailedError):
    """Values that decide a picture or a token are NaN or infinite: the backend's arithmetic cannot hold the model's."""

    def __init__(self, message: str, *, graph: str) -> None:
        """`graph`: of the stepwise form, the one in which it was found."""
        super().__init__(message)
        self.graph = graph
