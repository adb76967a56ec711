"""8-bit products are exact in every CPU session, whatever the processor's own kernels do."""

import numpy as np
import onnxruntime
import pytest

from engines.backends.onnxruntime.arithmetic import PROBE, exact_products, saturates


def product(options):
    session = onnxruntime.InferenceSession(str(PROBE), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"activations": np.full((4, 64), 255, np.uint8)})[0]


def test_sessions_multiply_exactly():
    options = onnxruntime.SessionOptions()
    exact_products(onnxruntime, options)
    assert (product(options) == 64 * 255 * 127).all()


def test_the_probe_says_what_the_default_kernels_do():
    exact = (product(onnxruntime.SessionOptions()) == 64 * 255 * 127).all()
    assert saturates(onnxruntime) != exact


def test_exact_kernels_are_taken_only_where_the_others_saturate():
    options = onnxruntime.SessionOptions()
    exact_products(onnxruntime, options)
    if saturates(onnxruntime):
        assert options.get_session_config_entry("session.x64quantprecision") == "1"
    else:
        with pytest.raises(RuntimeError):
            options.get_session_config_entry("session.x64quantprecision")
