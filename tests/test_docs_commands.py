"""The commands of the pages: those that can run here run as written, in order, in one folder; the others have a reason.

Every `var-export` and `var-run` command is parsed besides, so that none names an option that is gone.
"""

from __future__ import annotations

import fnmatch
import re
import shlex
import shutil
from pathlib import Path

import pytest
from docs_pages import PAGES, ROOT, ShownCommand, shown_commands, text_of

from engines.cli.run import main as var_run
from engines.cli.run import run
from var_export.cli.main import group
from var_export.cli.main import main as var_export

# Appended to a command that repeats itself for good figures, which nobody reads here.
SHORTER = {"bench": ["--runs", "1", "--batch", "1", "--warmup", "0"]}

# Why a command does not run in this file, with the commands as patterns.
ELSEWHERE = {
    "the README's: tests/test_docs.py runs it in an environment of its own": [
        "make demo",
        'pip install ".[[]cpu*',
        "var-export build --precision fp16",
    ],
    "the page's own test in tests/test_docs.py runs it": [
        "var-run --class parrot --smooth",
    ],
    "a build of half a minute and more: tests/var_export/cli builds in the same way": [
        "var-export build",
        "var-export build --smooth",
        "var-export build --precision int8",
        "var-export build bundles/* --precision int[48]*",
        "var-export sensitivity *",
    ],
    "it needs a model of official size, and minutes": [
        "var-export build var_d16.pth *",
        "var-export bench d16*",
        "var-run * --refine *",
        "var-run --preset fid *",
    ],
    "it needs a GPU, or NVIDIA's builder: tests/engines/backends/trt has that one and an emulation": [
        "var-export build * --target tensorrt*",
        "var-* --backend tensorrt*",
        "var-run * --provider cuda",
        "var-run * --provider webgpu",
        "var-run * --device GPU",
        "make gpu-check*",
    ],
    "it needs a bundle with the fused form: tests/engines/tritonserver/test_triton_repository.py serves one so": [
        "var-export triton * --stock *",
    ],
    "it needs two bundles: tests/var_export/cli/test_compare_command.py has them": [
        "var-export compare bundles/var-d16-256-fp32 *",
    ],
    "it needs weights of Inception: tests/var_export/cli/test_evaluate_inception.py has random ones": [
        "var-export evaluate samples.npz *",
    ],
    "it needs sets of several bundles: tests/var_export/cli/test_evaluate_command.py draws them": [
        "var-run * --bundle DIR *",
        "var-export evaluate --between FP32.npz *",
    ],
    "it serves until it is stopped: tests/engines/serve and page ask it": [
        "var-export serve*",
        "var-run --ui",
    ],
    "it needs a Triton server: tests/engines/tritonserver has one": [
        "tritonserver *",
        ".venv-triton/bin/tritonserver *",
        "docker run *",
        "curl *",
        "* --url triton://*",
        "perf_analyzer *",
    ],
    "it needs Docker, or ComfyUI: tests/integrations holds the files that it takes": [
        "docker build *",
        "ln -s *",
    ],
    "it is for several machines, or a cluster": [
        "for k in *",
        "ssh *",
        "done; wait",
        "sbatch *",
        "ray start *",
        "var-run * --ray*",
    ],
    "it is for another machine": [
        "sudo *",
        "python3 -m venv *",
        ". ~/var/bin/activate",
        'python -c "import tensorrt;*',
        "rsync *",
        "cp -r $(python *",
        "journalctl *",
        "eval *",
    ],
    "it installs from a network": [
        "pip install *",
        "pip download *",
        "python -m build *",
    ],
    "it is a tool of NVIDIA's, which is no part of this project": [
        "polygraphy *",
        "POLYGRAPHY_USE_TENSORRT_RTX=1 *",
    ],
    "it sets up, tests or measures this checkout, as developers and the CI do": [
        "make *",
        "PYTHONPATH=. *",
        "python -m tests.*",
    ],
}
SHOWN = shown_commands()
MAINS = {"var-run": var_run, "var-export": var_export}


