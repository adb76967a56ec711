"""What the commands of `var-run` and `var-export` share: the border for errors, groups of options, tables, JSON.

Nothing here imports more than click: `--help` must not wait for numpy.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib.util
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import click

from engines.errors import BackendError, VarExportError
from engines.packages import install_command
from engines.spec.choices import BACKENDS, CHECKS, OPENVINO_DEVICES, PRECISION_HINTS, PROVIDERS, Device, device_of
from engines.storage import DISK_ERRORS, expanded
from engines.words import one_line, printable

if TYPE_CHECKING:
    from engines.backends import Backend
    from engines.bundle.bundle import Bundle

Command = TypeVar("Command", bound=Callable[..., Any])
EXIT_INTERRUPTED = 130
CLEAR = "\r\x1b[K"
"""Empties the line of a terminal, where `engines.cli.progress` may have left one that goes on."""
POSITIVE = click.IntRange(min=1)


def guarded(command: click.Command, name: str) -> Callable[[Sequence[str] | None], int]:
    """The entry point of a command: runs it and returns its exit code.

    What a user can correct becomes `Error: <one line>` on stderr, with the exit code of the error (2 for
    parse errors), and so does a full disk; Ctrl-C one line and 130. A bug keeps its traceback. `command_line` tells
    what was typed.
    """

    def main(args: Sequence[str] | None = None) -> int:
        typed = [name, *(sys.argv[1:] if args is None else args)]
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # what it cannot encode, as names of files may be
        try:
            code = command.main(typed[1:], prog_name=name, standalone_mode=False, obj=typed)
        except click.Abort as abort:  # click's form of KeyboardInterrupt
            tell(one_line(abort.__cause__ or "") or "interrupted")
            return EXIT_INTERRUPTED
        except click.ClickException as error:
            tell(f"Error: {one_line(error.format_message())}")
            return error.exit_code
        except VarExportError as error:
            tell(f"Error: {error}")
            return error.exit_code
        except OSError as error:
            if error.errno not in DISK_ERRORS:
                raise
            _drop_rest(sys.stdout)
            tell(f"Error: cannot write {one_line(error.filename or 'the output')}: {error.strerror}")
            return VarExportError.exit_code
        return code if isinstance(code, int) else 0

    return main


class NamedPath(click.Path):
    """A path that is not empty: an empty one would stand for the working folder, or for what is used by default.

    A `~` at its beginning is the home folder, also where a shell leaves it, as in `--out=~/x`.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See `click.ParamType`."""
        if not os.fspath(value):
            self.fail("it is empty: name a file or a folder", param, ctx)
        value = os.fspath(expanded(value)) if str(value).startswith("~") else value
        try:
            os.lstat(value)
        except (OSError, ValueError) as error:  # ValueError: of a null character
            if not isinstance(error, OSError) or error.errno == errno.ENAMETOOLONG:
                self.fail(f"it is no path: {getattr(error, 'strerror', error)}", param, ctx)
        return super().convert(value, param, ctx)


def command_line(context: click.Context) -> list[str]:
    """The program and its arguments, as they were typed."""
    typed: list[str] = context.find_root().obj
    return typed


def option_group(
    name: str, kind: type[Any], *, without: Sequence[str] = (), **helps: str
) -> Callable[[Command], Command]:
    """A decorator that adds options to a command, which gets all their values as one object: its argument `name`.

    Each field of the dataclass `kind` is an `option`, or `filled_by` a decorator, in the order of the help text;
    `helps` are the texts of fields that say something else in every command, and a command goes `without` some: they
    keep their default.
    """
    wanted = [each for each in fields(kind) if each.name not in without]

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def with_group(*args: Any, **values: Any) -> Any:
            values[name] = kind(**{each.name: values.pop(each.name) for each in wanted})
            return command(*args, **values)

        decorated: Any = with_group
        for each in reversed(wanted):
            settings = dict(each.metadata)
            decorator, flags = settings.pop("decorator", None), settings.pop("flags", ())
            if decorator is None:
                settings |= {"help": helps[each.name]} if each.name in helps else {}
                decorator = click.option(each.name, *(flags or (f"--{each.name.replace('_', '-')}",)), **settings)
            decorated = decorator(decorated)
        result: Command = decorated
        return result

    return decorate


def option(*flags: str, **settings: Any) -> Any:
    """A field of the dataclass of an `option_group`: a `click.option` with these flags, or the one of its name.

    Its default is that of the option, for commands without it.
    """
    default = settings.get("default", () if settings.get("multiple") else False if settings.get("is_flag") else None)
    return field(default=default, metadata={"flags": flags, **settings})


def filled_by(decorator: Callable[[Any], Any], default: Any = None) -> Any:
    """A field of the dataclass of an `option_group` that a ready decorator fills, by an argument of the same name.

    Its `default`, which may be what makes one, is for commands without it.
    """
    metadata = {"decorator": decorator}
    return (
        field(default_factory=default, metadata=metadata)
        if callable(default)
        else field(default=default, metadata=metadata)
    )


def given(context: click.Context) -> dict[str, str]:
    """What was typed, in the order of the help text: parameter names and how they are written, as `--top-k`."""
    default = click.core.ParameterSource.DEFAULT
    params = [(param.name or "", param) for param in context.command.params]
    return {name: param.opts[0] for name, param in params if context.get_parameter_source(name) is not default}


def refuse(context: click.Context, names: Iterable[str] | type[Any], why: str) -> None:
    """Raise `click.UsageError` where one of some options was typed: `--seed needs --checkpoint`.

    `names`: parameters, or the dataclass of an `option_group`; `why`: the rest of the sentence.
    """
    refused = [each.name for each in fields(names)] if isinstance(names, type) else list(names)
    for name, flag in given(context).items():
        if name in refused:
            raise click.UsageError(f"{flag} {why}")


class _DeviceType(click.ParamType):  # type: ignore[type-arg]  # which older versions of click do not have
    """A GPU's number, or a device's name."""

    name = "device"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See `click.ParamType`."""
        device = device_of(str(value))
        if isinstance(device, str) and device.partition(".")[0] not in OPENVINO_DEVICES:
            self.fail(f"{value!r} is neither a number nor one of {', '.join(OPENVINO_DEVICES)}", param, ctx)
        return device


