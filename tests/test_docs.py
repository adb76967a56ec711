"""The documentation says what the code does: graph table, options, links; the README's commands run as written."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import click
import pytest
from support import clean_checkout, copy_bundle

from engines.cli.run import main as var_run
from engines.cli.run import run
from engines.files.images import read_png_text
from engines.spec import contract
from var_export.cli.main import group

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_bundle_page_holds_the_contract():
    page = (ROOT / "docs/bundle.md").read_text(encoding="utf-8")
    for graph in contract.GRAPHS.values():
        section = page.split(f"### `{graph.name}`")[1].split("###")[0]
        rows = [
            f"| {kind} | `{spec.name}` | {spec.dtype} | ({', '.join(spec.dims)}) | {spec.meaning} |"
            for kind, specs in (("in", graph.inputs), ("out", graph.outputs))
            for spec in specs
        ]
        assert re.findall(r"^\| (?:in|out) .*\|$", section, re.MULTILINE) == rows


def commands() -> list[click.Command]:
    return [run, *group.commands.values()]


@pytest.mark.parametrize("command", commands(), ids=lambda command: command.name)
def test_cli_page_names_every_option(command):
    page = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    options = [name for param in command.params for name in param.opts if name.startswith("--")]
    assert [name for name in options if f"`{name}`" not in page] == []


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_readme_is_short_and_free_of_host_paths():
    assert len(README.splitlines()) < 150
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        assert not re.search(r"/(work|home|root|tmp)/", page.read_text(encoding="utf-8")), page.name


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def lines(block: str) -> list[str]:
    return [line.split("  #")[0].strip() for line in block.splitlines() if line.strip()]


def sh(command: str, cwd: Path, bin_dir: Path | None = None, **env: str) -> str:
    path = os.environ["PATH"] if bin_dir is None else f"{bin_dir}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        shell=True,
        cwd=cwd,
        env={**os.environ, "PATH": path, **env},
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    return clean_checkout(tmp_path_factory.mktemp("clone"))


def test_readme_blocks_are_all_run():
    """A new block needs a place in one of the tests below."""
    assert [lines(block)[0] for block in blocks("sh")] == [
        "make demo",
        'pip install ".[cpu]"',
        'pip install ".[cpu,export]"',
        "var-run --class parrot --seed 7 --count 4 --grid",
    ]
    assert len(blocks("python")) == 1


def test_the_editing_page_runs_as_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/editing.md").read_text(encoding="utf-8")
    commands = re.findall(r"^    var-run (.*)$", page, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        assert var_run([*shlex.split(command), "--overwrite"]) == 0
    assert len(list((tmp_path / "out").glob("dog-edited-*.png"))) == 12
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    result: dict[str, object] = {}
    exec(example, result)
    assert result["faces"].images.shape == (3, 64, 64, 3)
    assert result["variants"].images.shape == (4, 64, 64, 3)


def test_the_smoothing_page_runs_as_written(tmp_path, monkeypatch, demo_smooth_bundle):
    """But for its build, whose name the bundle gets here."""
    monkeypatch.chdir(tmp_path)
    copy_bundle(demo_smooth_bundle, tmp_path / "bundles/var-emoji-demo-fp16-smooth")
    page = (ROOT / "docs/smoothing.md").read_text(encoding="utf-8")
    assert var_run(shlex.split(re.search(r"^    var-run (.*)$", page, re.MULTILINE)[1])) == 0
    assert read_png_text(tmp_path / "var-parrot-0.png")["smooth"] == "True"
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    result: dict[str, object] = {}
    exec(example, result)
    assert result["result"].images.shape == (2, 64, 64, 3)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_make_demo(clone):
    first, second = lines(blocks("sh")[0])
    assert (first, second) == ("make demo", "make test")  # the second is what runs this test
    assert "make test" in (ROOT / ".ci/run").read_text(encoding="utf-8")
    said = sh(first, clone, PYTHON=sys.executable, MAKEFLAGS="", VIRTUAL_ENV="")
    assert "var-parrot-0.png" in said
    assert (clone / "var-parrot-0.png").is_file()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_pip_install_and_draw(clone, tmp_path):
    """`pip install ".[cpu]"` from the clone into an empty environment, then the commands in an empty folder."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    bin_dir, empty = tmp_path / "venv/bin", tmp_path / "empty"
    empty.mkdir()
    install, draw = lines(blocks("sh")[1])
    sh(install, clone, bin_dir)
    assert "embedded demo" in sh(draw, empty, bin_dir)
    assert (empty / "var-parrot-0.png").is_file()
    for command in lines(blocks("sh")[3]):
        sh(command, empty, bin_dir)
    assert (empty / "samples").is_dir()
    assert (empty / "samples.npz").is_file()
    (empty / "example.py").write_text(blocks("python")[0].replace("bundles/var-d16-256-fp16", ""), encoding="utf-8")
    assert "(2, 64, 64, 3) uint8" in sh("python example.py", empty, bin_dir)
    listed = sh("python -m pip list", empty, bin_dir)
    assert not re.search(r"^(torch|onnx)\s", listed, re.MULTILINE), "drawing needs neither torch nor onnx"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_pip_install_and_build(clone, tmp_path):
    """As above with the exporter; PyTorch and its like come from this environment, to save a download."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    bin_dir, empty = tmp_path / "venv/bin", tmp_path / "empty"
    empty.mkdir()
    site = Path(
        subprocess.run(
            [bin_dir / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    )
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    install, build = lines(blocks("sh")[2])
    sh(install, clone, bin_dir)
    assert "bundles/var-emoji-demo-fp16" in sh(build, empty, bin_dir)
    assert "bundles/var-emoji-demo-fp16" in sh(lines(blocks("sh")[1])[1], empty, bin_dir)  # var-run takes the newest
