"""The check of test_api_conformance.py finds mistakes: each of these is one, or looks like one and is none."""

import textwrap

import pytest

from tests.bindings import CUDA, TENSORRT, api, scan
from tests.bindings.api import parse
from tests.bindings.source import Source, read

OLD, MIDDLE, NEW, RTX = "tensorrt-10.3.0", "tensorrt-10.16.1.11", "tensorrt-11.4.0.106", "tensorrt-rtx-1.7.1.116"

START = """
import contextlib
from typing import Any
from engines.backends.cuda import Cuda
from engines.backends.tensorrt.library import Library

FLAGS = {"a": "TF32", "b": "FP16"}

def use(library: Library, cuda: Cuda, name: str, anything: Any) -> None:
    trt = library.trt
    builder = library.check(trt.Builder(library.logger), "")
    config = library.check(builder.create_builder_config(), "")
    Cuda(0)
    engine = trt.Runtime(library.logger).deserialize_cuda_engine(b"")
    context = engine.create_execution_context()
"""


def found(pin, code):
    body = textwrap.indent(textwrap.dedent(code), "    ")
    beside = [read("engines.backends.cuda"), read("engines.backends.tensorrt.library")]
    return scan([Source("snippet", START + body)], api(pin), beside=beside)


def test_the_start_of_each_snippet_is_right():
    for pin in (*TENSORRT, *CUDA):
        assert found(pin, "pass").problems == []


MISTAKES = {
    "method": ("config.set_flagg(trt.BuilderFlag.TF32)", "no IBuilderConfig.set_flagg"),
    "member": ("config.set_flag(trt.BuilderFlag.TF33)", "no BuilderFlag.TF33"),
    "class": ("trt.Bilder(library.logger)", "no Bilder"),
    "nested": ("trt.ILogger.Severity.LOUD", "no ILogger.Severity.LOUD"),
    "set": ("config.progres_monitor = None", "no IBuilderConfig.progres_monitor"),
    "read-only": ("config.num_optimization_profiles = 2", "IBuilderConfig.num_optimization_profiles cannot be set"),
    "keyword": (
        'config.set_timing_cache(config.create_timing_cache(b""), ignore=False)',
        "no IBuilderConfig.set_timing_cache for",
    ),
    "too many": ("builder.create_network(1, 2)", "no Builder.create_network for"),
    "too few": ("config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE)", "set_memory_pool_limit for"),
    "constructor": ("trt.OnnxParser(library.logger)", "no OnnxParser.__init__ for"),
    "other enum": ("config.set_flag(trt.MemoryPoolType.WORKSPACE)", "no IBuilderConfig.set_flag for"),
    "other object": ("builder.build_serialized_network(config, config)", "no Builder.build_serialized_network for"),
    "starred": ("builder.create_network(*[1])", "write the arguments out"),
    "by name": ('getattr(trt.BuilderFlag, "TF33")', "no BuilderFlag.TF33"),
    "set by name": ('setattr(config, "num_optimization_profiles", 2)', "cannot be set"),
    "table": ('for flag in ("TF32", "TF33"): getattr(trt.BuilderFlag, flag)', "no BuilderFlag.TF33"),
    "any name": ("getattr(config, name)", "may ask for any name"),
    "any object": ("anything.run()", "what anything is cannot be told"),
    "through a function": ("contextlib.closing(config).thing", "what contextlib.closing(config) is cannot be told"),
    "in a list": ("for each in [config]: each.set_flagg(1)", "no IBuilderConfig.set_flagg"),
    "in a dictionary": ('{"a": config}["a"].set_flagg(1)', "no IBuilderConfig.set_flagg"),
    "in a dictionary's items": ("[c.set_flagg(1) for _, c in {1: config}.items()]", "no IBuilderConfig.set_flagg"),
    "in a lambda": ("run = lambda: config.set_flagg(1)", "no IBuilderConfig.set_flagg"),
    "in an f-string": ('f"{config.flagg}"', "no IBuilderConfig.flagg"),
    "in another function": ("def run(it: Any) -> None: it.set_flagg(1)\nrun(config)", "no IBuilderConfig.set_flagg"),
    "from another function": ("def make() -> Any: return config\nmake().set_flagg(1)", "no IBuilderConfig.set_flagg"),
    "in an attribute": (
        """
        class Holder:
            def __init__(self, it: Any) -> None:
                self.it = it
            def run(self) -> None:
                self.it.set_flagg(1)
        Holder(config)
        """,
        "no IBuilderConfig.set_flagg",
    ),
    "never called back": (
        """
        class Monitor(trt.IProgressMonitor):
            def phase_begin(self, phase_name: str, parent_phase: str, num_steps: int) -> None: ...
        """,
        "calls no method phase_begin",
    ),
    "called back otherwise": (
        "class Monitor(trt.IProgressMonitor):\n    def step_complete(self, step: int) -> bool: ...",
        "calls IProgressMonitor.step_complete with other arguments",
    ),
    "inherited": (
        "class Monitor(trt.IProgressMonitor):\n    pass\nMonitor().phase_begin",
        "no IProgressMonitor.phase_begin",
    ),
    "flavour": ('if library.flavour.name == "tensorrt_rtx": pass', "is no flavour"),
}


