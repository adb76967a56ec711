"""The documentation says what the code does: graph table, options, links; the README's commands run as written."""

from __future__ import annotations

import os
import pkgutil
import re
import shlex
import subprocess
import sys
import sysconfig
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from docs_pages import PAGES, ROOT, blocks, commands, text_of
from PIL import Image
from support import clean_checkout, copy_bundle

from engines.bundle.bundle import DEMO_BUNDLE
from engines.cli.run import main as var_run
from engines.cli.run import run
from engines.judging.thresholds import THRESHOLDS, Thresholds
from engines.pictures.images import read_picture_text
from engines.spec import contract
from tests.serving import serving
from var_export.cli.main import group


def test_graph_page_holds_the_contract():
    page = text_of("docs/graphs.md")
    for graph in contract.GRAPHS.values():
        section = page.split(f"### `{graph.name}`")[1].split("###")[0]
        rows = [
            f"| {kind} | `{spec.name}` | {spec.dtype} | ({', '.join(spec.dims)}) | {spec.meaning} |"
            for kind, specs in (("in", graph.inputs), ("out", graph.outputs))
            for spec in specs
        ]
        assert re.findall(r"^\| (?:in|out) .*\|$", section, re.MULTILINE) == rows


def test_fidelity_page_holds_the_thresholds():
    table = re.search(r"^\| figure \|(.*)\n\|[-|]+\n((?:\|.*\n)+)", text_of("docs/fidelity.md"), re.MULTILINE)
    assert table[1].replace("|", " ").split() == list(THRESHOLDS)
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table[2].splitlines()]
    bounds = [[f"{getattr(each, field.name):g}" for each in THRESHOLDS.values()] for field in fields(Thresholds)]
    assert [row[1:] for row in rows] == bounds
    others = [
        page for page in PAGES if page != "docs/fidelity.md" and "| largest logit error, at most" in text_of(page)
    ]
    assert others == [], "thresholds stand on one page"


def rooms() -> list[str]:
    """Every folder of code and every module beside them, as docs/architecture.md writes them."""
    entries = [entry for package in ("var_export", "calib", "engines") for entry in (ROOT / package).iterdir()]
    folders = [f"{entry.parent.name}/{entry.name}/" for entry in entries if any(entry.glob("*.py"))]
    modules = [
        f"{entry.parent.name}/{entry.name}" for entry in entries if entry.suffix == ".py" and entry.stem[:2] != "__"
    ]
    return sorted(folders + modules)


def test_every_room_has_a_row():
    """A row of a room that is gone fails too."""
    rows = re.findall(r"^\| `((?:var_export|calib|engines)/\w+(?:/|\.py))` \|", text_of("docs/architecture.md"), re.M)
    assert sorted(rows) == rooms()


# Where the options of a command are: a page, or a section of one.
OPTIONS = {
    "var-run": ["docs/var-run.md", "docs/page.md#Options of var-run --ui", "docs/fleet.md#On a Ray cluster"],
    "build": ["docs/var-export.md#build", "docs/int8.md#Options of build", "docs/tensorrt.md#Build"],
    "sensitivity": ["docs/int8.md#What a layer costs"],
    "estimate": ["docs/sizing.md"],
    "compare": ["docs/compare.md"],
    "evaluate": ["docs/evaluate.md"],
    "serve": ["docs/serve.md#Options"],
    "merge": ["docs/fleet.md#Shards"],
    "triton": ["docs/triton.md#Options"],
    "gpu-check": ["docs/gpu-check.md#Options"],
}


def section(place: str) -> str:
    page, _, heading = place.partition("#")
    return re.search(rf"^## {heading}$(.*?)(?=^## |\Z)", text_of(page), re.M | re.S)[1] if heading else text_of(page)


COMMANDS = [("var-run", each) for each in (run, *run.commands.values())]
COMMANDS += [(name, each) for name, each in group.commands.items()]


@pytest.mark.parametrize(("place", "command"), COMMANDS, ids=lambda value: getattr(value, "name", value))
def test_pages_name_every_option(place, command):
    text = "".join(map(section, OPTIONS.get(place, [f"docs/var-export.md#{place}"])))
    options = [name for param in command.params for name in param.opts if name.startswith("--")]
    assert [name for name in options if f"`{name}`" not in text] == []


