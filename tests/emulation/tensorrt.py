"""`tensorrt` over ONNX Runtime: plans are small JSON texts that name an ONNX file and its profiles."""

from __future__ import annotations

import enum
import json

import numpy as np

from tests.emulation.cuda import POISON_BYTE

NUMPY = {"tensor(float)": "FLOAT", "tensor(float16)": "HALF", "tensor(int64)": "INT64", "tensor(bool)": "BOOL"}
NUMPY |= {"tensor(uint8)": "UINT8"}
ITEM = {"FLOAT": np.float32, "HALF": np.float16, "INT64": np.int64, "BOOL": np.bool_, "UINT8": np.uint8}


class Severity(enum.Enum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class Logger:
    Severity = Severity

    def __init__(self):
        pass


class Monitor:
    def __init__(self):
        pass


def _enum(name, members):
    return enum.Enum(name, members)


class HostTensorRT:
    """The module. `empty`: engines that compute nothing, to time what surrounds them."""

    ILogger, IProgressMonitor = Logger, Monitor
    BuilderFlag = _enum("BuilderFlag", "TF32 WEIGHT_STREAMING SPARSE_WEIGHTS")
    NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", {"STRONGLY_TYPED": 1})
    MemoryPoolType = _enum("MemoryPoolType", "WORKSPACE TACTIC_DRAM")
    HardwareCompatibilityLevel = _enum("HardwareCompatibilityLevel", "NONE AMPERE_PLUS")
    PreviewFeature = _enum("PreviewFeature", "RUNTIME_ACTIVATION_RESIZE_10_10")
    ExecutionContextAllocationStrategy = _enum("Strategy", "STATIC ON_PROFILE_CHANGE USER_MANAGED")
    DataType = _enum("DataType", "FLOAT HALF BF16 INT64 BOOL UINT8")

    def __init__(self, cuda, *, version="10.3.0", empty=False):
        self.cuda, self.__version__, self.empty = cuda, version, empty
        self.deserialized = 0
        self.contexts = []
        self.sessions = {}
        self.builds = []

    def Runtime(self, logger):
        return Runtime(self, logger)

    def Builder(self, logger):
        return Builder(self, logger)

    def OnnxParser(self, network, logger):
        return Parser(network, logger)

    def session(self, file):
        if file not in self.sessions:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            self.sessions[file] = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        return self.sessions[file]


class Builder:
    def __init__(self, module, logger):
        self.module, self.logger = module, logger

    def create_network(self, flags):
        assert flags == 1 << 1, "the network must be strongly typed"
        return Network()

    def create_builder_config(self):
        return Config()

    def create_optimization_profile(self):
        return Profile()

    def build_serialized_network(self, network, config):
        self.module.builds.append((network.file, config))
        monitor = config.progress_monitor
        monitor.phase_start("Building Engine", None, 2)
        for step in range(2):
            if not monitor.step_complete("Building Engine", step):
                return None
        monitor.phase_finish("Building Engine")
        return json.dumps({"onnx": network.file, "profiles": [p.shapes for p in config.profiles]}).encode()


class Network:
    file = None


class Parser:
    def __init__(self, network, logger):
        self.network, self.logger, self.num_errors = network, logger, 0

    def parse_from_file(self, file):
        self.network.file = file
        return True


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
    hardware_compatibility_level = HostTensorRT.HardwareCompatibilityLevel.NONE
    progress_monitor = None

    def __init__(self):
        self.flags, self.pools, self.profiles = {HostTensorRT.BuilderFlag.TF32}, {}, []
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


class Runtime:
    def __init__(self, module, logger):
        self.module, self.logger = module, logger

    def deserialize_cuda_engine(self, data):
        self.module.deserialized += 1
        return Engine(self.module, json.loads(bytes(data)))


class Engine:
    def __init__(self, module, plan):
        self.module, self.plan = module, plan
        self.session = module.session(plan["onnx"])
        self.tensors = {t.name: t for t in (*self.session.get_inputs(), *self.session.get_outputs())}
        self.inputs = [t.name for t in self.session.get_inputs()]
        self.outputs = [t.name for t in self.session.get_outputs()]
        self.num_io_tensors = len(self.tensors)
        self.num_optimization_profiles = len(plan["profiles"])
        self.weight_streaming_budget_v2 = 0

    def get_weight_streaming_automatic_budget(self):
        return 12345

    def get_tensor_name(self, index):
        return list(self.tensors)[index]

    def get_tensor_dtype(self, name):
        return HostTensorRT.DataType[NUMPY[self.tensors[name].type]]

    def get_tensor_profile_shape(self, name, profile):
        return [tuple(shape) for shape in self.plan["profiles"][profile][name]]

    def create_execution_context(self, strategy):
        assert strategy == HostTensorRT.ExecutionContextAllocationStrategy.USER_MANAGED
        context = Context(self)
        self.module.contexts.append(context)
        return context


class Context:
    """Scratch memory grows with the profile, so that a shared one really has to grow."""

    def __init__(self, engine):
        self.engine, self.module = engine, engine.module
        self.profile, self.shapes, self.addresses, self.memory = None, {}, {}, None

    def set_optimization_profile_async(self, profile, stream):
        assert stream in self.module.cuda.streams
        self.profile = self.engine.plan["profiles"][profile]
        return True

    def set_input_shape(self, name, shape):
        least, _, most = self.profile[name]
        if not all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True)):
            return False
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name, address):
        assert address % 256 == 0
        self.addresses[name] = address
        return name in self.engine.tensors

    def update_device_memory_size_for_shapes(self):
        assert set(self.shapes) == set(self.profile), "every varying input needs its shape first"
        return 4096 * (1 + sum(int(np.prod(shape)) for shape in self.shapes.values()) % 7)

    def set_device_memory(self, address, size):
        assert size >= self.update_device_memory_size_for_shapes()
        self.memory = (address, size)

    def execute_async_v3(self, stream):
        assert set(self.addresses) == set(self.engine.tensors), "a tensor has no address"
        assert self.memory is not None, "no scratch memory"
        self.module.cuda.enqueue(stream, self._work)
        return True

    def _work(self):
        cuda = self.module.cuda
        address, size = self.memory
        cuda.region(address, size)[:] = POISON_BYTE
        if self.module.empty:
            return
        inputs = {name: self._tensor(name, self._shape(name)) for name in self.engine.inputs}
        inputs = {name: value.copy() for name, value in inputs.items()}
        for name in self.engine.outputs:  # to the end of the allocation: what is cached later is not there yet
            cuda.region(self.addresses[name], 0, to_end=True)[:] = POISON_BYTE
        for name, value in zip(self.engine.outputs, self.engine.session.run(None, inputs), strict=True):
            self._tensor(name, value.shape)[...] = value
        cuda.check_guards()

    def _shape(self, name):
        return self.shapes.get(name) or tuple(self.engine.tensors[name].shape)

    def _tensor(self, name, shape):
        kind = np.dtype(ITEM[NUMPY[self.engine.tensors[name].type]])
        size = int(np.prod(shape)) * kind.itemsize
        return self.module.cuda.region(self.addresses[name], size).view(kind).reshape(shape)
