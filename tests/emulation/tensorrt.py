"""`tensorrt` and `tensorrt_rtx` over ONNX Runtime: plans are small JSON texts with an ONNX file and its profiles."""

from __future__ import annotations

import enum
import json
import weakref
from pathlib import Path
from typing import NamedTuple

import numpy as np

from engines.spec import contract
from tests.emulation.cuda import POISON_BYTE

KINDS = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "BF16": np.uint16,
    "INT64": np.int64,
    "BOOL": np.bool_,
    "UINT8": np.uint8,
}
OF_ONNX = {"tensor(float)": "FLOAT", "tensor(float16)": "HALF", "tensor(int64)": "INT64"}
OF_ONNX |= {"tensor(bool)": "BOOL", "tensor(uint8)": "UINT8"}
OF_CONTRACT = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16"}
OF_CONTRACT |= {"int64": "INT64", "bool": "BOOL", "uint8": "UINT8"}
STREAMING_BUDGET = 12345
_SESSIONS = {}


class Severity(enum.Enum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class Logger:
    Severity = Severity

    def __init__(self):
        pass


class Monitor:
    def __init__(self):
        pass


class Tensor(NamedTuple):
    name: str
    is_input: bool
    kind: str
    shape: list


def _enum(name, members):
    return enum.Enum(name, members)


class HostTensorRT:
    """The module.

    Args:
        cuda: the `HostCuda` that it runs on.
        version: as `__version__` says.
        empty: engines compute nothing, to time what surrounds them.
        model: a pair of ModelConfig and precision: tensors come from the contract, and no ONNX file is read.

    """

    ILogger, IProgressMonitor = Logger, Monitor
    BuilderFlag = _enum("BuilderFlag", "TF32 WEIGHT_STREAMING SPARSE_WEIGHTS")
    NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", {"STRONGLY_TYPED": 1})
    MemoryPoolType = _enum("MemoryPoolType", "WORKSPACE TACTIC_DRAM")
    HardwareCompatibilityLevel = _enum("HardwareCompatibilityLevel", "NONE AMPERE_PLUS")
    PreviewFeature = _enum("PreviewFeature", "RUNTIME_ACTIVATION_RESIZE_10_10")
    ExecutionContextAllocationStrategy = _enum("Strategy", "STATIC ON_PROFILE_CHANGE USER_MANAGED")
    DataType = _enum("DataType", list(KINDS))

    def __init__(self, cuda, *, version="10.3.0", empty=False, model=None):
        self.cuda, self.__version__, self.empty, self.model = cuda, version, empty, model
        self.deserialized = 0
        self.builds = []
        """Pairs of the ONNX file and the configuration, one per build."""
        self.during_build = lambda file: None
        """Called twice per build, from the thread that builds."""
        self.parse_errors = []
        """Pairs of a text and the name of a node: with any, the parser refuses every file."""
        self.scratch = {}
        """Bytes of scratch memory by graph, where a test wants a certain size."""
        self.engines, self.contexts = weakref.WeakSet(), weakref.WeakSet()
        self.contexts_made = 0

    def Runtime(self, logger):
        return Runtime(self, logger)

    def Builder(self, logger):
        return Builder(self, logger)

    def OnnxParser(self, network, logger):
        return Parser(self, network, logger)

    def config(self):
        return Config(self)

    def engine(self, plan):
        return Engine(self, plan)

    def context(self, engine):
        return Context(engine)

    def session(self, file):
        """One for all tests: loading takes longer than running."""
        key = (file, Path(file).stat().st_mtime_ns)
        if key not in _SESSIONS:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            _SESSIONS[key] = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        return _SESSIONS[key]

    def tensors(self, file):
        """What goes into a graph and comes out of it."""
        if self.model is not None:
            inputs, outputs = contract.resolve(contract.GRAPHS[Path(file).stem], *self.model)
            return [
                Tensor(info.name, given, OF_CONTRACT[info.dtype], list(info.shape))
                for given, infos in ((True, inputs), (False, outputs))
                for info in infos
            ]
        session = self.session(file)
        return [
            Tensor(node.name, given, OF_ONNX[node.type], list(node.shape))
            for given, nodes in ((True, session.get_inputs()), (False, session.get_outputs()))
            for node in nodes
        ]

    def addresses(self, graph, *names):
        """Where these tensors of a graph are bound, in all contexts."""
        contexts = [context for context in self.contexts if context.engine.graph == graph]
        return {context.addresses[name] for context in contexts for name in names if name in context.addresses}


class HostTensorRTX(HostTensorRT):
    """What TensorRT-RTX has beyond TensorRT."""

    BuilderFlag = _enum("BuilderFlag", "TF32 WEIGHT_STREAMING SPARSE_WEIGHTS REQUIRE_USER_ALLOCATION")
    ComputeCapability = _enum("ComputeCapability", "NONE CURRENT SM75 SM80 SM86 SM89 SM120 SM121")
    EngineValidity = _enum("EngineValidity", "VALID SUBOPTIMAL INVALID")

    def __init__(self, cuda, *, version="1.7.1.116", **options):
        super().__init__(cuda, version=version, **options)
        self.validity = self.EngineValidity.VALID
        self.capturable = True

    def Runtime(self, logger):
        return RuntimeRTX(self, logger)

    def config(self):
        return ConfigRTX(self)

    def engine(self, plan):
        return EngineRTX(self, plan)

    def context(self, engine):
        return ContextRTX(engine)


class Builder:
    def __init__(self, module, logger):
        self.module, self.logger = module, logger

    def create_network(self, flags):
        assert flags == 1 << 1, "the network must be strongly typed"
        return Network()

    def create_builder_config(self):
        return self.module.config()

    def create_optimization_profile(self):
        return Profile()

    def build_serialized_network(self, network, config):
        self.module.builds.append((network.file, config))
        monitor = config.progress_monitor
        monitor.phase_start("Building Engine", None, 2)
        for step in range(2):
            self.module.during_build(network.file)
            monitor.phase_start("Timing", "Building Engine", 1)
            if not monitor.step_complete("Timing", 0):
                return None
            monitor.phase_finish("Timing")
            if not monitor.step_complete("Building Engine", step):
                return None
        monitor.phase_finish("Building Engine")
        return json.dumps(
            {
                "onnx": network.file,
                "tensors": self.module.tensors(network.file),
                "profiles": [profile.shapes for profile in config.profiles],
            }
        ).encode()


class Network:
    file = None


class Parser:
    def __init__(self, module, network, logger):
        self.module, self.network, self.logger = module, network, logger

    @property
    def num_errors(self):
        return len(self.module.parse_errors)

    def get_error(self, index):
        return ParserError(*self.module.parse_errors[index])

    def parse_from_file(self, file):
        self.network.file = file
        return not self.num_errors


class ParserError:
    def __init__(self, text, node):
        self._text, self._node = text, node

    def desc(self):
        return self._text

    def node_name(self):
        return self._node


class Profile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, name, least, usual, most):
        assert all(a <= b <= c for a, b, c in zip(least, usual, most, strict=True))
        self.shapes[name] = (least, usual, most)


