"""ONNX Runtime with one thread where nothing asks for more: several processes of tests share the cores."""

import onnxruntime

_THREADS = onnxruntime.SessionOptions.intra_op_num_threads


class OneThread(onnxruntime.SessionOptions):
    """Session options whose 0 threads, which mean one for each core, are one."""

    def __init__(self):
        super().__init__()
        self.intra_op_num_threads = 0

    @property
    def intra_op_num_threads(self):
        return _THREADS.__get__(self)

    @intra_op_num_threads.setter
    def intra_op_num_threads(self, count):
        _THREADS.__set__(self, count or 1)


def limit_onnxruntime():
    onnxruntime.SessionOptions = OneThread