def test_the_page_of_var_export_lists_its_commands():
    rows = re.findall(r"^\| `([\w-]+)` \|", text_of("docs/var-export.md").split("## build")[0], re.MULTILINE)
    assert sorted(rows) == sorted(group.commands)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\((?!https?://)([^)#]*)(#[^)]*)?\)", text_of(page)):
        file = (PAGES[page].parent / target).resolve() if target else PAGES[page]
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor[1:] in map(slug, headings), f"{target}{anchor}"


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", sorted(set(PAGES) - {"CHANGELOG.md"}))
def test_code_that_a_page_names_is_there(page):
    named = re.findall(r"(?<![\w./-])((?:engines|calib|var_export|tests|examples)/[\w./*-]*\w)", text_of(page))
    assert [path for path in named if not list(ROOT.glob(path))] == []
    for name in re.findall(r"`((?:engines|calib|var_export)(?:\.\w+)+)[`(]", text_of(page)):
        pkgutil.resolve_name(name)


def test_the_first_five_files_to_read_are_short():
    first = re.search(r"^## Read one image$(.*?)^## ", text_of("docs/architecture.md"), re.M | re.S)[1]
    files = re.findall(r"^\d\. `([\w/]+\.py)`", first, re.MULTILINE)
    assert len(files) == 5
    assert {file: lines for file in files if (lines := len((ROOT / file).read_text().splitlines())) >= 250} == {}


def test_every_picture_is_shown():
    shown = {name for page in PAGES for name in re.findall(r"images/([\w-]+\.png)", text_of(page))}
    assert shown == {file.name for file in (ROOT / "docs/images").iterdir()}


def test_every_page_is_in_the_index():
    index = text_of("docs/README.md")
    pages = {page.removeprefix("docs/") for page in PAGES if page.startswith("docs/")} - {"README.md"}
    assert {page for page in pages if f"({page})" not in index} == set()


@pytest.mark.parametrize("page", PAGES)
def test_pages_are_short_and_free_of_host_paths(page):
    text = text_of(page)
    long = [line for line in text.splitlines() if len(line) > 140 and not re.match(r"\[\w+\]: http\S+$", line)]
    assert long == []
    words = [word for word in text.split() if re.search(r"\w", word)]
    assert len(words) <= 1200, "a page that needs more words is two pages"
    assert not re.search(r"/(work|home|root|tmp)/", text)


def test_readme_is_short():
    assert len(text_of("README.md").splitlines()) < 130


def test_the_first_screen_says_where_everything_is():
    """One click each, above the first heading; `test_links_lead_somewhere` follows the links."""
    way_in = text_of("README.md").split("\n## ")[0]
    links = dict(re.findall(r"\[([^\]]+)\]\(([^)]+)\)", way_in))
    assert {
        "First picture": "#first-picture",
        "Your own checkpoint": "#your-own-checkpoint",
        "INT8": "docs/int8.md",
        "Editing": "docs/editing.md",
        "Triton": "docs/triton.md",
        "Jetson": "docs/jetson.md",
        "all pages": "docs/README.md",
    }.items() <= links.items()


def test_what_the_wheels_need_is_said_before_the_first_install():
    before = text_of("README.md").split("make demo")[0]
    assert [word for word in ("glibc 2.28", "musl", "x86-64-v2", "Python 3.10") if word not in before] == []


def readme(block: int) -> list[str]:
    """The commands of one shell block of the README."""
    return commands(blocks("README.md", "sh")[block])


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
    assert [commands(block)[0] for block in blocks("README.md", "sh")] == [
        "make demo",
        'pip install ".[cpu]"',
        'pip install ".[cpu,export]"',
        "var-run --class pizza --seed 9 --count 4 --grid",
        "var-export build var_d16.pth --precision fp16",  # these two: tests/test_docs_commands.py
        "var-export estimate --model d30 --precision fp16 --batch 8 --device orin-nano-8gb",
    ]
    examples = {page: len(blocks(page, "python")) for page in PAGES if blocks(page, "python")}
    of_one_line = "docs/triton-protocol.md"
    pages = ("editing", "python", "refining", "serve", "smoothing")
    shown = ("README.md", *(f"docs/{page}.md" for page in pages), of_one_line)
    assert examples == dict.fromkeys(shown, 1)


@pytest.mark.slow
def test_the_editing_page_runs_as_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shown = [line for block in blocks("docs/editing.md", "sh") for line in commands(block)]
    assert len(shown) == 3
    for line in shown:
        assert var_run(shlex.split(line)[1:]) == 0
    assert [len(list((tmp_path / name).glob("0*.png"))) for name in ("dog-edited", "dog-edited-2")] == [12, 12]
    (example,) = blocks("docs/editing.md", "python")
    result: dict[str, object] = {}
    exec(example, result)
    assert result["faces"].images.shape == (3, 64, 64, 3)
    assert result["variants"].images.shape == (4, 64, 64, 3)


@pytest.mark.slow
def test_the_refining_page_runs_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("d30-fp16", "d16-fp16"):
        copy_bundle(DEMO_BUNDLE, tmp_path / "bundles" / name)
    (line,) = commands(blocks("docs/refining.md", "sh")[0])
    assert var_run(shlex.split(line)[1:]) == 0
    (example,) = blocks("docs/refining.md", "python")
    exec(example, {})
    assert len(list((tmp_path / "out").glob("*.png"))) == 2


@pytest.mark.slow
def test_the_python_page_runs_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (example,) = blocks("docs/python.md", "python")
    result: dict[str, object] = {}
    for _ in range(2):  # and again, over what the first time wrote
        exec(example, result)
    assert len(list((tmp_path / "pizzas").iterdir())) == 3
    assert result["again"].shape == (2, 64, 64, 3)
    assert result["tokens"].shape[0] == 1


@pytest.mark.slow
def test_the_serve_page_runs_as_written(tmp_path, monkeypatch, capsys):
    """But for the port, which may be taken."""
    pytest.importorskip("openai", reason="the official client is not installed")
    monkeypatch.chdir(tmp_path)
    (example,) = blocks("docs/serve.md", "python")
    with serving(DEMO_BUNDLE, "--check", "never") as (_, address):
        exec(example.replace("http://127.0.0.1:8000", address), {})
    assert read_picture_text(tmp_path / "parrot.png")["seed"] == "1"
    kinds = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert kinds == ["image_generation.partial_image"] * 3 + ["image_generation.completed"]


@pytest.mark.slow
def test_the_smoothing_page_runs_as_written(tmp_path, monkeypatch, demo_smooth_bundle):
    """But for its build, whose name the bundle gets here."""
    monkeypatch.chdir(tmp_path)
    copy_bundle(demo_smooth_bundle, tmp_path / "bundles/var-emoji-demo-fp16-smooth")
    build, draw = commands(blocks("docs/smoothing.md", "sh")[0])
    assert build == "var-export build --smooth"
    assert var_run(shlex.split(draw)[1:]) == 0
    assert read_picture_text(tmp_path / "var-parrot-0.png")["smooth"] == "True"
    (example,) = blocks("docs/smoothing.md", "python")
    result: dict[str, object] = {}
    exec(example, result)
    assert result["result"].images.shape == (2, 64, 64, 3)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_make_demo(clone):
    first, second = readme(0)
    assert (first, second) == ("make demo", "make test")  # the second is what runs this test
    assert "make test" in (ROOT / ".ci/run").read_text(encoding="utf-8")
    for _ in range(2):  # the second finds the picture there
        said = sh(first, clone, PYTHON=sys.executable, MAKEFLAGS="", VIRTUAL_ENV="")
        for shown in (".venv/bin/var-run --class 88", clone / "var-parrot-0.png", clone / "var-parrot-0-x4.png"):
            assert f"{shown}\n" in said, "what it runs, and where the pictures are, for any folder"
    small, large = (np.array(Image.open(clone / f"var-parrot-0{name}.png")) for name in ("", "-x4"))
    assert small.shape == (64, 64, 3)
    assert large.shape == (16 + 256 + 16, 16 + 64 + 16 + 256 + 16, 3)
    np.testing.assert_array_equal(large[16:80, 16:80], small)
    shrunk = large[16:272, 96:352].reshape(64, 4, 64, 4, 3).mean((1, 3))
    assert np.abs(shrunk - small).mean() < 2, "the same picture"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_pip_install_and_draw(clone, tmp_path):
    """`pip install ".[cpu]"` from the clone into an empty environment, then the commands in an empty folder."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    bin_dir, empty = tmp_path / "venv/bin", tmp_path / "empty"
    empty.mkdir()
    install, draw = readme(1)
    sh(install, clone, bin_dir)
    assert "embedded demo" in sh(draw, empty, bin_dir)
    assert (empty / "var-parrot-0.png").is_file()
    for command in readme(3):
        sh(command, empty, bin_dir)
    assert (empty / "samples").is_dir()
    assert (empty / "samples.npz").is_file()
    (example,) = blocks("README.md", "python")
    (empty / "example.py").write_text(example, encoding="utf-8")
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
    install, build = readme(2)
    sh(install, clone, bin_dir)
    assert "bundles/var-emoji-demo-fp16" in sh(build, empty, bin_dir)
    assert "bundles/var-emoji-demo-fp16" in sh(readme(1)[1], empty, bin_dir)  # var-run takes the newest
