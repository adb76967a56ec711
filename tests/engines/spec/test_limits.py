"""Numbers that no model has are refused before anything is made of them, and so is a golden run of another form."""

import time

import numpy as np
import pytest

from engines.errors import UsageError
from engines.spec.config import ModelConfig, TransformerConfig, VaeConfig
from engines.spec.golden_run import GoldenForm
from engines.spec.sampling import RECOMMENDED

HUGE = (10**12, 10**400, -1, -(10**400))
CONFIG = ModelConfig(
    name="tiny",
    patch_nums=(1, 2),
    vae=VaeConfig(vocab_size=16, z_channels=4, ch=32, ch_mult=(1, 2), num_res_blocks=1),
    transformer=TransformerConfig(depth=1, width=64, heads=1, mlp_hidden=64, num_classes=5),
)


@pytest.mark.parametrize("value", HUGE)
@pytest.mark.parametrize(
    "name",
    ["vocab_size", "z_channels", "ch", "num_res_blocks", "quant_conv_ks", "share_quant_resi", "norm_num_groups"],
)
def test_a_vae_of_sizes_that_none_has(name, value):
    with pytest.raises(UsageError, match=rf"vae\.{name} must lie in"):
        VaeConfig(**{name: value})


@pytest.mark.parametrize("value", HUGE)
@pytest.mark.parametrize("name", ["depth", "width", "heads", "mlp_hidden", "num_classes"])
def test_a_transformer_of_sizes_that_none_has(name, value):
    with pytest.raises(UsageError, match=rf"transformer\.{name} must lie in"):
        TransformerConfig(**{name: value})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"patch_nums": (1, 10**9)}, "patch_nums must lie in 1 to"),
        ({"patch_nums": (0, 1)}, "patch_nums must lie in 1 to"),
        ({"patch_nums": tuple(range(1, 1000))}, "patch_nums needs 2 to"),
        ({"patch_nums": (1, 1)}, "must grow"),
        ({"patch_nums": (1, 512), "vae": VaeConfig(ch_mult=(1,) * 10)}, "give images of"),
    ],
)
def test_scales_that_no_model_has(changes, says):
    with pytest.raises(UsageError, match=says):
        ModelConfig(name="odd", **changes)


def test_levels_that_no_model_has():
    for levels in ((), (1,) * 1000, (10**9,)):
        with pytest.raises(UsageError, match="ch_mult"):
            VaeConfig(ch_mult=levels)


def test_the_largest_configuration_is_counted_at_once():
    from engines.spec.contract import GRAPHS, resolve

    start = time.monotonic()
    large = ModelConfig(name="large", transformer=TransformerConfig(depth=1024), vae=VaeConfig(share_quant_resi=1024))
    assert len(resolve(GRAPHS["step"], large, "fp32")[0]) > 2048
    assert time.monotonic() - start < 5


def golden(**changes):
    V, T, S, R = 16, 5, 2, 4
    arrays = {
        "classes": np.zeros(2, np.int64),
        "seeds": np.zeros(2, np.uint64),
        **{option.name: np.ones(2, option.dtype) for option in RECOMMENDED},
        "tokens": np.full((2, T), V - 1, np.int64),
        "f_hat": np.zeros((2, 4, S, S), np.float32),
        "image": np.zeros((2, R, R, 3), np.uint8),
        "top_index": np.zeros((2, T, 3), np.int32),
        "top_logit": np.zeros((2, T, 3), np.float32),
        "log_sum_exp": np.zeros((2, T)),
        "encoded": np.zeros((2, T), np.int64),
    }
    return arrays | changes


def judged(arrays):
    form = GoldenForm(CONFIG, smooth=False)
    for name in form.names:
        form.accept(name, arrays[name].dtype, arrays[name].shape)
    form.check_values(arrays)


def test_a_golden_run_as_it_should_be():
    judged(golden())
    assert set(GoldenForm(CONFIG, smooth=False).names) == set(golden())
    assert {"mixed", "heaviest", "smooth_image"} <= set(GoldenForm(CONFIG, smooth=True).names)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tokens": np.zeros((2, 5), np.int32)}, r"tokens is int32 \(2, 5\), and not int64 \(G, T\)"),
        ({"tokens": np.zeros((3, 5), np.int64)}, "tokens is"),
        ({"tokens": np.zeros(10, np.int64)}, "tokens is"),
        ({"classes": np.zeros(0, np.int64)}, "classes is"),
        ({"classes": np.zeros(2000, np.int64)}, "classes is"),
        ({"top_index": np.zeros((2, 5, 17), np.int32)}, "top_index is"),
        ({"top_logit": np.zeros((2, 5, 4), np.float32)}, "top_logit is"),
        ({"image": np.zeros((2, 4, 4, 4), np.uint8)}, "image is"),
        ({"tokens": np.full((2, 5), 16)}, "tokens must lie in 0 to 15"),
        ({"encoded": np.full((2, 5), -1)}, "encoded must lie in 0 to 15"),
        ({"classes": np.array([0, 6])}, "classes must lie in 0 to 5"),
        ({"f_hat": np.full((2, 4, 2, 2), np.nan, np.float32)}, "f_hat holds NaN"),
        ({"log_sum_exp": np.full((2, 5), np.inf)}, "log_sum_exp holds NaN or infinite"),
    ],
)
def test_a_golden_run_of_another_form(changes, says):
    with pytest.raises(ValueError, match=says):
        judged(golden(**changes))
