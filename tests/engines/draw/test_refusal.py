"""Values that are not finite end in an error, never in a picture: in each graph, in both forms."""

import contextlib

import numpy as np
import onnx
import pytest
from support import copy_bundle, reseal

from engines.draw.pipeline import Pipeline
from engines.draw.refusal import require_finite
from engines.errors import NotFiniteError
from engines.spec.marks import stripes
from tests.bundles import shared_bundle

WEIGHTS = {
    "head": ("step", "trunk.head.weight"),
    "decoder": ("decode", "layers.1.conv_out.weight"),
    "encoder": ("encode", "layers.1.weight"),
}


def spoilt(tmp_path, which, value):
    """The tiny model with one weight that is not finite."""
    graph, name = WEIGHTS[which]
    folder = copy_bundle(shared_bundle("tiny-fp32", current=True), tmp_path)
    model = onnx.load(folder / f"{graph}.onnx", load_external_data=False)
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == name]
    offset = int(next(entry.value for entry in tensor.external_data if entry.key == "offset"))
    with (folder / "weights.bin").open("r+b") as file:
        file.seek(offset)
        file.write(np.float32(value).tobytes())
    reseal(folder)
    return folder


@contextlib.contextmanager
def fails(tmp_path, which, value, words, form="stepwise"):
    """A pipeline with that weight, which ends what is done with it in an error that says these words."""
    with (
        Pipeline.load(spoilt(tmp_path / which, which, value), form=form, threads=1, check="never") as pipeline,
        pytest.raises(NotFiniteError, match=words),
    ):
        yield pipeline


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("form", ["stepwise", "fused"])
def test_no_picture_is_drawn(form, value, tmp_path):
    words = "the logits of scale 0 are not finite; build the bundle with --precision bf16 or fp32"
    with fails(tmp_path, "head", value, words, form) as pipeline:
        pipeline.generate([0, 1], seeds=1)
    with fails(tmp_path, "decoder", value, "the decoder's values are not finite", form) as pipeline:
        pipeline.generate([0, 1], seeds=1)


@pytest.mark.slow
def test_no_preview_is_shown(tmp_path):
    with fails(tmp_path, "decoder", np.nan, "decoder") as pipeline:
        next(pipeline.stream([0, 1], seeds=1))
    with fails(tmp_path, "head", np.nan, "logits of scale 0") as pipeline:
        list(pipeline.stream([0, 1], seeds=1, preview_scales=[]))


@pytest.mark.slow
def test_no_picture_is_encoded(tmp_path):
    with fails(tmp_path, "encoder", np.nan, "the encoder's features are not finite") as pipeline:
        size = pipeline.config.image_size
        pipeline.encode(np.zeros((1, size, size, 3), np.uint8))


@pytest.mark.slow
def test_one_feature_map_of_several(tmp_path):
    with Pipeline.load(shared_bundle("tiny-fp32", current=True), form="stepwise", threads=1) as pipeline:
        f_hat = pipeline.accumulate(np.zeros((3, pipeline.config.num_tokens), np.int64))
        pipeline.decode_features(f_hat)
        f_hat[1, 0, 0, 0] = np.nan
        with pytest.raises(NotFiniteError, match="decoder"):
            pipeline.decode_features(f_hat)


def test_pictures_that_look_alike_are_pictures():
    config = Pipeline.load(threads=1, check="never").config
    row = stripes(64)
    striped = np.broadcast_to(row[None, None, :, None], (2, 64, 64, 3)).copy()
    striped[:, 63, 63, 2] ^= 1
    require_finite(config, {"image": striped})
    require_finite(
        config, {"image": np.zeros((1, 64, 64, 3), np.uint8), "drawn": np.zeros((1, config.num_tokens), int)}
    )
    striped[1, 63, 63, 2] ^= 1
    with pytest.raises(NotFiniteError):
        require_finite(config, {"image": striped})
    drawn = np.zeros((2, config.num_tokens), int)
    drawn[1, -1] = -1
    with pytest.raises(NotFiniteError, match=f"scale {config.num_scales - 1}"):
        require_finite(config, {"drawn": drawn})
