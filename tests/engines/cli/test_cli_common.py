"""The border, the tables, and how light the command starts."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
import var_run_fake as fake
from click.testing import CliRunner

from engines.cli import common
from engines.cli.common import option, option_group
from engines.errors import BackendError, CheckFailedError

FAKE = Path(fake.__file__)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (BackendError("no\n  such provider"), 2, "Error: no such provider"),
        (CheckFailedError("cosine 0.9"), 1, "Error: cosine 0.9"),
        (click.BadParameter("bad"), 2, "Error: Invalid value: bad"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_guarded_turns_errors_into_one_line(capsys, error, code, line):
    @click.command()
    def command():
        raise error

    assert common.guarded(command, "x")([]) == code
    assert capsys.readouterr().err.strip() == line


def test_guarded_passes_exit_codes(capsys):
    @click.group()
    def group():
        pass

    @group.command()
    @click.pass_context
    def fail(context):
        context.exit(3)

    @group.command()
    def succeed():
        pass

    main = common.guarded(group, "x")
    assert (main(["fail"]), main(["succeed"]), main(["--help"])) == (3, 0, 0)


@dataclass(frozen=True)
class Size:
    width: int = option(default=1)
    tall: bool = option("--tall", "--high", is_flag=True, help="t")


@click.command()
@click.argument("name")
@option_group("size", Size, width="how wide")
@click.option("--colour", default="red")
@click.pass_context
def draw(context, /, name, size, colour):
    """Draw."""
    if colour == "none":
        common.refuse(context, Size, "needs a colour")
    common.refuse(context, ["tall"] if size.width > 9 else [], "is for narrow ones")
    click.echo(f"{name} {size} {colour} {common.given(context)}")


def test_a_group_of_options_arrives_as_one_object():
    out = CliRunner().invoke(draw, ["a", "--tall"]).output
    assert out == "a Size(width=1, tall=True) red {'name': 'name', 'tall': '--tall'}\n"
    lines = [line.split()[0] for line in CliRunner().invoke(draw, ["--help"]).output.splitlines() if " --" in line]
    assert lines == ["--width", "--tall,", "--colour", "--help"]
    assert "how wide" in CliRunner().invoke(draw, ["--help"]).output


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--width", "1", "--colour", "none"], "--width needs a colour"),
        (["--width", "10", "--tall"], "--tall is for narrow ones"),
        (["--colour", "none"], ""),
        (["--width", "10"], ""),
    ],
)
def test_options_are_refused_when_they_were_typed(args, says):
    result = CliRunner().invoke(draw, ["a", *args])
    assert (result.exit_code, says in result.output) == (2 if says else 0, True)


def test_facts_are_aligned(capsys):
    common.print_facts({"a": 1, "longer": "x"})
    assert capsys.readouterr().out == "a:      1\nlonger: x\n"


def test_tables_are_aligned(capsys):
    common.print_table([("a", 1), ("long", 200)], ("name", "n"))
    assert capsys.readouterr().out == "name    n\na       1\nlong  200\n"
    common.print_table([], ("name", "n"))
    assert capsys.readouterr().out == "name  n\n"


def fresh(*args, code="from engines.cli.run import main; raise SystemExit(main())"):
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=60, check=False)


def test_help_and_version_are_light():
    code = "import sys; from engines.cli.run import main; main(); print(sorted(sys.modules))"
    for flag in ("--help", "--version"):
        result = fresh(flag, code=code)
        assert result.returncode == 0, result.stderr
        for heavy in ("numpy", "PIL", "onnxruntime", "engines.draw.pipeline"):
            assert f"'{heavy}'" not in result.stdout


def test_help_names_every_option():
    text = fresh("--help").stdout
    for flag in ("--class", "--npz", "reconstruct", "--preview", "--overwrite", "--json", "Examples:"):
        assert flag in text


def test_a_closed_pipe_is_no_traceback(tmp_path):
    command = f"{sys.executable} {FAKE} classes | head -1"
    result = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False
    )
    assert result.stdout == "class  label\n"
    assert "Traceback" not in result.stderr


# --- what a terminal and a disk take ----------------------------------------------------------------------------------


def commands_of(command, path=()):
    yield command, path
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands_of(inner, (*path, name))


def test_no_path_is_empty(capsys):
    """An empty one would be the working folder, or what is used where none is given: `build ""` built the demo."""
    from engines.cli.run import main as var_run
    from engines.cli.run import run
    from var_export.cli.main import group
    from var_export.cli.main import main as var_export

    seen = 0
    for root, main in ((run, var_run), (group, var_export)):
        for command, path in commands_of(root):
            for param in command.params:
                assert type(param.type) is not click.Path, (path, param.name)
                if isinstance(param.type, common.NamedPath):
                    seen += 1
                    given = [param.opts[0], ""] if isinstance(param, click.Option) else [""]
                    assert main([*path, *given]) == 2, (path, param.name)
                    assert "it is empty: name a file or a folder" in capsys.readouterr().err, (path, param.name)
    assert seen > 30
    for path in ("a\0b", "a" * 1000):
        assert var_run(["classes", "--bundle", path]) == 2
        assert "it is no path" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("args", [["classes"], ["classes", "--json"], ["--help"]])
def test_an_output_that_is_full(args):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", "import sys; from engines.cli.run import main; sys.exit(main())", *args],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last == f"Error: cannot write the output: {os.strerror(errno.ENOSPC)}"
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_remarks_that_nobody_can_read_stop_nothing(unbuffered):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", "import sys; from engines.cli.run import main; sys.exit(main())", "classes"],
            stdout=subprocess.PIPE,
            stderr=full,
            text=True,
            check=False,
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        )
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) > 100


def test_foreign_text_does_not_command_the_terminal(capsys):
    @click.command()
    def command():
        common.show("a\x1b[2Jb\nc\ud800d")
        common.tell("e\rf\u202eg")
        common.print_table([("h\ni\x9bj",)], ("k",))
        common.json_out({"l\udcff": "\x1b"})
        raise BackendError("m\x1bn" + "o" * 10**6)

    assert common.guarded(command, "x")([]) == 2
    out, err = capsys.readouterr()
    assert out.startswith("a\\x1b[2Jb\nc\\ud800d\nk\nh\\ni\\x9bj\n")
    assert json.loads(out[out.index("{") :]) == {"l\udcff": "\x1b"}
    assert err.startswith("e\\rf\\u202eg\nError: m\\x1bnooo")
    assert len(err) < 2100
    assert "\x1b" not in out + err
