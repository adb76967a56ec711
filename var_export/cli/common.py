"""What the commands of `var-export` share beyond `engines.cli.common`: argument types and small formats.

Nothing here imports more than click: `--help` must not wait for numpy or torch.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from engines.cli.common import PROVIDER_HELP
from engines.errors import BackendError, UsageError
from engines.spec.choices import BACKENDS

if TYPE_CHECKING:
    from engines.bundle.bundle import Bundle

Command = TypeVar("Command", bound=Callable[..., Any])
EXPORT_PACKAGES = ("torch", "onnx", "onnxscript", "onnx_ir", "safetensors")
PAGE_SUFFIXES = (".html", ".htm")
REPORT_PACKAGES = ("matplotlib", "jinja2")

FOLDER = click.Path(file_okay=False, path_type=Path)
# Plain strings: a Path would squeeze the slashes of hf://owner/repo.
CHECKPOINT = click.Path(path_type=str)
POSITIVE = click.IntRange(min=1)

bundle_argument = click.argument("bundle", required=False, type=FOLDER)
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
html_option = click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write a page too: one .html file with pictures and charts, for any browser.",
)
threads_option = click.option("--threads", type=POSITIVE, help="CPU threads. [default: all physical cores]")
_RUNTIME_OPTIONS = (
    click.option("--backend", type=click.Choice(BACKENDS), help="[default: of the bundle's plans, else onnxruntime]"),
    click.option("--provider", default="cpu", show_default=True, help=PROVIDER_HELP),
    click.option("--device", type=click.IntRange(min=0), default=0, show_default=True, help="Which GPU."),
)


def runtime_options(command: Command) -> Command:
    """`--backend`, `--provider` and `--device`: what runs the engines."""
    for option in reversed(_RUNTIME_OPTIONS):
        command = option(command)
    return command


def set_option(help_text: str) -> Callable[[Command], Command]:
    """`--set KEY=VALUE`, repeatable; arrives as a dictionary called `overrides`."""
    return click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", callback=_pairs, help=help_text)


def _pairs(_: click.Context, parameter: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for value in values:
        key, equals, setting = value.partition("=")
        if not equals or not key.strip():
            raise click.BadParameter(f"{value!r} is not KEY=VALUE, such as vae.quant_resi=0.5", param=parameter)
        pairs[key.strip()] = setting.strip()
    return pairs


def show(message: str = "", *, to_stdout: bool = False) -> None:
    """A line for people: on stderr unless it is what they asked for."""
    click.echo(message, err=not to_stdout)


def is_bundle(path: str | None) -> bool:
    """Whether a bundle was given where a checkpoint may stand."""
    return path is not None and (Path(path) / "manifest.json").is_file()


def open_bundle(path: Path | None, *, verify: bool = True) -> Bundle:
    """The named bundle, or the default one, saying which."""
    from engines.bundle.bundle import Bundle, default_bundle

    if path is None:
        path, phrase = default_bundle()
        show(f"using {phrase}")
    return Bundle.open(path, verify=verify)


@contextmanager
def needs_export_packages(what: str, extra: str = "export") -> Iterator[None]:
    """Around the imports of what needs the packages of an extra: one line where one is missing."""
    try:
        yield
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in EXPORT_PACKAGES:
            raise
        extras = extra if importlib.util.find_spec("onnxruntime") else f"cpu,{extra}"
        raise BackendError(f'{what} needs more packages ({error}): pip install "var-export[{extras}]"') from error


def check_report(option: str, file: Path, suffixes: Sequence[str]) -> None:
    """Before the work: that what draws is installed, and that `file` can be written.

    The packages are found, not loaded: a measurement that follows must not count their memory.

    Raises:
        BackendError: a package is missing.
        UsageError: the file has another suffix, lies in a bundle, or in a place that cannot be written.

    """
    if file.suffix.lower() not in suffixes:
        raise UsageError(f"{option} writes {', '.join(suffixes)}, not {file.name}")
    parents = [str(folder) for folder in file.absolute().parents]
    if any(os.path.isfile(os.path.join(folder, "manifest.json")) for folder in parents):  # noqa: PTH113, PTH118
        raise UsageError(f"{file} would lie in a bundle, which holds nothing else; choose another place for {option}")
    # os.path, whose questions are answered with no where a folder may not be searched
    place = next(folder for folder in parents if os.path.exists(folder))  # noqa: PTH110
    if not os.path.isdir(place) or not os.access(place, os.W_OK | os.X_OK):  # noqa: PTH112
        why = "may not be written to" if os.path.isdir(place) else "is no folder"  # noqa: PTH112
        raise UsageError(f"cannot write {file}: {place} {why}")
    for package in REPORT_PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise BackendError(f'{option} needs {package}: pip install "var-export[report]"')


def show_written(file: Path, size: int) -> None:
    """Says where a page is; on stderr, where it disturbs no JSON."""
    show(f"page: {file} ({size / 1000:.0f} kB)")


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """PyTorch on `count` threads for a while; None leaves it as it is."""
    import torch

    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def mebibytes(size: int) -> str:
    """A size for people."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def quality(psnr: float, ssim: float | None = None) -> str:
    """How close two sets of images are, for people."""
    if math.isinf(psnr):
        return "identical pixels"
    if math.isnan(psnr):
        return "nothing to compare"
    return f"PSNR {psnr:.1f} dB" + ("" if ssim is None else f", SSIM {ssim:.6f}")


class Figure(float):
    """A number that a table prints in a format of its own, and still aligns to the right."""

    def __new__(cls, value: float, style: str) -> Figure:
        """`style` as of `format`."""
        figure = super().__new__(cls, value)
        figure.style = style
        return figure

    style: str

    def __str__(self) -> str:
        return format(float(self), self.style)