def reasons(command: ShownCommand) -> list[str]:
    return [why for why, patterns in ELSEWHERE.items() if any(fnmatch.fnmatchcase(command.line, p) for p in patterns)]


RUN_HERE = [command for command in SHOWN if not reasons(command)]


def test_each_reason_is_for_a_command():
    patterns = [pattern for each in ELSEWHERE.values() for pattern in each]
    assert [pattern for pattern in patterns if not fnmatch.filter([each.line for each in SHOWN], pattern)] == []


def test_commands_are_in_shell_blocks():
    """Elsewhere they would be neither run nor parsed."""
    other = re.compile(r"^ {4,}(var-run|var-export|make|pip|python) .*", re.MULTILINE)
    outside = {
        page: other.findall(re.sub(r"^```.*?^```", "", text_of(page), flags=re.DOTALL | re.MULTILINE)) for page in PAGES
    }
    assert {page: found for page, found in outside.items() if found} == {}


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_the_text_exist(page):
    named = set(re.findall(r"\bvar-export ([a-z][a-z0-9-]+)", text_of(page)))
    assert named - set(group.commands) == ({"plan"} if page == "CHANGELOG.md" else set())


def test_the_jetson_page_fetches_all_that_the_device_needs():
    """pip judges markers by the Python that runs it, not by `--python-version`: what has one is named."""
    lines = [each.line for each in SHOWN if each.page == "docs/jetson.md"]
    assert lines.index("pip install build") < lines.index("python -m build --wheel")
    (download,) = (line for line in lines if line.startswith("pip download"))
    (extra,) = re.findall(r"^jetson = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    with_marker = re.findall(r'"([^";]+);', extra)
    assert with_marker == ["tomli>=2"]
    assert [name for name in with_marker if f'"{name}"' not in download] == []
    tags = re.findall(r"--platform (\S+)", download)
    assert tags == [f"manylinux{tag}_aarch64" for tag in ("_2_28", "_2_27", "2014")]


OURS = list({each.line: each for each in SHOWN if each.line.split()[0] in MAINS}.values())


@pytest.mark.parametrize("shown", OURS, ids=lambda shown: f"{shown.page}: {shown.line}")
def test_commands_are_understood(shown, tmp_path, monkeypatch):
    """Files that a command names are made here, empty, so that only its options are judged."""
    monkeypatch.chdir(tmp_path)
    program, *words = shlex.split(shown.line)
    for word in words:
        if word.startswith(("bundles/", "demo", "d16", "BUNDLE")):
            (tmp_path / word).mkdir(parents=True, exist_ok=True)
        elif word.endswith((".pth", ".png")):
            (tmp_path / word).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / word).touch()
    if program == "var-run":
        command = run.commands[words.pop(0) if words[0] in run.commands else run.default]
    else:
        command = group.commands[words.pop(0)]
    command.make_context(program, words)


@pytest.fixture(scope="module")
def desk(tmp_path_factory, demo_fp16_bundle) -> Path:
    """A folder to work in. The demo stands in for the model that the pages are about, under that one's name."""
    folder = tmp_path_factory.mktemp("desk")
    shutil.copytree(demo_fp16_bundle, folder / "bundles/var-d16-256-fp16")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("shown", RUN_HERE, ids=lambda shown: f"{shown.page}: {shown.line}")
def test_commands_run_as_written(shown, desk, monkeypatch, capsys):
    monkeypatch.chdir(desk)
    program, *words = shlex.split(shown.line)
    assert program in MAINS, "a new kind of command: run it, or say why not"
    code = MAINS[program]([*words, *SHORTER.get(words[0], [])])
    assert code == 0, capsys.readouterr().err
    results = [words[k + 1] for k, word in enumerate(words) if word in ("--html", "--repository", "--out")]
    assert [name for name in results if not (desk / name).exists()] == []
