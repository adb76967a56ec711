"""The emulation in tests/emulation has no method, class or enum member that NVIDIA's bindings lack.

What its objects keep in attributes is their own business: code of ours that read it would fail
test_api_conformance.py.
"""

import ast
import enum
import inspect

import pytest

from tests.bindings import CUDA, PINS, TENSORRT, api
from tests.bindings.source import ROOT, Source
from tests.emulation import HostCuda, HostTensorRT, HostTensorRTX, cuda, tensorrt

EMULATED = {
    "Severity": "ILogger.Severity",
    "Logger": "ILogger",
    "Monitor": "IProgressMonitor",
    "Builder": "Builder",
    "Network": "INetworkDefinition",
    "Parser": "OnnxParser",
    "ParserError": "ParserError",
    "Profile": "IOptimizationProfile",
    "TimingCache": "ITimingCache",
    "Config": "IBuilderConfig",
    "Runtime": "Runtime",
    "RuntimeConfig": "IRuntimeConfig",
    "RuntimeCache": "IRuntimeCache",
    "Engine": "ICudaEngine",
    "Context": "IExecutionContext",
}
"""What each class of the emulation stands for, with or without RTX at its end."""
HELPERS = {
    "Context": {"compute"},
    "Engine": {"strategy"},
    "EngineRTX": {"strategy"},
    "Network": {"file"},
    "RuntimeCache": {"kernels"},
    "RuntimeConfig": {"cache", "strategy"},
}
"""What the emulation has for itself and for tests."""

SOURCE = Source("tests.emulation.tensorrt", (ROOT / "tests" / "emulation" / "tensorrt.py").read_text(encoding="utf-8"))
CLASSES = {
    node.name
    for node in SOURCE.tree.body
    if isinstance(node, ast.ClassDef) and not node.name.startswith("Host")
    if "NamedTuple" not in map(ast.unparse, node.bases)
}


def versions(name):
    """Those that a class may be of."""
    return [api(pin) for pin in TENSORRT if PINS[pin].product == "tensorrt-rtx" or not name.endswith("RTX")]


def public(names):
    return sorted(name for name in names if not name.startswith("_"))


def takes(method, signatures):
    """Whether an emulated method takes as many arguments as the vendor's, or as many as that must be given."""
    given = len(inspect.signature(method).parameters) - 1
    return any(sum(p.required for p in s.parameters) <= given <= len(s.parameters) for s in signatures)


def test_every_class_of_the_emulation_stands_for_something():
    assert {name.removesuffix("RTX") for name in CLASSES} - set(EMULATED) == set()


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_an_emulated_class_has_names_of_the_real_one(name):
    path, kind = EMULATED[name.removesuffix("RTX")], getattr(tensorrt, name)
    known = [version for version in versions(name) if path in version.classes]
    assert known, f"no version has {path}"
    members = [member.name for member in kind] if issubclass(kind, enum.Enum) else ()
    for offered in members or public(set(vars(kind)) - HELPERS.get(name, set())):
        having = [version for version in known if version.entry(path, offered)]
        assert having, f"no version has {path}.{offered}"
        method = vars(kind).get(offered)
        if inspect.isfunction(method):
            signatures = [s.without_first() for version in having for s in version.signatures(path, offered)]
            assert takes(method, signatures), f"{path}.{offered}"


@pytest.mark.parametrize("module", [HostTensorRT, HostTensorRTX])
def test_the_emulated_module_has_names_of_the_real_one(module):
    """Those that begin with a capital, as the vendor's do."""
    for name, value in vars(module).items():
        if not name[0].isupper():
            continue
        having = [version for version in versions(module.__name__) if version.entry("", name)]
        assert having, f"no version has {name}"
        if inspect.isfunction(value):  # it makes an object, as a class does
            signatures = [s.without_first() for version in having for s in version.signatures(name, "__init__")]
            assert takes(value, signatures), name
        for member in value if isinstance(value, type) and issubclass(value, enum.Enum) else ():
            numbers = {version.members(name)[member.name] for version in having if member.name in version.members(name)}
            assert numbers, f"no version has {name}.{member.name}"
            assert not isinstance(member, int) or member.value in numbers


@pytest.mark.parametrize("pin", CUDA)
def test_the_emulated_runtime_has_names_of_the_real_one(pin):
    """Those that begin with cuda."""
    real = api(pin)
    for name, value in vars(HostCuda).items():
        if name.startswith("cuda"):
            assert real.entry("", name), f"{real.title} has no {name}"
            assert not inspect.isfunction(value) or takes(value, real.signatures("", name)), name
    for kind in (cuda.cudaError_t, cuda.cudaMemcpyKind, cuda.cudaStreamCaptureMode):
        assert {member.name: member.value for member in kind}.items() <= real.members(kind.__name__).items()
    fields = vars(HostCuda().cudaGetDeviceProperties(0)[1])
    assert [name for name in fields if name != "ordinal" and not real.entry("cudaDeviceProp", name)] == []
