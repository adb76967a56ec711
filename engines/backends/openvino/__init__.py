"""OpenVINO: the same graphs as ONNX Runtime's, on processors and GPUs of Intel's and on any x86 or ARM CPU."""

from engines.backends.openvino.runner import OpenVinoBackend

__all__ = ["OpenVinoBackend"]
