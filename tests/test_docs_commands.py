"""The commands of the pages: those that can run here run as written, the others are listed with the reason.

Every `var-export` and `var-run` command is parsed besides, so that none names an option that is gone.
"""

from __future__ import annotations

import fnmatch
import shlex
import shutil
from pathlib import Path

import click
import pytest
from docs_pages import ShownCommand, blocks, shown_commands

from engines.bundle.bundle import DEMO_BUNDLE
from engines.cli.run import main as var_run
from engines.cli.run import run
from var_export.cli.main import group
from var_export.cli.main import main as var_export

# What stands in for the model that a page is about: the demo's bundles, under the names that the pages use.
STAND_INS = {
    "bundles/var-d16-256-fp16": "demo_fp16_bundle",
    "bundles/var-d16-256-both": "demo_both_bundle",
}
# Appended to a command that repeats itself until its figures are good, which they need not be here.
SHORTER = {"bench": ["--runs", "1", "--batch", "1", "--warmup", "0"], "doctor": [], "verify": []}

# Why a command does not run in this file, with the commands as patterns.
ELSEWHERE = {
    "the README's: tests/test_docs.py runs it in an environment of its own": [
        "make demo",
        "pip install .[[]cpu*]",
        "var-run --class 88",
        "var-export build --precision fp16",
        "var-run --class parrot --seed 7 --count 4 --grid",
        "var-run --class 0-9,none *",
        "var-run --class frog --seed 3 --preview",
        "var-run --class all --count 2 --npz samples.npz",
        "var-run --edit var-parrot-0.png *",
        "var-run --list-classes",
    ],
    "the page's own test in tests/test_docs.py runs it": [
        "var-run --class dog-face --out dog.png",
        "var-run --edit dog.png *",
        "var-run --class parrot --smooth",
    ],
    "a build of half a minute and more: tests/var_export/cli builds in the same way": [
        "var-export build",
        "var-export build --smooth",
        "var-export build --precision int8",
        "var-export build bundles/var-d16-256-fp32 --precision int8*",
        "var-export build bundles/var-d16-256-fp16 --precision int8*",
        "var-export sensitivity *",
    ],
    "it needs a checkpoint that is downloaded": [
        "var-export build var_d16.pth *",
    ],
    "it takes minutes with a model of official size": [
        "var-export bench d16*",
    ],
    "it needs a GPU": [
        "var-export build * --target tensorrt*",
        "var-* --backend tensorrt*",
        "var-run * --provider cuda",
        "make gpu-check*",
    ],
    "it needs a Triton server: tests/engines/triton has one": [
        "tritonserver *",
        "docker run *",
        "curl *",
        "* --url triton://*",
        "perf_analyzer *",
    ],
    "it is for another machine": [
        "sudo *",
        "python3 -m venv *",
        ". ~/var/bin/activate",
        'python -c "import tensorrt;*',
        "pip install ./var_export-0.1.0-py3-none-any.whl*",
        "rsync *",
        "cp -r $(python *",
        "journalctl *",
        "eval *",
    ],
    "it installs from a network": [
        "pip install *",
    ],
    "it inspects with a tool of NVIDIA's that is no part of this project": [
        "polygraphy *",
        "POLYGRAPHY_USE_TENSORRT_RTX=1 *",
    ],
    "it sets up, tests or measures this checkout: the CI and developers run it": [
        "make *",
        "PYTHONPATH=. *",
        "python -m tests.*",
        "git *",
    ],
}
SHOWN = shown_commands()


def reasons(command: ShownCommand) -> list[str]:
    line = " ".join(shlex.split(command.line, posix=True)) if not command.line.startswith("python -c") else command.line
    return [reason for reason, patterns in ELSEWHERE.items() if any(fnmatch.fnmatchcase(line, p) for p in patterns)]


RUN_HERE = [command for command in SHOWN if not reasons(command)]


def test_each_reason_is_for_a_command():
    lines = [" ".join(shlex.split(each.line)) if not each.line.startswith("python -c") else each.line for each in SHOWN]
    patterns = [pattern for each in ELSEWHERE.values() for pattern in each]
    assert [pattern for pattern in patterns if not fnmatch.filter(lines, pattern)] == []


@pytest.fixture
def desk(tmp_path, monkeypatch, request) -> Path:
    """An empty folder to work in, with bundles under the names of the pages, and files that commands name."""
    monkeypatch.chdir(tmp_path)
    for name, fixture in STAND_INS.items():
        shutil.copytree(request.getfixturevalue(fixture), tmp_path / name)
    return tmp_path


OURS = [each for each in SHOWN if each.line.startswith(("var-run", "var-export"))]


@pytest.mark.parametrize("shown", OURS, ids=lambda shown: f"{shown.page}: {shown.line}")
def test_commands_are_understood(shown, tmp_path, monkeypatch):
    """Files that a command names are made here, empty, so that only its options are judged."""
    monkeypatch.chdir(tmp_path)
    program, *words = shlex.split(shown.line)
    for word in words:
        if word.startswith(("bundles/", "demo", "d16", "BUNDLE")):
            (tmp_path / word).mkdir(parents=True, exist_ok=True)
        elif word.endswith((".pth", ".png", ".toml", ".json")):
            (tmp_path / word).touch()
    command: click.Command = run if program == "var-run" else group.commands[words.pop(0)]
    command.make_context(program, words)


@pytest.mark.slow
@pytest.mark.parametrize("shown", RUN_HERE, ids=lambda shown: f"{shown.page}: {shown.line}")
def test_commands_run_as_written(shown, desk, capsys):
    program, *words = shlex.split(shown.line)
    assert program in ("var-run", "var-export"), f"{shown.page} has a new kind of command: run it, or say why not"
    main = var_run if program == "var-run" else var_export
    code = main([*words, *SHORTER.get(words[0], [])])
    assert code == 0, capsys.readouterr().err
    named = [words[k + 1] for k, word in enumerate(words) if word in ("--html", "--plot", "--repository")]
    assert all((desk / name).exists() for name in named)


def test_consoles_are_of_commands_that_print_them():
    """What a command prints is held by the test of the command; this only knows which pages have such a block."""
    pages = {page for page in ("docs/sizing.md", "docs/performance-plans.md") if blocks(page, "console")}
    assert pages == {page for page in {each.page for each in SHOWN} | pages if blocks(page, "console")}
    assert DEMO_BUNDLE.is_dir()
