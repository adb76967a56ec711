"""Who imports what: the runtime runs on a device that has neither torch nor onnx; calibration needs onnx, no torch."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import need_torch

from engines import backends
from engines.errors import BackendError
from engines.packages import install_command

ROOT = Path(__file__).parents[1]
BLOCKED = ("torch", "torchvision", "onnx", "onnx_ir", "onnxscript", "safetensors", "huggingface_hub")
CALIBRATION_NEEDS = ("onnx", "onnx_ir")


NEEDS_AN_EXTRA = ("engines.serve.", "engines.page.")
"""Modules that need packages of their own: a server's."""


def modules_of(package):
    """Dotted names of all modules of a package, without importing any, but for those that need an extra."""
    names = []
    for file in sorted((ROOT / package).rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return [name for name in names if not name.startswith(NEEDS_AN_EXTRA)]


def run(script, *, blocked=()):
    """Run Python code in a fresh process where some packages cannot be imported; what it prints as JSON."""
    guard = f"""
        import sys

        class Blocked:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in {tuple(blocked)!r}:
                    raise ImportError(name + " is not installed here")

        sys.meta_path.insert(0, Blocked())
    """
    code = textwrap.dedent(guard) + textwrap.dedent(script)
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout) if result.stdout.strip() else None


def test_the_guard_guards():
    failed = run(
        """
        import json
        failed = []
        for name in ("torch", "onnx.helper", "safetensors.torch"):
            try:
                __import__(name)
            except ImportError:
                failed.append(name)
        print(json.dumps(failed))
        """,
        blocked=BLOCKED,
    )
    assert failed == ["torch", "onnx.helper", "safetensors.torch"]


@pytest.mark.slow
def test_every_module_of_the_runtime_imports_without_torch():
    modules = modules_of("engines")
    assert "engines" in modules
    run(f"import importlib\nfor name in {modules}:\n    importlib.import_module(name)", blocked=BLOCKED)


@pytest.mark.slow
def test_the_runtime_imports_without_any_runtime():
    """Backends load theirs when they are made: a bundle can be inspected on a bare machine."""
    modules = modules_of("engines")
    blocked = (*BLOCKED, "onnxruntime", "tensorrt")
    run(f"import importlib\nfor name in {modules}:\n    importlib.import_module(name)", blocked=blocked)


@pytest.mark.slow
def test_every_module_of_calibration_imports_without_torch():
    """It rewrites graphs, so that it takes onnx_ir; and what makes INT8 of a float bundle takes no more."""
    modules = [*modules_of("calib"), "calib.quantise", "calib.judge.attribution", "var_export.cli.quantising"]
    assert "calib.observe.collect" in modules
    blocked = [name for name in BLOCKED if name not in CALIBRATION_NEEDS] + ["tensorrt"]
    run(f"import importlib\nfor name in {modules}:\n    importlib.import_module(name)", blocked=blocked)


@pytest.mark.slow
def test_pages_are_made_without_torch():
    """`verify --html` on a device; the page of `sensitivity` takes what that command takes."""
    for package in ("matplotlib", "jinja2"):
        pytest.importorskip(package, reason=f"{package} is not installed: it comes with the extra report")
    modules = [name for name in modules_of("var_export/report") if not name.endswith(("layers", "sensitivity"))]
    assert "var_export.report.verify" in modules
    run(f"import importlib\nfor name in {modules}:\n    importlib.import_module(name)", blocked=BLOCKED)
    blocked = [name for name in BLOCKED if name not in CALIBRATION_NEEDS]
    run("import var_export.report.sensitivity", blocked=blocked)


def test_ranges_are_chosen_with_numpy_alone():
    run("import calib, calib.statistics, calib.calibration", blocked=(*BLOCKED, "onnxruntime", "tensorrt"))


def test_a_missing_runtime_is_an_error_with_the_remedy():
    message = run(
        """
        import json
        from engines import BackendError, backends
        try:
            backends.create("onnxruntime")
        except BackendError as error:
            print(json.dumps(str(error)))
        """,
        blocked=("onnxruntime",),
    )
    assert install_command("cpu") in message


