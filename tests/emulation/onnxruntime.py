"""`onnxruntime` with providers for an emulated GPU, over the real one's CPU provider.

A session takes the addresses that are bound, and computes there when the stream that it was given gets to it: nothing
is done before somebody waits. What a real CUDA provider does was looked at with onnxruntime-gpu 1.31.1: shape
arithmetic goes to the CPU, everything else to the GPU, and inputs are wanted there.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnxruntime

from tests.emulation.cuda import POISON_BYTE

NVIDIA = 0x10DE
SHAPES_ON_CPU = {"Concat"}
KINDS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}
KINDS |= {"tensor(bool)": np.bool_, "tensor(uint8)": np.uint8}
GPU_PROVIDERS = ("TensorrtExecutionProvider", "CUDAExecutionProvider")
RTX = "NvTensorRTRTXExecutionProvider"
CPU = "CPUExecutionProvider"
SILENT = "disable_synchronize_execution_providers"
_SESSIONS = {}


class Options(onnxruntime.SessionOptions):
    """Session options that remember the devices of a plugin."""

    plugin = None

    def add_provider_for_devices(self, devices, settings):
        (device,) = devices
        self.plugin = [(device.ep_name, dict(settings))]


class HostOnnxRuntime:
    """The module.

    Args:
        cuda: the `HostCuda` that it runs on.
        providers: of the build, beside the CPU's.
        on_cpu: operator types that the GPU providers have no kernel for, beside shape arithmetic.
        left_by_tensorrt: operator types that TensorRT leaves to the CUDA provider; None: it takes nothing.
        wanted_on_cpu: inputs that a kernel reads on the host.
        failing: raised by every run.

    """

    SessionOptions, RunOptions, OrtDevice = Options, onnxruntime.RunOptions, onnxruntime.OrtDevice
    __version__, cuda_version, __file__ = "1.31.1", "", "/nowhere/onnxruntime/__init__.py"

    def __init__(
        self, cuda, *, providers=GPU_PROVIDERS, on_cpu=(), left_by_tensorrt=(), wanted_on_cpu=(), failing=None
    ):
        self.cuda, self.providers, self.on_cpu = cuda, providers, set(on_cpu)
        self.left_by_tensorrt, self.wanted_on_cpu = left_by_tensorrt, wanted_on_cpu
        self.failing = failing
        self.sessions, self.plugins = [], []
        self.waits = 0
        self.InferenceSession = type("InferenceSession", (Session,), {"module": self})

    def get_available_providers(self):
        return [*self.providers, CPU]

    def register_execution_provider_library(self, name, path):
        self.plugins.append((name, path))

    def get_ep_devices(self):
        found = [SimpleNamespace(ep_name=CPU, ep_options={})]
        if self.plugins:
            numbers = range(self.cuda.devices)
            found += [SimpleNamespace(ep_name=RTX, ep_options={"device_id": str(n)}) for n in reversed(numbers)]
        return found


class Session:
    module: HostOnnxRuntime

    def __init__(self, path, options, *, providers=None, enable_fallback=1):
        assert enable_fallback == 0, "ONNX Runtime would go on with another provider"
        assert options.get_session_config_entry("session.record_ep_graph_assignment_info") == "1"
        self.registered = providers or options.plugin
        self.stream = int(self.registered[0][1]["user_compute_stream"])
        self.module.cuda.require(self.stream in self.module.cuda.streams, "a session on a stream that is not there")
        if path not in _SESSIONS:
            plain = onnxruntime.SessionOptions()
            plain.log_severity_level = 4
            plain.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
            _SESSIONS[path] = onnxruntime.InferenceSession(path, plain, providers=[CPU])
        self.real = _SESSIONS[path]
        self.tensors = {t.name: t for t in (*self.real.get_inputs(), *self.real.get_outputs())}
        self.inputs = [t.name for t in self.real.get_inputs()]
        self.outputs = [t.name for t in self.real.get_outputs()]
        self.module.sessions.append(self)

    def get_providers(self):
        return [*(name for name, _ in self.registered), CPU]

    def get_inputs(self):
        return self.real.get_inputs()

    def get_input_memory_infos(self):
        here = SimpleNamespace(name="Cuda", device_vendor_id=NVIDIA, device_id=self.device)
        host = SimpleNamespace(name="Cpu", device_vendor_id=0, device_id=0)
        return [host if name in self.module.wanted_on_cpu else here for name in self.inputs]

    @property
    def device(self):
        return int(self.registered[0][1].get("device_id", 0))

    def get_provider_graph_assignment_info(self):
        def of(operator):
            if operator in SHAPES_ON_CPU | self.module.on_cpu:
                return CPU
            first, *others = (name for name, _ in self.registered)
            left = self.module.left_by_tensorrt
            return others[0] if others and (left is None or operator in left) else first

        nodes = [node for part in self.real.get_provider_graph_assignment_info() for node in part.get_nodes()]
        return [SimpleNamespace(ep_name=of(node.op_type), get_nodes=lambda node=node: [node]) for node in nodes]

    def io_binding(self):
        return Binding(self)

    def run_with_iobinding(self, binding, run_options):
        cuda = self.module.cuda
        if self.module.failing is not None:
            raise self.module.failing
        cuda.require(set(binding.bound) == set(self.tensors), "a tensor is not bound")
        cuda.enqueue(self.stream, lambda: self._work(dict(binding.bound)))
        if run_options.get_run_config_entry(SILENT) != "1":
            self.module.waits += 1
            cuda.drain()

    def _work(self, bound):
        cuda = self.module.cuda
        inputs = {name: self._tensor(*bound[name]).copy() for name in self.inputs}
        for name in self.outputs:  # to the end of the allocation: what is cached later is not there yet
            cuda.region(bound[name][1], 0, to_end=True)[:] = POISON_BYTE
        for name, value in zip(self.outputs, self.real.run(None, inputs), strict=True):
            self._tensor(*bound[name])[...] = value
        cuda.check_guards()

    def _tensor(self, kind, address, shape):
        size = int(np.prod(shape)) * kind.itemsize
        return self.module.cuda.region(address, size).view(kind).reshape(shape)


class Binding:
    """Addresses of a session's tensors; refuses what ONNX Runtime refuses."""

    def __init__(self, session):
        self.session, self.bound = session, {}

    def _bind(self, name, place, device, kind, shape, address):
        cuda, tensor = self.session.module.cuda, self.session.tensors[name]
        assert (place, device) == ("cuda", self.session.device)
        assert np.dtype(kind) == KINDS[tensor.type], name
        assert len(shape) == len(tensor.shape), name
        for size, dim in zip(shape, tensor.shape, strict=True):
            assert isinstance(dim, str) or size == dim, name
        cuda.region(address, int(np.prod(shape)) * np.dtype(kind).itemsize)
        self.bound[name] = (np.dtype(kind), address, tuple(shape))

    bind_input = bind_output = _bind
