"""How `var-export` starts: light, without torch, with completion; and how its mistakes read."""

import os
import re
import subprocess
import sys

import click
import pytest

from engines.packages import install_command
from tests.support import quickest
from var_export.cli.main import group, main

COMMANDS = ("estimate", "build", "verify", "inspect", "bench", "doctor", "gpu-check")
HEAVY = ("torch", "onnx", "onnxruntime", "numpy", "PIL", "safetensors", "engines.draw.pipeline", "var_export.build")
WITHOUT_TORCH = """
import sys
for name in ("torch", "onnx", "onnxscript", "onnx_ir", "safetensors", "huggingface_hub"):
    sys.modules[name] = None
from var_export.cli.main import main
from engines.packages import install_command
raise SystemExit(main())
"""


def fresh(*args, code="from var_export.cli.main import main; raise SystemExit(main())", **more):
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **more)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_fast(command):
    def run():
        result = fresh(*filter(None, [command]), "--help")
        assert result.returncode == 0, result.stderr

    assert quickest(run, 0.25) <= 0.25


@pytest.mark.parametrize("args", [["--help"], ["--version"], *([command, "--help"] for command in COMMANDS)])
def test_help_loads_nothing_heavy(args):
    code = "import sys; from var_export.cli.main import main; main(); print(sorted(sys.modules))"
    loaded = fresh(*args, code=code).stdout.splitlines()[-1]
    for name in HEAVY:
        assert f"'{name}'" not in loaded


def test_help_lists_the_commands_in_the_order_of_use(call):
    code, out, _ = call("--help")
    assert code == 0
    found = [line.split()[0] for line in out.splitlines() if line.startswith("  ") and line.split()[0] in COMMANDS]
    assert tuple(found) == COMMANDS
    for name, command in group.commands.items():
        assert re.search(rf"^  {name} +{re.escape(command.short_help)}$", out, re.MULTILINE)
    assert call() == (0, out, "")


def test_every_option_has_a_help():
    for command in group.commands.values():
        for parameter in command.params:
            assert isinstance(parameter, click.Argument) or parameter.help, f"{command.name} {parameter.name}"


def test_version(call):
    code, out, _ = call("--version")
    assert (code, out.split()[0]) == (0, "var-export")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["built"], "No such command 'built'"),
        (["plan", "--model", "d16"], "`var-export plan` is called `var-export estimate` now"),
        (["build", "--precision", "int3"], "'fp32', 'fp16'"),
        (["build", "--set", "patch_nums"], "'patch_nums' is not KEY=VALUE"),
        (["build", "--default-cfg", "-1"], "--default-cfg"),
        (["build", "no/such/file.pth"], "no/such/file.pth"),
        (["verify", "--images", "2"], "--images needs --checkpoint"),
        (["verify", "no/such/bundle"], "there is no bundle at no/such/bundle"),
        (["bench", "--batch", "1,x"], "'1,x' is no list of batch sizes"),
        (["bench", "--batch", "0"], "'0' is no list of batch sizes"),
        (["bench", "--vae", "x"], "--vae needs --reference"),
        (["bench", "--reference", "random", "--key", "ema"], "--key needs --reference with a checkpoint"),
        (["verify", "--key", "ema"], "--key needs --checkpoint"),
        (["inspect", "no/such/bundle"], "there is no bundle at no/such/bundle"),
    ],
)
def test_a_mistake_is_one_line(call, args, says):
    code, out, err = call(*args)
    assert (code, out) == (2, "")
    lines = [line for line in err.splitlines() if " s  " not in line]  # without progress
    assert len(lines) == 1
    assert lines[0].startswith("Error: ")
    assert says in lines[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "args",
    [
        ["verify", "BUNDLE"],
        ["inspect", "BUNDLE", "--graphs"],
        ["bench", "BUNDLE", "--batch", "1", "--runs", "1"],
        ["doctor"],
    ],
)
def test_works_without_torch(tiny_build, args):
    result = fresh(*(tiny_build.path if arg == "BUNDLE" else arg for arg in args), code=WITHOUT_TORCH)
    assert result.returncode == 0, result.stderr
    assert result.stdout


@pytest.mark.parametrize(
    "args",
    [
        ["build"],
        ["verify", "BUNDLE", "--checkpoint", "demo"],
        ["bench", "BUNDLE", "--runs", "1", "--reference", "random"],
    ],
)
def test_what_needs_torch_says_how_to_get_it(tiny_build, args, tmp_path):
    result = fresh(*(tiny_build.path if arg == "BUNDLE" else arg for arg in args), code=WITHOUT_TORCH, cwd=tmp_path)
    assert result.returncode == 2
    last = result.stderr.splitlines()[-1]
    assert last.startswith("Error: ")
    assert last.endswith(install_command("export"))
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def completions(words):
    environment = os.environ | {
        "_VAR_EXPORT_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    return fresh(env=environment).stdout.splitlines()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("var-export ver", ["plain,verify"]),
        ("var-export build --pre", ["plain,--precision"]),
        ("var-export build --precision ", ["plain,fp32", "plain,fp16", "plain,bf16", "plain,int8", "plain,int4"]),
        ("var-export build ", ["file,"]),
        ("var-export build --vae ", ["file,"]),
        ("var-export build --out ", ["dir,"]),
        ("var-export verify bun", ["dir,bun"]),
        ("var-export inspect ", ["file,"]),
    ],
)
def test_shell_completion(words, expected):
    assert completions(words) == expected


def test_the_script_for_the_shell_is_there():
    result = fresh(env=os.environ | {"_VAR_EXPORT_COMPLETE": "bash_source"})
    assert "complete -o nosort -F" in result.stdout


def test_a_bug_keeps_its_traceback(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("a bug")

    monkeypatch.setattr("engines.bundle.bundle.Bundle.open", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["inspect", "anything"])
