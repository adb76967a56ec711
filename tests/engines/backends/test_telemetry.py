"""Telemetry of the runtimes is off unless the application itself decides: no files, no words, no host looked up."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DRAW = """
from engines import Pipeline
from engines.bundle.bundle import DEMO_BUNDLE
with Pipeline.load(DEMO_BUNDLE, threads=1, backend="{backend}") as pipeline:
    print(pipeline.generate(0, seeds=1).images.shape)
"""
SENDER = """
import sys
import engines.backends
with engines.backends.create("openvino"):
    assert not [name for name in sys.modules if name.startswith("openvino_telemetry")]
import openvino_telemetry
with engines.backends.create("openvino"):
    print(openvino_telemetry.Telemetry)
"""
DECIDED = """
import os
from engines.backends.onnxruntime import import_onnxruntime
import_onnxruntime()
print(os.environ["ORT_DISABLE_TELEMETRY"])
"""


def python(code, **environment):
    """What a process prints, errors included, whose environment is `environment` and what Python itself needs."""
    needed = {name: value for name, value in os.environ.items() if name in ("PATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=needed | {"PYTHONPATH": str(ROOT)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    return done.stdout


def imported_modules(file):
    """The names of the modules that a file imports, wherever it does."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield str(node.module)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            yield str(getattr(node.args[0], "value", ""))


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_one_place_imports_a_runtime(runtime):
    files = [file for package in ("engines", "calib", "var_export") for file in (ROOT / package).rglob("*.py")]
    assert len(files) > 100
    importing = {
        file.relative_to(ROOT).as_posix()
        for file in files
        if any(name.split(".")[0] == runtime for name in imported_modules(file))
    }
    assert importing == {f"engines/backends/{runtime}/library.py"}


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_draw_leaves_nothing_of_the_runtime_at_home(tmp_path, backend):
    assert python(DRAW.format(backend=backend), HOME=str(tmp_path)) == "(1, 64, 64, 3)\n"
    assert [file.name for file in tmp_path.iterdir()] == [".cache"]
    assert [file.name for file in (tmp_path / ".cache").iterdir()] == ["var-export"]
    assert [file for file in tmp_path.rglob("*") if "onnxruntime" in file.name or "Microsoft" in file.name] == []


def test_openvinos_sender_is_left_to_who_imports_it(tmp_path):
    assert "Telemetry" in python(SENDER, HOME=str(tmp_path))


@pytest.mark.parametrize("home", [{}, {"HOME": "/proc/none"}], ids=["no HOME", "HOME that cannot be written"])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_draw_without_a_home_says_nothing(home, backend):
    assert python(DRAW.format(backend=backend), **home) == "(1, 64, 64, 3)\n"


@pytest.mark.parametrize("chosen", ["0", ""])
def test_an_application_that_decides_keeps_its_choice(tmp_path, chosen):
    assert python(DECIDED, HOME=str(tmp_path), ORT_DISABLE_TELEMETRY=chosen) == f"{chosen}\n"
    assert python(DECIDED, HOME=str(tmp_path)) == "1\n"
