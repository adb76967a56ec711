"""Every choice that is made by a word: what a bundle, a function or an option takes. Imports nothing, for `--help`."""

FLOAT_PRECISIONS = ("fp32", "fp16", "bf16")
INT8, INT4 = "int8", "int4"
QUANTISED = (INT8, INT4)
"""Precisions that are made from a bundle in floating point; INT4 is INT8 with some of the weights in 4 bits."""
PRECISIONS = (*FLOAT_PRECISIONS, *QUANTISED)

STEPWISE, FUSED, BOTH = "stepwise", "fused", "both"
FORMS = (STEPWISE, FUSED)
"""How an image is drawn: scale by scale, or in one graph."""
BUNDLE_FORMS = (*FORMS, BOTH)

ONNXRUNTIME, OPENVINO, TENSORRT, TENSORRT_RTX = "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"
PLAN_TARGETS = (TENSORRT, TENSORRT_RTX)
"""Runtimes whose plans are built on, or for, one GPU."""
TARGETS = (ONNXRUNTIME, *PLAN_TARGETS)
"""What `build --target` prepares a bundle for."""
BACKENDS = (ONNXRUNTIME, OPENVINO, *PLAN_TARGETS)
"""Runtimes that draw."""
Device = int | str
"""What computes: a GPU as CUDA counts them, or a device as OpenVINO names it."""
OPENVINO_DEVICES = ("CPU", "GPU", "AUTO")
"""What OpenVINO computes on; of several, the second is called GPU.1. Its NPUs take fixed shapes alone."""

F32, BF16 = "f32", "bf16"
PRECISION_HINTS = (F32, BF16, "f16")
"""What OpenVINO computes floating point in."""


def device_of(text: str) -> Device:
    """A device as an option or a setting has it: a number, or a name in any case."""
    return int(text) if text.isdecimal() else text.upper()


PROVIDERS = ("cpu", "cuda", "tensorrt", "nv_tensorrt_rtx", "webgpu")
"""What ONNX Runtime computes on."""
HARDWARE_COMPATIBILITY = ("none", "ampere+", "same-sm")
"""Other GPUs that a TensorRT plan may run on."""

HIGH_PRECISIONS = {ONNXRUNTIME: "fp32", TENSORRT: "fp16"}
"""The precision of what a quantised bundle leaves in floating point, by the runtime that its graphs are made for."""
GRAPH_TARGETS = tuple(HIGH_PRECISIONS)
"""Runtimes that graphs are made for; those of `tensorrt` serve `tensorrt-rtx` too."""
LEVELS = (1, 2, 3)
"""How much of a model is quantised. INT8: 1 convolutions, 2 also qkv, proj and fc1, 3 also fc2 and head. INT4, what has
weights of 4 bits: 1 qkv and proj, 2 also fc2, 3 also fc1."""
DEFAULT_LEVEL = 2
RANGES = ("minmax", "percentile", "entropy", "mse")
"""How the range of an activation is chosen from its statistics, see `calib.choose.ranges`."""

TOGETHER = 64
"""Images that one of two models drafts before it makes room in memory for the other, which refines them."""

ORDERS = ("turn", "class")
"""How the images of a job lie: the classes in turn, so that every part of it has all; or class after class."""
CHECKS = ("once", "always", "never")
"""When a device judges itself before it draws with a bundle: the first time, at each load, or not at all."""

DEFAULT_MAX_TOP_K = 900
"""Longest list of likely tokens that a bundle sorts, unless it was built otherwise."""
FITS = ("crop", "stretch", "pad")
"""How a picture becomes the model's square."""
PREVIEWS = ("strip", "webp", "gif")
"""How the image after each scale is shown: side by side in one picture, or as an animation."""
CHECKPOINT_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
"""Endings of the files of a checkpoint: of two that differ in their ending alone, the earlier one here is read."""