def test_without_plans_and_runtime_the_error_names_both_ways():
    message = run(
        """
        import json
        from engines import BackendError, Bundle, backends
        from engines.bundle.bundle import DEMO_BUNDLE
        try:
            backends.for_bundle(Bundle.open(DEMO_BUNDLE, verify=False))
        except BackendError as error:
            print(json.dumps(str(error)))
        """,
        blocked=("onnxruntime", "openvino"),
    )
    assert f"{install_command('cpu')}; or, for a GPU: var-export build " in message
    assert message.endswith(" --target tensorrt")


def test_without_a_runtime_the_error_says_why_the_plans_do_not_run(monkeypatch):
    """On a device that has nothing but TensorRT, that is what matters."""

    def create(name, **_):
        raise BackendError(f"no {name} here")

    monkeypatch.setattr(backends, "create", create)
    plans = SimpleNamespace(built_on=SimpleNamespace(target="tensorrt"))
    told = []
    with pytest.raises(BackendError) as caught:
        backends.for_bundle(SimpleNamespace(path="b", plans=[plans]), tell=told.append)
    assert str(caught.value) == "not using the plans of b (no tensorrt here), and no onnxruntime here"
    assert told == []


@pytest.mark.slow
def test_every_module_of_the_exporter_imports():
    need_torch()
    modules = modules_of("var_export")
    assert len(modules) > 20
    run(f"import importlib\nfor name in {modules}:\n    importlib.import_module(name)")


@pytest.mark.parametrize("package", ["var_export", "engines", "calib"])
def test_a_bare_import_is_light(package):
    loaded = run(f"import json, sys, {package}\nprint(json.dumps(sorted(sys.modules)))")
    heavy = {"numpy", "PIL", "onnxruntime", "click", *BLOCKED}
    assert not heavy & set(loaded)


def test_the_front_door_needs_no_torch():
    loaded = run(
        """
        import json, sys
        from var_export import Pipeline, UsageError
        import var_export, engines
        assert Pipeline is engines.Pipeline
        print(json.dumps({"pipeline": Pipeline.__module__, "loaded": sorted(sys.modules)}))
        """,
        blocked=BLOCKED,
    )
    assert loaded["pipeline"] == "engines.draw.pipeline"
    assert not set(BLOCKED) & set(loaded["loaded"])


@pytest.mark.slow
def test_an_image_is_drawn_without_torch(demo_fp16_bundle):
    drawn = run(
        f"""
        import json, sys
        from var_export import Pipeline
        with Pipeline.load({str(demo_fp16_bundle)!r}, threads=1) as pipeline:
            result = pipeline.generate("none", seeds=3)
        print(json.dumps({{"shape": result.images.shape, "loaded": sorted(sys.modules)}}))
        """,
        blocked=BLOCKED,
    )
    assert drawn["shape"] == [1, 64, 64, 3]
    assert not set(BLOCKED) & set(drawn["loaded"])


def test_every_public_name_is_there():
    import engines
    import var_export

    assert set(var_export.__all__) >= {"Pipeline", "Bundle", "Result", "Preview", "VarExportError", "UsageError"}
    for package in (engines, var_export):
        for name in package.__all__:
            assert getattr(package, name).__name__ == name
            assert name in dir(package)
        with pytest.raises(AttributeError, match="nothing_of_the_kind"):
            _ = package.nothing_of_the_kind


def test_errors_are_one_tree():
    import engines
    from engines.errors import VarExportError

    errors = [getattr(engines, name) for name in engines.__all__ if name.endswith("Error")]
    assert len(errors) >= 7
    for error in errors:
        assert issubclass(error, VarExportError)
        assert error.exit_code == (1 if error is engines.CheckFailedError else 2)
    assert issubclass(engines.UsageError, ValueError)
    assert issubclass(engines.BundleError, engines.UsageError)
    assert issubclass(engines.CheckpointError, engines.UsageError)
    assert issubclass(engines.OutOfMemoryError, engines.BackendError)
