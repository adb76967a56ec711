"""The worker process on an emulated GPU."""

import sys

import engines.backends.cuda
from engines.backends.tensorrt import library
from tests import traces
from tests.emulation import HostCuda, HostTensorRT, HostTensorRTX
from var_export.gpu_check import building
from var_export.gpu_check.worker import main

cuda = HostCuda(name="Emulated GPU", capability=(8, 9))
modules = {"tensorrt": HostTensorRT(cuda), "tensorrt-rtx": HostTensorRTX(cuda)}
engines.backends.cuda.import_cuda_runtime = lambda: cuda
library.load = lambda name: library.Library(library.FLAVOURS[name], modules[name])


def build(job, tell, bundle=building.bundle):
    tell("loading PyTorch")
    traces.install()
    return bundle(job, tell)


building.bundle = build

if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
