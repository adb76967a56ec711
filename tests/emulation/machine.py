"""A machine with an emulated GPU, and TensorRT on it, where the code looks for a real one."""

import gc

import engines.backends.cuda
from engines.backends.tensorrt import library
from engines.backends.tensorrt.build import build_plans
from engines.backends.tensorrt.options import PlanOptions
from engines.backends.tensorrt.profiles import BatchRange
from engines.draw.pipeline import Pipeline
from engines.errors import BackendError
from tests.emulation.cuda import HostCuda
from tests.emulation.tensorrt import HostTensorRT, HostTensorRTX


class Emulation:
    """One GPU and what is installed for it; `patch` is pytest's monkeypatch."""

    def __init__(self, patch, *, rtx=False, version=None, model=None, empty=False, **cuda_options):
        self.cuda = HostCuda(**cuda_options)
        named = {} if version is None else {"version": version}
        self.trt = (HostTensorRTX if rtx else HostTensorRT)(self.cuda, model=model, empty=empty, **named)
        self.target = "tensorrt-rtx" if rtx else "tensorrt"
        self.pipelines = []
        patch.setattr(engines.backends.cuda, "import_cuda_runtime", lambda: self.cuda)
        patch.setattr(library, "load", self._library)

    def _library(self, name):
        if name != self.target:
            raise BackendError(f"{name} is not installed here")
        return library.Library(library.FLAVOURS[name], self.trt)

    def build(self, path, batch="1:1:8", *, progress=lambda line, done: None, **options):
        return build_plans(path, self.target, PlanOptions(batch=BatchRange.parse(batch), **options), progress=progress)

    def load(self, path, **options):
        options.setdefault("check", "never")  # bundles without weights compute nothing that could be held to anything
        pipeline = Pipeline.load(path, backend=self.target, **options)
        self.pipelines.append(pipeline)
        return pipeline

    def poison(self):
        """Spoil all memory but the constants, as another image would leave it."""
        constants = self.trt.addresses("step", "up", "down", "pos_next", "phi_index", "mixing")
        first_map = self.trt.addresses("step", "f_hat") - self.trt.addresses("step", "f_hat_out")
        self.cuda.poison(keep=constants | first_map)

    def close(self):
        """Nothing that was done was wrong, and nothing is left of it."""
        for pipeline in self.pipelines:
            pipeline.close()
        self.pipelines.clear()
        if self.cuda.leaks() or self.trt.contexts or self.trt.engines:  # with torch loaded, a collection takes 0.2 s
            gc.collect()
        assert self.cuda.violations == []
        assert self.cuda.leaks() == {}
        assert self.cuda.freed == self.cuda.total_allocations
        assert not self.trt.contexts
        assert not self.trt.engines
