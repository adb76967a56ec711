"""A GPU that is none: `cuda.bindings.runtime` and `tensorrt` as far as this project uses them, in host memory.

`HostCuda` keeps a real queue per stream, so work is done only when somebody waits for it, and real memory with
guard bytes around each allocation. `HostTensorRT` "builds" plans that name an ONNX graph and its profiles, and runs
them with ONNX Runtime on the bound addresses. Wrong offsets, shapes, profiles, lifetimes and missing waits show;
speed and kernels do not: nothing here says anything about those.

`hollow_bundle` makes a bundle of any model without its weights, for what does not depend on numbers; `fill_hollow` its
files alone, for a build that is to seal them.
"""

from tests.emulation.bundles import fill_hollow, hollow_bundle
from tests.emulation.cuda import HostCuda, Misuse
from tests.emulation.tensorrt import HostTensorRT, HostTensorRTX

__all__ = ["HostCuda", "HostTensorRT", "HostTensorRTX", "Misuse", "fill_hollow", "hollow_bundle"]
