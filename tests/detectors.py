"""Small ONNX models that find what is white, with the inputs, outputs and metadata of Ultralytics' exports."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

NAMES = {0: "cat", 1: "dog", 2: "it's"}
FAR = (8.0, 4.0, 24.0, 20.0)
"""A box that is always found, in pixels of the input."""


def save_detector(path, form, *, size=(64, 96), dynamic=False, half=False, masks=False, **metadata):
    """Write a detector for inputs of `size`, height and width; None in `metadata` leaves a fact out.

    Found are, of what is white: a dog (0.9), a dog a little beside it (0.8), a cat (0.7); and at `FAR` a dog (0.5), and
    a cat (0.1). `form`: "end to end" has the second dog left out, "raw" has columns x, y, w, h and scores of classes.
    """
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    nodes, constants = [], []

    def constant(value):
        name = f"c{len(constants)}"
        constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(operator, *inputs, **attributes):
        output = attributes.pop("output", f"n{len(nodes)}")
        nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    pixels = node("Cast", "images", to=TensorProto.FLOAT)
    white = node("Greater", node("ReduceMin", pixels, constant(np.array([1]))), constant(np.float32(0.9)))
    white = node("Cast", white, to=TensorProto.FLOAT)  # (1, 1, h, w)
    ends = []
    for last in (0, 1):
        for axis, other in ((3, 2), (2, 3)):
            line = node("ReduceMax", white, constant(np.array([other])))
            place = node("ArgMax", line, axis=axis, keepdims=0, select_last_index=last)
            place = node("Reshape", node("Cast", place, to=TensorProto.FLOAT), constant(np.array([1, 1])))
            ends.append(node("Add", place, constant(np.float32(last))))
    box = node("Concat", *ends, axis=1)  # x0, y0, x1, y1
    far = constant(np.array([FAR], np.float32))
    beside = node("Add", box, constant(np.float32(1)))
    if form == "end to end":
        found = [(box, 0.9, 1), (box, 0.7, 0), (far, 0.5, 1), (far, 0.1, 0)]
    else:
        found = [(far, 0.1, 0), (beside, 0.8, 1), (box, 0.9, 1), (far, 0.5, 1), (box, 0.7, 0)]
    weights = [[1.0] if masks else []] * len(found)
    rows = []
    for (where, score, number), weight in zip(found, weights, strict=True):
        if form == "end to end":
            rest = [score, number, *weight]
        else:
            swap = np.array([[0.5, 0, -1, 0], [0, 0.5, 0, -1], [0.5, 0, 1, 0], [0, 0.5, 0, 1]], np.float32)
            where = node("MatMul", where, constant(swap))
            rest = [score if index == number else 0.01 for index in NAMES] + weight
        rows.append(node("Concat", where, constant(np.array([rest], np.float32)), axis=1))
    output = node("Unsqueeze", node("Concat", *rows, axis=0), constant(np.array([0])))
    if form != "end to end":
        output = node("Transpose", output, perm=[0, 2, 1])
    node("Cast", output, to=kind, output="output0")
    outputs = [helper.make_tensor_value_info("output0", kind, None)]
    if masks:
        pooled = node("AveragePool", white, kernel_shape=[4, 4], strides=[4, 4])
        node("Sub", pooled, constant(np.float32(0.5)), output="output1")
        outputs.append(helper.make_tensor_value_info("output1", TensorProto.FLOAT, None))
    shape = ["batch", 3, "height", "width"] if dynamic else [1, 3, *size]
    inputs = [helper.make_tensor_value_info("images", kind, shape)]
    graph = helper.make_graph(nodes, "white", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    facts = {"names": repr(NAMES), "stride": "32", "imgsz": repr(list(size)), "task": "segment" if masks else "detect"}
    helper.set_model_props(model, {name: text for name, text in (facts | metadata).items() if text is not None})
    onnx.save(model, path)
    return path