class TimingCache:
    def __init__(self, data):
        self.data = data

    def serialize(self):
        return self.data + b"timed;"


class Config:
    max_aux_streams = 0
    builder_optimization_level = 3
    progress_monitor = None

    def __init__(self, module):
        self.hardware_compatibility_level = module.HardwareCompatibilityLevel.NONE
        self.flags, self.pools, self.profiles = {module.BuilderFlag.TF32}, {}, []
        self.cache, self.features = None, {}

    def set_flag(self, flag):
        self.flags.add(flag)

    def clear_flag(self, flag):
        self.flags.discard(flag)

    def set_memory_pool_limit(self, pool, size):
        self.pools[pool] = size

    def set_preview_feature(self, feature, on):
        self.features[feature] = on

    def add_optimization_profile(self, profile):
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, data):
        return TimingCache(data)

    def set_timing_cache(self, cache, ignore_mismatch):
        self.cache = cache
        return not cache.data.startswith(b"other GPU")

    def get_timing_cache(self):
        return self.cache


class ConfigRTX(Config):
    num_compute_capabilities = 0

    def __init__(self, module):
        super().__init__(module)
        self.capabilities = {}

    def set_compute_capability(self, capability, index):
        assert 0 <= index < self.num_compute_capabilities
        self.capabilities[index] = capability
        return True


class Runtime:
    def __init__(self, module, logger):
        self.module, self.logger = module, logger

    def deserialize_cuda_engine(self, data):
        self.module.deserialized += 1
        return self.module.engine(json.loads(bytes(data)))


class RuntimeRTX(Runtime):
    engine_header_size = 64

    def get_engine_validity(self, header):
        assert len(header) == self.engine_header_size
        return self.module.validity, 7


