"""Our calls of TensorRT and CUDA against NVIDIA's own bindings: see tests/bindings."""

import ast
import logging
import mmap
import threading
from collections import deque
from pathlib import Path

import numpy as np
import pytest

from engines.backends.tensorrt.options import RTX_CAPABILITIES
from tests.bindings import CUDA, PINS, TENSORRT, api, scan
from tests.bindings.api import Api
from tests.bindings.install import Unavailable, dump
from tests.bindings.source import ROOT, dotted, files, read

FOLDERS = (ROOT / "engines" / "backends" / "tensorrt",)
BESIDE = ("engines.backends.cuda", "engines.backends.device_buffer")
HELD = [*BESIDE, *(dotted(file) for folder in FOLDERS for file in sorted(folder.rglob("*.py")))]

MADE_NAMES = {"f\"SM{capability.replace('.', '')}\"": {f"SM{each.replace('.', '')}" for each in RTX_CAPABILITIES}}
"""Names of the vendor's that the code puts together, as it writes that: what can come out."""

ORDINARY = (str, bytes, list, dict, set, int, float, memoryview, Path, deque, np.dtype, np.ndarray, mmap.mmap)
ORDINARY += (logging, logging.Logger, threading.Thread)
"""What else the code uses attributes of."""


def findings(pin):
    if pin not in _FINDINGS:
        names = {ast.unparse(ast.parse(text, mode="eval").body): made for text, made in MADE_NAMES.items()}
        _FINDINGS[pin] = scan([read(name) for name in HELD], api(pin), names=names)
    return _FINDINGS[pin]


_FINDINGS = {}


@pytest.mark.slow
@pytest.mark.parametrize("pin", PINS)
def test_every_name_member_and_argument_is_one_of_this_version(pin):
    assert findings(pin).problems == []


@pytest.mark.parametrize("pins", [TENSORRT, CUDA], ids=["tensorrt", "cuda"])
def test_what_is_asked_for_exists_in_some_version(pins):
    """A misspelt `hasattr` is false everywhere."""
    found = [findings(pin).guards for pin in pins]
    assert [name for name in sorted(set().union(*found)) if not any(each.get(name) for each in found)] == []


def test_some_version_enters_every_function():
    entered = set().union(*(findings(pin).entered for pin in PINS))
    written = {
        (name, scope.qualname)
        for name in HELD
        for node, scope in read(name).scopes.items()
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    }
    assert sorted(written - entered) == []


def test_the_check_sees_what_the_code_does():
    """One use of every kind: through parameters, attributes, tables of names, derived classes, functions of CUDA."""
    used = {pin: set().union(*findings(pin).uses.values()) for pin in PINS}
    for pin in TENSORRT:
        assert used[pin] >= {
            "Builder.create_network",
            "BuilderFlag.TF32",
            "DataType.HALF",
            "IBuilderConfig.progress_monitor",
            "ICudaEngine.get_tensor_profile_shape",
            "IExecutionContext.set_device_memory",
            "ILogger.Severity.WARNING",
            "IProgressMonitor.step_complete",
            "ParserError.desc",
        }
        newer = {"ComputeCapability.SM86", "EngineValidity.INVALID", "IExecutionContext.is_stream_capturable"}
        assert (newer <= used[pin]) is (PINS[pin].product == "tensorrt-rtx")
    for pin in CUDA:
        assert used[pin] >= {"cudaMemcpyAsync", "cudaFreeHost", "cudaMemcpyKind.cudaMemcpyHostToDevice"}
        assert used[pin] >= {"cudaDeviceProp.totalGlobalMem", "cudaStreamNonBlocking", "cudaStreamEndCapture"}


def test_nothing_of_the_vendor_escapes():
    """Any attribute that is called as something of the vendor's, and as nothing else, was recognised as that."""
    apis = [api(pin) for pin in PINS]
    theirs = set().union(*(each.names for each in apis))
    theirs |= {name for each in apis for kind in each.classes.values() for name in kind["names"]}
    other = set().union(*map(dir, ORDINARY))
    for file in files():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                other.add(node.name)
            elif isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store):
                other.add(ast.unparse(node).removeprefix("self."))
    seen = set().union(*(findings(pin).uses for pin in PINS))
    missed = [
        f"{name}:{node.lineno}: {ast.unparse(node)}"
        for name in HELD
        for node in ast.walk(read(name).tree)
        if isinstance(node, ast.Attribute) and node.attr in theirs - other
        if (name, node.lineno, node.col_offset) not in seen
    ]
    assert missed == []


@pytest.mark.slow
def test_nothing_else_calls_the_vendor():
    found = [
        f"{file.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}"
        for file in files()
        if dotted(file) not in HELD
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if _handles_the_vendor(node)
    ]
    assert found == [], "move it into engines/backends/tensorrt or engines/backends/cuda.py, or hold these files too"


def _handles_the_vendor(node):
    names = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        names = [node.module or ""]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "call":
        names = [str(argument.value) for argument in node.args[:1] if isinstance(argument, ast.Constant)]
    elif isinstance(node, ast.Attribute):
        imported = isinstance(node.value, ast.Call) and ast.unparse(node.value.func).endswith("import_module")
        names = [str(a.value) for a in node.value.args if isinstance(a, ast.Constant)] if imported else []
        if node.attr == "trt" or node.attr == "__version__":
            return node.attr == "trt"
    return any(name.startswith(("cuda", "tensorrt")) for name in names)


def test_the_stand_in_libraries_change_nothing():
    """TensorRT-RTX is the one that a machine without a GPU can have whole."""
    pin = PINS["tensorrt-rtx-1.7.1.116"]
    stood_in = api(str(pin))
    try:
        whole = Api(pin.product, dump("tensorrt_rtx"))
    except Unavailable as reason:
        pytest.skip(str(reason))
    if whole.version != stood_in.version:
        pytest.skip(f"TensorRT-RTX {whole.version} is installed, not {stood_in.version}")
    assert whole.classes == stood_in.classes
    assert whole.names == stood_in.names