@pytest.mark.parametrize("pin", [OLD, NEW])
@pytest.mark.parametrize(("code", "problem"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_found_in_every_version(pin, code, problem):
    assert any(problem in each for each in found(pin, code).problems)


UNGUARDED = {
    "removed": ("config.set_flag(trt.BuilderFlag.FP16)", (OLD, MIDDLE)),
    "removed, by table": ("config.set_flag(getattr(trt.BuilderFlag, FLAGS[name]))", (OLD, MIDDLE)),
    "RTX's own": ("context.is_stream_capturable(0)", (RTX,)),
    "newer": ("trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY", (MIDDLE, NEW, RTX)),
    "newer overload": ("engine.create_execution_context(engine.create_runtime_config())", (MIDDLE, NEW, RTX)),
}


@pytest.mark.parametrize("pin", [OLD, MIDDLE, NEW, RTX])
@pytest.mark.parametrize(("code", "known"), UNGUARDED.values(), ids=UNGUARDED)
def test_a_name_that_only_some_versions_have_is_found_in_the_others(pin, code, known):
    assert bool(found(pin, code).problems) is (pin not in known)


GUARDED = {
    "if": 'if hasattr(trt.BuilderFlag, "FP16"): config.set_flag(trt.BuilderFlag.FP16)',
    "and": 'if hasattr(context, "is_stream_capturable") and not context.is_stream_capturable(0): pass',
    "or": 'if not hasattr(context, "is_stream_capturable") or context.is_stream_capturable(0): pass',
    "expression": 'flag = trt.BuilderFlag.FP16 if hasattr(trt.BuilderFlag, "FP16") else trt.BuilderFlag.TF32',
    "early return": 'if not hasattr(context, "is_stream_capturable"): return\ncontext.is_stream_capturable(0)',
    "what comes with it": 'if hasattr(trt, "EngineValidity"): trt.Runtime(library.logger).engine_header_size',
    "flavour": 'if library.flavour.name == "tensorrt-rtx": context.is_stream_capturable(0)',
    "other flavour": 'if library.flavour.name != "tensorrt-rtx": return\ncontext.is_stream_capturable(0)',
    "table": """
        if not hasattr(trt.BuilderFlag, FLAGS[name]):
            raise ValueError
        config.set_flag(getattr(trt.BuilderFlag, FLAGS[name]))
        """,
    "any name": "if hasattr(config, name): setattr(config, name, 1)",
    "what is there": "[getattr(config, each) for each in dir(config)]",
    "a function of its own": """
        def only_rtx(it: Any) -> None:
            it.is_stream_capturable(0)
        if library.flavour.name == "tensorrt-rtx":
            only_rtx(context)
        """,
    "a class of its own": """
        class OnlyRtx:
            def __init__(self, it: Any) -> None:
                self.it = it
            def run(self) -> None:
                self.it.is_stream_capturable(0)
        if hasattr(context, "is_stream_capturable"):
            OnlyRtx(context).run()
        """,
}


@pytest.mark.parametrize("pin", [OLD, NEW, RTX])
@pytest.mark.parametrize("code", GUARDED.values(), ids=GUARDED)
def test_code_that_asks_first_passes(pin, code):
    assert found(pin, code).problems == []


def test_a_guard_does_not_reach_past_its_branch():
    code = 'if hasattr(context, "is_stream_capturable"): pass\ncontext.is_stream_capturable(0)'
    assert found(OLD, code).problems
    assert found(OLD, 'if not hasattr(context, "is_stream_capturable"): context.is_stream_capturable(0)').problems


def test_what_is_asked_for_is_kept():
    guards = found(OLD, 'if hasattr(config, "set_flagg"): config.set_flagg(1)').guards
    assert guards["IBuilderConfig.set_flagg"] is False


CUDA_MISTAKES = {
    "function": ('cuda.call("cudaMalocHost", 1, doing="")', "no function cudaMalocHost"),
    "either": ('cuda.call("cudaFree" if name else "cudaFreee", 1, doing="")', "no function cudaFreee"),
    "too few": ('cuda.call("cudaMemcpyAsync", 1, 2, 3, doing="")', "no cudaMemcpyAsync for"),
    "too many": ('cuda.call("cudaMalloc", 1, 2, doing="")', "no cudaMalloc for"),
    "direct": ("cuda.runtime.cudaMalloc(1, 2)", "no cudaMalloc for"),
    "other enum": (
        'cuda.call("cudaMemcpyAsync", 1, 2, 3, cuda.runtime.cudaError_t.cudaSuccess, 4, doing="")',
        "no cudaMemcpyAsync for",
    ),
    "member": ("cuda.runtime.cudaMemcpyKind.cudaMemcpyHostToGpu", "no cudaMemcpyKind.cudaMemcpyHostToGpu"),
    "constant": ("cuda.runtime.cudaStreamBlocking", "no cudaStreamBlocking"),
    "field": ('cuda.call("cudaGetDeviceProperties", 0, doing="").memory', "no cudaDeviceProp.memory"),
    "results": ('free, total, rest = cuda.call("cudaMemGetInfo", doing="")', "gives 2 values, not 3"),
    "direct results": ("status, free = cuda.runtime.cudaMemGetInfo()", "gives 3 values, not 2"),
    "any name": ('cuda.call(name, doing="")', "cannot be told; write its name"),
    "starred": ('cuda.call("cudaMalloc", *[1], doing="")', "write the arguments out"),
}


@pytest.mark.parametrize("pin", [CUDA[0], CUDA[-1]])
@pytest.mark.parametrize(("code", "problem"), CUDA_MISTAKES.values(), ids=CUDA_MISTAKES)
def test_a_mistake_with_cuda_is_found(pin, code, problem):
    assert any(problem in each for each in found(pin, code).problems)


@pytest.mark.parametrize(
    ("text", "parameters", "returns"),
    [
        ("f(self: a.B, flags: int = 0) -> a.C", ["self", "flags"], "a.C"),
        ("f(s: a.E = <E.STATIC: 0>, f: Callable[[int, str], None] = None) -> list[a.B]", ["s", "f"], "list[a.B]"),
        ("f(dst, size_t count, kind: 'K', unsigned long long flags)", ["dst", "count", "kind", "flags"], ""),
        ("f() -> int", [], "int"),
        ("f(arg0: a.B) -> None", ["arg0"], "None"),
    ],
)
def test_signatures_are_read(text, parameters, returns):
    signature = parse(text)
    assert [parameter.name for parameter in signature.parameters] == parameters
    assert signature.returns == returns


def test_signatures_take_what_python_would_pass():
    signature = parse("f(a, b: int, c: int = 0) -> None")
    assert signature.assign(2, []) and signature.assign(1, ["b", "c"])
    assert signature.assign(1, []) is None  # b is missing
    assert signature.assign(2, ["b"]) is None  # b twice
    assert signature.assign(2, ["d"]) is None
    assert signature.assign(4, []) is None
    assert parse("f(arg0: int) -> None").assign(0, ["arg0"]) is None  # pybind11's word for a parameter without a name
    assert parse("f(*args, **kwargs)") is None