class Engine:
    def __init__(self, module, plan):
        self.module, self.plan, self.graph = module, plan, Path(plan["onnx"]).stem
        self.tensors = {entry[0]: Tensor(*entry) for entry in plan["tensors"]}
        self.inputs = [tensor.name for tensor in self.tensors.values() if tensor.is_input]
        self.outputs = [tensor.name for tensor in self.tensors.values() if not tensor.is_input]
        self.num_io_tensors = len(self.tensors)
        self.num_optimization_profiles = len(plan["profiles"])
        self.budget, self.contexts_made = None, 0
        module.engines.add(self)

    @property
    def weight_streaming_budget_v2(self):
        return self.budget

    @weight_streaming_budget_v2.setter
    def weight_streaming_budget_v2(self, budget):
        assert not self.contexts_made, "the budget must be set before the first context"
        self.budget = budget

    def get_weight_streaming_automatic_budget(self):
        return STREAMING_BUDGET

    def get_tensor_name(self, index):
        return list(self.tensors)[index]

    def get_tensor_dtype(self, name):
        return self.module.DataType[self.tensors[name].kind]

    def get_tensor_profile_shape(self, name, profile):
        return [tuple(shape) for shape in self.plan["profiles"][profile][name]]

    def create_execution_context(self, strategy):
        assert self.strategy(strategy) == self.module.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self.module.context(self)
        self.module.contexts.add(context)
        self.module.contexts_made += 1
        self.contexts_made += 1
        return context

    @staticmethod
    def strategy(given):
        return given


class EngineRTX(Engine):
    def create_runtime_config(self):
        return RuntimeConfig()

    @staticmethod
    def strategy(given):
        """Of a runtime configuration; making a context compiles its kernels."""
        given.cache.kernels += b"kernel;"
        return given.strategy


class RuntimeConfig:
    strategy = cache = None

    def set_execution_context_allocation_strategy(self, strategy):
        self.strategy = strategy

    def create_runtime_cache(self):
        return RuntimeCache()

    def set_runtime_cache(self, cache):
        self.cache = cache
        return True


class RuntimeCache:
    kernels = b""

    def deserialize(self, data):
        if not data.startswith(b"kernel;"):
            return False
        self.kernels = data
        return True

    def serialize(self):
        return self.kernels


class Bound(NamedTuple):
    memory: tuple
    addresses: dict
    shapes: dict


class Context:
    """Scratch memory grows with the profile, so that a shared one really has to grow."""

    def __init__(self, engine):
        self.engine, self.module, self.require = engine, engine.module, engine.module.cuda.require
        self.profile, self.shapes, self.addresses, self.memory = None, {}, {}, None

    def set_optimization_profile_async(self, profile, stream):
        self.require(stream in self.module.cuda.streams, "a profile is set on a stream that is none")
        self.profile = self.engine.plan["profiles"][profile]
        return True

    def set_input_shape(self, name, shape):
        least, _, most = self.profile[name]
        if not all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True)):
            return False
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name, address):
        self.require(address % 256 == 0, f"the address of {name} is no multiple of 256")
        self.addresses[name] = address
        return name in self.engine.tensors

    def update_device_memory_size_for_shapes(self):
        self.require(set(self.shapes) == set(self.profile), "every varying input needs its shape first")
        if self.engine.graph in self.module.scratch:
            return self.module.scratch[self.engine.graph]
        return 4096 * (1 + sum(int(np.prod(shape)) for shape in self.shapes.values()) % 7)

    def set_device_memory(self, address, size):
        self.require(size >= self.update_device_memory_size_for_shapes(), "the scratch memory is too small")
        self.memory = (address, size)

    def execute_async_v3(self, stream):
        self.require(set(self.addresses) == set(self.engine.tensors), "a tensor has no address")
        self.require(self.memory is not None, "no scratch memory")
        # A CUDA graph records addresses; and who frees the context while its work is due frees it too early.
        alive, cuda, bound = weakref.ref(self), self.module.cuda, Bound(self.memory, dict(self.addresses), self.shapes)

        def work():
            context = alive()
            cuda.require(context is not None, "a context was freed before its work was done")
            context.compute(bound)

        cuda.enqueue(stream, work)
        return True

    def compute(self, bound):
        """Inputs are read, then outputs and scratch memory are poisoned, then results written."""
        cuda, engine = self.module.cuda, self.engine
        cuda.region(*bound.memory)[:] = POISON_BYTE
        if self.module.empty:
            return

        def tensor(name, shape):
            kind = np.dtype(KINDS[engine.tensors[name].kind])
            size = int(np.prod(shape)) * kind.itemsize
            return cuda.region(bound.addresses[name], size).view(kind).reshape(shape)

        shapes = {name: bound.shapes.get(name) or tuple(engine.tensors[name].shape) for name in engine.inputs}
        inputs = {name: tensor(name, shape).copy() for name, shape in shapes.items()}
        for name in engine.outputs:  # to the end of the allocation: what is cached later is not there yet
            cuda.region(bound.addresses[name], 0, to_end=True)[:] = POISON_BYTE
        results = self.module.session(engine.plan["onnx"]).run(engine.outputs, inputs)
        for name, value in zip(engine.outputs, results, strict=True):
            tensor(name, value.shape)[...] = value
        cuda.check_guards()


class ContextRTX(Context):
    def is_stream_capturable(self, stream):
        return self.module.capturable