DEVICE = _DeviceType()
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
threads_option = click.option("--threads", type=POSITIVE, help="CPU threads. [default: all physical cores]")

check_option = click.option(
    "--check",
    type=click.Choice(CHECKS),
    default=CHECKS[0],
    help="When to hold this machine against the golden run before it draws.",
)


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """What runs the engines of a bundle."""

    threads: int | None = filled_by(threads_option)
    """Of ONNX Runtime's CPU operators; None: all physical cores."""
    backend: str | None = option(
        type=click.Choice(BACKENDS), help="[default: of the bundle's plans, else onnxruntime, else openvino]"
    )
    """None: that of the bundle's plans, else ONNX Runtime, else OpenVINO."""
    provider: str = option(default="cpu", help=f"Of ONNX Runtime: {', '.join(PROVIDERS)}.")
    device: Device | None = option(
        type=DEVICE, help="Which GPU, counted from 0; of OpenVINO: CPU, GPU, GPU.1 or AUTO. [default: 0, or the CPU]"
    )

    precision_hint: str | None = option(
        type=click.Choice(PRECISION_HINTS),
        help="Of OpenVINO: what it computes floating point in. [default: f32; bf16 beside INT8 where the CPU has it]",
    )

    def asked_for(self) -> str | None:
        """The backend that is named, or that alone has what is asked for; None where the bundle decides."""
        from engines import backends

        options = vars(self)
        return self.backend or backends.asked_for(**{name: options[name] for name in options if name != "backend"})

    def open(self, bundle: Bundle) -> Backend:
        """The backend for `bundle`, telling where its plans cannot run here. Raises `BackendError`."""
        from engines import backends

        return backends.for_bundle(bundle, tell=tell, **vars(self))


runtime_options = option_group("runtime", Runtime)


@contextlib.contextmanager
def needs_packages(what: str, extra: str, packages: Sequence[str]) -> Iterator[None]:
    """Around the imports of what needs the packages of an extra: one line where one is missing."""
    try:
        yield
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in packages:
            raise
        extras = (extra,) if importlib.util.find_spec("onnxruntime") else ("cpu", extra)
        raise BackendError(f"{what} needs more packages ({error}): {install_command(*extras)}") from error


def version_option(program: str) -> Callable[[Command], Command]:
    """`--version`, which prints it and ends the program."""

    def show_version(context: click.Context, _: click.Parameter, value: bool) -> None:
        if value and not context.resilient_parsing:
            show(f"{program} {version()}")
            context.exit()

    return click.option(
        "--version", is_flag=True, is_eager=True, expose_value=False, callback=show_version, help="Print the version."
    )


def show(line: str = "") -> None:
    """Print a line of what was asked for, on stdout."""
    click.echo("\n".join(map(printable, line.split("\n"))))


def tell(line: str) -> None:
    """Print a remark on stderr, where it disturbs nothing that a script reads; where it cannot be, it is lost."""
    try:
        click.echo((CLEAR if sys.stderr.isatty() else "") + printable(line), err=True)
    except OSError:
        _drop_rest(sys.stderr)


def _drop_rest(stream: TextIO) -> None:
    """Send what is left for a stream nowhere: else Python tries again when it ends, and fails."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class Figure(float):
    """A number that a table prints in a format of its own, and still aligns to the right."""

    def __new__(cls, value: float, style: str) -> Figure:
        """`style` is a format of Python, as `.2f`."""
        figure = super().__new__(cls, value)
        figure.style = style
        return figure

    style: str

    def __str__(self) -> str:
        return format(float(self), self.style)


def print_table(rows: Sequence[Sequence[object]], headers: Sequence[str]) -> None:
    """Print plain text columns on stdout; a column of numbers is aligned to the right."""
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
    numeric = [bool(rows) and all(isinstance(row[i], int | float) for row in rows) for i in range(len(headers))]
    for line in [list(headers), *cells]:
        columns = zip(line, widths, numeric, strict=True)
        click.echo("  ".join(c.rjust(w) if right else c.ljust(w) for c, w, right in columns).rstrip())


def print_facts(facts: Mapping[str, object]) -> None:
    """Print a line `name:  value` for each fact, the values below one another."""
    width = max(map(len, facts)) + 2
    for name, value in facts.items():
        show(f"{name + ':':<{width}}{value}")


def json_out(document: Mapping[str, Any]) -> None:
    """Print one JSON document on stdout."""
    click.echo(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False))


def version() -> str:
    """The installed version of this project."""
    from importlib import metadata

    try:
        return metadata.version("var-export")
    except metadata.PackageNotFoundError:  # run from a copied folder
        return "unknown"


def peak_memory() -> int:
    """The most memory that this process held, in bytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
