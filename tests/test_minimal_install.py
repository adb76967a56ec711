"""The wheel with nothing but what it depends on, in an empty environment: it imports, helps, and says what to add."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import clean_checkout

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
COMMANDS = ("estimate", "build", "verify", "evaluate", "inspect", "bench", "doctor", "gpu-check")
EVERY_MODULE = """
import importlib, pkgutil, calib, engines, var_export
names = [module.name for module in pkgutil.walk_packages(engines.__path__, "engines.")]
names = [name for name in names if not name.startswith(("engines.serve.", "engines.page."))]  # they need an extra
for name in names:
    importlib.import_module(name)
print(len(names), engines.__file__)
"""


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """Runs a program of an environment that has the wheel alone, in an empty folder."""
    base = tmp_path_factory.mktemp("bare")
    bin_dir, empty = base / "venv" / "bin", base / "empty"
    empty.mkdir()
    # An editable install leaves its metadata in the checkout: pip must not take that for the package.
    elsewhere = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def prepare(*command):
        subprocess.run(command, cwd=empty, env=elsewhere, check=True, timeout=240)

    prepare(sys.executable, "-m", "build", "--wheel", "--outdir", base, clean_checkout(base / "checkout"))
    prepare(sys.executable, "-m", "venv", base / "venv")
    prepare(bin_dir / "python", "-m", "pip", "install", "--quiet", *base.glob("*.whl"))

    def run(program, *args):
        command = [bin_dir / program, *args]
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(empty)}
        return subprocess.run(
            command, cwd=empty, env=environment, capture_output=True, text=True, timeout=120, check=False
        )

    return run


def test_three_packages_are_all_it_takes(bare):
    installed = {each["name"] for each in json.loads(bare("pip", "list", "--format", "json").stdout)}
    assert installed - {"pip", "setuptools"} == {"var-export", "numpy", "pillow", "click"}


def test_every_module_of_the_runtime_imports(bare):
    done = bare("python", "-c", EVERY_MODULE)
    assert done.returncode == 0, done.stderr
    count, place = done.stdout.split()
    assert int(count) > 30
    assert "site-packages" in place


def test_every_help(bare):
    for command in (("var-run",), ("var-export",), *(("var-export", name) for name in COMMANDS)):
        done = bare(*command, "--help")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"Usage: {' '.join(command)} ")
        assert done.stderr == ""


@pytest.mark.parametrize(
    "command",
    [
        "var-run classes",
        "var-export inspect",
        "var-export doctor",
        "var-export estimate --model d16 --device thor",
    ],
)
def test_what_needs_no_backend_works(bare, command):
    done = bare(*command.split())
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("command", "add"),
    [
        ("var-run --class 88", '.whl"; or, for a GPU: var-export build '),
        ("var-run --class 88 --backend onnxruntime", "[cpu]"),
        ("var-run --class 88 --backend tensorrt", "it is part of JetPack (make the venv with --system-site-packages)"),
        ("var-run --class 88 --backend tensorrt-rtx", "[rtx]"),
        ("var-export verify", "[cpu]"),
        ("var-export bench", "[cpu]"),
        ("var-export build", "[cpu,export]"),
        ("var-export build --precision int8", "[cpu,export]"),
        ("var-export build BUNDLE --precision int8", "[cpu,int8]"),
        ("var-export build BUNDLE --target tensorrt", "make the venv with --system-site-packages"),
        ("var-export gpu-check", 'pip install "cuda-bindings>=12.8"'),
    ],
)
def test_what_needs_more_says_what_in_one_line(bare, command, add):
    bundle = bare("python", "-c", "from engines.bundle.bundle import DEMO_BUNDLE; print(DEMO_BUNDLE)").stdout.strip()
    done = bare(*command.replace("BUNDLE", bundle).split())
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert errors[0] == done.stderr.splitlines()[-1]
    assert add in errors[0]
    if add.startswith("["):  # of the very file that it was installed from: no index has it
        assert Path(re.search(r'pip install "var-export\[.*\] @ file://(.+?)"', errors[0])[1]).is_file()


def test_every_extra_that_is_named_exists(bare):
    code = "from importlib import metadata; print(*metadata.metadata('var-export').get_all('Provides-Extra'))"
    extras = set(bare("python", "-c", code).stdout.split())
    sources = [*(file for name in ("engines", "calib", "var_export") for file in (ROOT / name).rglob("*.py"))]
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    named = {
        extra
        for file in [*sources, *pages]
        for group in re.findall(r'pip install "?(?:var-export|\.)\[([\w,-]+)\]', file.read_text(encoding="utf-8"))
        for extra in group.split(",")
    }
    assert named >= {"cpu", "jetson", "int8"}
    assert named <= extras
