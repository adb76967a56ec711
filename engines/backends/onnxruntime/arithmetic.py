"""Whether this processor's integer kernels are exact, found out by running one.

ONNX Runtime multiplies 8-bit activations (unsigned) by 8-bit weights (signed). On x86 without VNNI instructions its
kernels add pairs of products in 16 bits, which saturates: an INT8 bundle then draws other pictures, in silence. The
session option `session.x64quantprecision` takes exact kernels in their place. It is set only where the probe below
finds saturation, since the exact kernels are slower on a processor that has VNNI. Processor flags are not asked: they
lie under emulation, and know nothing of ONNX Runtime's own choice of a kernel.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np

PROBE = Path(__file__).with_name("integer_product.onnx")
"""MatMulInteger of activations uint8 (4, 64) and weights int8 (64, 16), all 127 -> int32 (4, 16).

Zero points are given: without them, versions 1.23 and 1.24 end the process where they load it with `OPTION`."""
OPTION = "session.x64quantprecision"


def exact_products(ort: Any, options: Any) -> None:
    """Make the CPU's sessions of these `SessionOptions` multiply 8-bit integers exactly, on any processor."""
    if saturates(ort):
        options.add_session_config_entry(OPTION, "1")


@functools.cache
def saturates(ort: Any) -> bool:
    """True where the default kernels of this ONNX Runtime give another sum than 64 products of 255 and 127 have."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(PROBE), options, providers=["CPUExecutionProvider"])
    (sums,) = session.run(None, {"activations": np.full((4, 64), 255, np.uint8)})
    return not bool((sums == 64 * 255 * 127).all())
