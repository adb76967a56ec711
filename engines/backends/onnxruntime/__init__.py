"""ONNX Runtime: the backend that runs anywhere, and the numerical ground truth of the others.

library.py    the module onnxruntime, the libraries that it needs for a GPU, and its words as errors of ours
providers.py  what a session computes on: options, compiled shapes, and proof that it does
runner.py     a bundle's graphs -> the backend that the scale loop drives
"""

from engines.backends.onnxruntime.library import import_onnxruntime
from engines.backends.onnxruntime.providers import PROVIDERS
from engines.backends.onnxruntime.runner import OnnxRuntimeBackend

__all__ = ["PROVIDERS", "OnnxRuntimeBackend", "import_onnxruntime"]
