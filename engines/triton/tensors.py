"""The one table of what requests and responses hold. Configurations, models, client and docs read it."""

from __future__ import annotations

from dataclasses import dataclass

from engines.spec.config import ModelConfig


@dataclass(frozen=True)
class Tensor:
    """One input or output; every one has a leading axis of the images of its request."""

    name: str
    dtype: str
    """Triton's name, as requests spell it."""
    dims: tuple[str, ...]
    """Without the axis of images: numbers or names."""
    meaning: str


INPUTS = (
    Tensor("class", "INT64", ("1",), "index; the number of classes stands for no class"),
    Tensor("label", "BYTES", ("1",), "instead of `class`: a label of the bundle in any case, or `none`"),
    Tensor("seed", "UINT64", ("1",), "decides the draws; 0 where it is not given"),
    Tensor("cfg", "FP32", ("1",), "guidance; 0 is none, and half the work"),
    Tensor("temperature", "FP32", ("1",), "divides the logits"),
    Tensor("top_k", "INT64", ("1",), "most likely tokens kept; 0 keeps all"),
    Tensor("top_p", "FP32", ("1",), "probability mass kept; 0 keeps all"),
    Tensor("smooth", "BOOL", ("1",), "mix codebook entries; of bundles built with smoothing"),
)
IMAGE = Tensor("image", "UINT8", ("R", "R", "3"), "RGB")
OUTPUTS = (IMAGE, Tensor("tokens", "INT64", ("T",), "token maps of all scales, coarse to fine"))
STREAM_OUTPUTS = (
    IMAGE,
    Tensor("tokens", "INT64", ("-1",), "token maps so far, coarse to fine"),
    Tensor("scale", "INT32", ("1",), "the scale after which the image was decoded"),
    Tensor("final", "BOOL", ("1",), "true with the last image"),
)
PREVIEW_SCALES = "preview_scales"
"""Request parameter of the streaming model: the scales to show, as `0,3,6`, or `none` but the last; all by default."""
CANCEL = "cancel_token"
"""Request parameter between the two models of a repository; see `engines.triton.flags`."""


def dims_of(tensor: Tensor, config: ModelConfig) -> list[int]:
    """Numbers for the dimensions of a tensor; -1 varies."""
    sizes = {"R": config.image_size, "T": config.num_tokens}
    return [sizes[dim] if dim in sizes else int(dim) for dim in tensor.dims]
