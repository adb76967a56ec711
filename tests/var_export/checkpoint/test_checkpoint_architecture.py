"""The configuration that follows from tensors, what may be said besides, and what does not fit."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from checkpoint_samples import TINY, State, error_of, save_pair, tiny, vae_state, var_state

from engines.spec.config import ModelConfig, TransformerConfig
from var_export.checkpoint.architecture import KNOWN_SCALES
from var_export.checkpoint.load import load_checkpoint
from var_export.checkpoint.strictness import Shapes, expected_shapes, is_optional

D16 = ModelConfig(name="var-d16-256")
D36 = ModelConfig(
    name="var-d36-512",
    patch_nums=(1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
    transformer=TransformerConfig(depth=36, width=2304, heads=36, mlp_hidden=9216, shared_aln=True),
)

VARIANTS = [
    pytest.param(tiny(), id="plain"),
    pytest.param(tiny(var={"shared_aln": True}), id="shared_aln"),
    pytest.param(tiny(var={"attn_l2_norm": False, "heads": 1}), id="no_l2_norm"),
    pytest.param(tiny(var={"depth": 11, "heads": 4, "mlp_hidden": 96, "num_classes": 1}), id="sizes"),
    pytest.param(tiny(vae={"share_quant_resi": 1}), id="phi_shared"),
    pytest.param(tiny(vae={"share_quant_resi": 0}), id="phi_per_scale"),
    pytest.param(tiny(vae={"share_quant_resi": 7}), id="phi_of_seven"),
    pytest.param(tiny(vae={"quant_resi": 0.0}), id="no_phi"),
    pytest.param(tiny(vae={"using_sa": False}), id="no_attention"),
    pytest.param(tiny(vae={"using_mid_sa": False, "quant_conv_ks": 1}), id="no_middle_attention"),
    pytest.param(tiny(vae={"ch_mult": (2, 1, 3), "num_res_blocks": 2, "vocab_size": 9}), id="vae_sizes"),
    pytest.param(tiny(vae={"ch_mult": (1,)}), id="one_level"),
    pytest.param(tiny(patch_nums=(2, 5)), id="scales"),
]


def parameters(shapes: Shapes) -> int:
    return sum(math.prod(shape) for key, shape in shapes.items() if not is_optional(key))


class TestExpectedShapes:
    def test_facts_of_the_official_models(self) -> None:
        (var, vae), (largest, _) = expected_shapes(D16), expected_shapes(D36)
        assert (len(var), len(vae)) == (220, 324)
        assert parameters(var) == 310_283_520
        assert parameters(vae) == 108_948_355
        assert parameters(largest) == 2_353_893_904
        assert var["class_emb.weight"] == (1001, 1024)
        assert var["blocks.15.attn.scale_mul_1H11"] == (1, 16, 1, 1)
        assert var["blocks.0.ada_lin.1.weight"] == (6144, 1024)
        assert var["attn_bias_for_masking"] == (1, 1, 680, 680)
        assert largest["blocks.35.ada_gss"] == (1, 1, 6, 2304)
        assert largest["pos_1LC"] == (1, 2240, 2304)
        assert vae["encoder.down.4.attn.1.qkv.weight"] == (1920, 640, 1, 1)
        assert vae["decoder.up.3.block.0.nin_shortcut.weight"] == (320, 640, 1, 1)
        assert vae["quantize.quant_resi.qresi_ls.3.weight"] == (32, 32, 3, 3)
        assert "decoder.up.0.upsample.conv.weight" not in vae
        assert "encoder.down.4.downsample.conv.weight" not in vae


class TestInference:
    @pytest.mark.parametrize("config", VARIANTS)
    def test_from_tensors_alone(self, config: ModelConfig, tmp_path: Path) -> None:
        assert load_checkpoint(save_pair(tmp_path, config), name=config.name).config == config

    @pytest.mark.parametrize("scales", [KNOWN_SCALES[0], KNOWN_SCALES[1], KNOWN_SCALES[3]])
    def test_known_scales_without_the_buffer(self, scales: tuple[int, ...], tmp_path: Path) -> None:
        path = save_pair(tmp_path, tiny(patch_nums=scales), buffers=False)
        assert load_checkpoint(path).config.patch_nums == scales

    def test_known_scales_differ_in_their_tokens(self) -> None:
        assert len({sum(side * side for side in scales) for scales in KNOWN_SCALES}) == len(KNOWN_SCALES)

    def test_unknown_scales_without_the_buffer(self, tmp_path: Path) -> None:
        path = save_pair(tmp_path, buffers=False)
        assert "14 tokens in 3 scales" in error_of(path)
        assert "--set patch_nums=1,2,..." in error_of(path)
        for written in ("1,2,3", "1_2_3", "(1, 2, 3)"):
            assert load_checkpoint(path, overrides={"patch_nums": written}).config.patch_nums == (1, 2, 3)
        message = error_of(path, overrides={"patch_nums": "1,2,4"})
        assert "patch_nums = 1,2,4" in message
        assert "21 tokens in 3 scales" in message
        assert "14 tokens in 3 scales" in message

    def test_damaged_buffer(self, tmp_path: Path) -> None:
        state = var_state()
        state["lvl_1L"][0, 3] = 2
        assert "lvl_1L does not count square token maps" in error_of(save_pair(tmp_path, var=state))

    def test_heads_that_no_tensor_says(self, tmp_path: Path) -> None:
        path = save_pair(tmp_path, tiny(var={"attn_l2_norm": False, "width": 96, "heads": 3}))
        assert "--set heads=N" in error_of(path)
        assert load_checkpoint(path, overrides={"heads": "3"}).config.transformer.heads == 3
        assert "cannot be divided among 5 heads" in error_of(path, overrides={"heads": "5"})

    def test_groups_that_no_tensor_says(self, tmp_path: Path) -> None:
        path = save_pair(tmp_path, tiny(vae={"ch": 48, "norm_num_groups": 16}))
        message = error_of(path)
        assert "normalisation groups" in message
        assert "--set" in message
        assert load_checkpoint(path, overrides={"norm_num_groups": "16"}).config.vae.ch == 48


class TestSettings:
    def test_what_no_tensor_says(self, tmp_path: Path) -> None:
        overrides = {
            "quant_resi": "0.25",
            "vae.using_znorm": "true",
            "norm_eps": "1e-5",
            "vae.norm_eps": "1e-4",
            "transformer.heads": "2",
            "mlp_ratio": "2",
            "patch_nums": "1,2,3",
            "name": "mine",
        }
        config = load_checkpoint(save_pair(tmp_path), overrides=overrides).config
        assert config == tiny(
            name="mine", vae={"quant_resi": 0.25, "using_znorm": True, "norm_eps": 1e-4}, var={"norm_eps": 1e-5}
        )

    def test_overrides_beat_a_wrong_config(self, tmp_path: Path) -> None:
        path = save_pair(tmp_path)
        (tmp_path / "c.json").write_text('{"num_heads": 16, "vae": {"quant_resi": 0.1}}')
        message = error_of(path, config=tmp_path / "c.json")
        assert f"{tmp_path}/c.json says transformer.heads = 16, but the tensors of {path} say 2" in message
        config = load_checkpoint(path, config=tmp_path / "c.json", overrides={"heads": "2"}).config
        assert config.vae.quant_resi == 0.1

    @pytest.mark.parametrize(
        ("key", "value", "held"),
        [
            ("depth", "3", "2"),
            ("heads", "4", "2"),
            ("num_heads", "4", "2"),
            ("embed_dim", "128", "64"),
            ("mlp_ratio", "4", "2.0"),
            ("num_classes", "1000", "5"),
            ("shared_aln", "1", "False"),
            ("attn_l2_norm", "no", "True"),
            ("patch_nums", "1,2,4", "1,2,3"),
            ("vae.ch_mult", "1,1", "1,2"),
            ("vocab_size", "4096", "16"),
            ("share_quant_resi", "1", "4"),
            ("quant_resi", "0", "phi convolutions"),
        ],
    )
    def test_against_the_tensors(self, tmp_path: Path, key: str, value: str, held: str) -> None:
        message = error_of(save_pair(tmp_path), overrides={key: value})
        assert message.startswith("--set says ")
        assert f"{key.rpartition('.')[2].removeprefix('num_').replace('embed_dim', 'width')} = " in message
        assert held in message

    def test_phi_that_is_not_there(self, tmp_path: Path) -> None:
        path = save_pair(tmp_path, tiny(vae={"quant_resi": 0.0}))
        assert "vae.quant_resi = 0.5" in error_of(path, overrides={"quant_resi": "0.5"})

    def test_negative_ratio_as_in_the_official_code(self, tmp_path: Path) -> None:
        assert load_checkpoint(save_pair(tmp_path), overrides={"quant_resi": "-0.3"}).config.vae.quant_resi == 0.3

    @pytest.mark.parametrize("key", ["dpeth", "vae.depth", "dropout", "image_size", ""])
    def test_unknown(self, tmp_path: Path, key: str) -> None:
        message = error_of(save_pair(tmp_path), overrides={key: "1"})
        assert f"--set {key!r} is no known setting; known are name, patch_nums, transformer.depth" in message

    @pytest.mark.parametrize(
        ("key", "value", "expected"),
        [
            ("depth", "two", "a whole number"),
            ("depth", "2.5", "a whole number"),
            ("quant_resi", "nan", "a number"),
            ("quant_resi", "half", "a number"),
            ("using_znorm", "maybe", "true or false"),
            ("patch_nums", "1,two", "a list of whole numbers"),
            ("name", " ", "a name"),
        ],
    )
    def test_wrong_type(self, tmp_path: Path, key: str, value: str, expected: str) -> None:
        assert f"= {value!r} is not {expected}" in error_of(save_pair(tmp_path), overrides={key: value})


class TestConfigFile:
    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            ("{", "is not valid JSON"),
            ("[1]", "must hold a JSON object"),
            ('{"vae": 3}', "vae must be a JSON object"),
            ('{"dpeth": 16}', "'dpeth' is no known key"),
            ('{"vae_kwargs": {"Cvae": 16}}', "'vae.Cvae' is no known key"),
            ('{"depth": true}', "transformer.depth = True is not a whole number"),
            ('{"patch_nums": 3}', "patch_nums = 3 is not a list of whole numbers"),
            ('{"patch_nums": [1, 2, 4]}', "patch_nums = 1,2,4, but the tensors of"),
            ('{"image_size": 256}', "image_size = 256, but 6 follows"),
            ('{"var": {"head_dim": 64}}', "transformer.head_dim = 64, but 32 follows"),
            ('{"vae": {"in_channels": 1}}', "vae.in_channels = 1, but 3 follows"),
            ('{"vae_kwargs": {"v_patch_nums": [1, 2]}}', "vae.v_patch_nums = 1,2, but 1,2,3 follows"),
        ],
    )
    def test_problems(self, tmp_path: Path, content: str, problem: str) -> None:
        save_pair(tmp_path)
        (tmp_path / "config.json").write_text(content)
        message = error_of(tmp_path)
        assert str(tmp_path / "config.json") in message
        assert problem in message

    def test_own_layout_round_trips(self, tmp_path: Path) -> None:
        config = tiny(vae={"using_znorm": True, "quant_resi": 0.75})
        save_pair(tmp_path, config)
        (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
        assert load_checkpoint(tmp_path).config == config


class TestStrictness:
    def test_missing(self, tmp_path: Path) -> None:
        state = {key: value for key, value in var_state().items() if not key.startswith("blocks.1.ffn")}
        message = error_of(save_pair(tmp_path, var=state))
        assert "lacks 4 of 38 tensors of a VAR transformer" in message
        assert "(blocks.1.ffn.fc1.weight, blocks.1.ffn.fc1.bias, blocks.1.ffn.fc2.weight and 1 more)" in message
        assert "it is partial, or of another architecture; save the whole state dict" in message
        assert "download" not in message

    @pytest.mark.parametrize("key", ["pos_1LC", "class_emb.weight", "blocks.0.ffn.fc1.weight"])
    def test_missing_where_the_architecture_shows(self, tmp_path: Path, key: str) -> None:
        state = var_state()
        del state[key]
        message = error_of(save_pair(tmp_path, var=state))
        assert f"lacks at least 1 tensor of a VAR transformer ({key})" in message

    @pytest.mark.parametrize(
        "key", ["decoder.up.0.block.0.conv2.weight", "encoder.conv_in.weight", "quant_conv.weight"]
    )
    def test_missing_in_the_vae(self, tmp_path: Path, key: str) -> None:
        state = vae_state()
        del state[key]
        assert f"lacks at least 1 tensor of a VQ-VAE ({key})" in error_of(save_pair(tmp_path, vae=state))

    def test_a_gap_between_blocks(self, tmp_path: Path) -> None:
        state = {key.replace("blocks.1.", "blocks.2."): value for key, value in var_state().items()}
        assert "(blocks.1.attn.q_bias, blocks.1.attn.v_bias, " in error_of(save_pair(tmp_path, var=state))

    def test_a_vae_without_encoder(self, tmp_path: Path) -> None:
        state = {key: value for key, value in vae_state().items() if not key.startswith("encoder.")}
        assert "lacks at least 1 tensor of a VQ-VAE (encoder.conv_in.weight)" in error_of(
            save_pair(tmp_path, vae=state)
        )

    def test_unexpected(self, tmp_path: Path) -> None:
        message = error_of(save_pair(tmp_path, var=var_state() | {"lora.a": torch.zeros(1), "lora.b": torch.zeros(1)}))
        assert "lora.a, lora.b are no part of the VAR transformer" in message

    def test_wrong_shape(self, tmp_path: Path) -> None:
        state = var_state() | {"blocks.1.attn.q_bias": torch.zeros(63)}
        message = error_of(save_pair(tmp_path, var=state))
        assert "blocks.1.attn.q_bias has the shape (63,) where its other tensors ask for (64,)" in message

    @pytest.mark.parametrize("shape", [(64,), (0, 4)])
    def test_wrong_rank(self, tmp_path: Path, shape: tuple[int, ...]) -> None:
        message = error_of(save_pair(tmp_path, var=var_state() | {"word_embed.weight": torch.zeros(shape)}))
        assert f"word_embed.weight has the shape {shape}" in message

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_values(self, tmp_path: Path, dtype: torch.dtype, value: float) -> None:
        state = {key: tensor.to(dtype) for key, tensor in var_state().items()}
        state["blocks.1.attn.q_bias"][7] = value
        assert "blocks.1.attn.q_bias holds NaN or infinite values" in error_of(save_pair(tmp_path, var=state))

    def test_values_of_the_vae(self, tmp_path: Path) -> None:
        state = vae_state()
        state["quantize.ema_vocab_hit_SV"][0, 0] = math.nan  # statistics of training: nobody reads them
        load_checkpoint(save_pair(tmp_path, vae=state))
        state["quant_conv.bias"][0] = math.nan
        assert "quant_conv.bias holds NaN" in error_of(save_pair(tmp_path, vae=state))

    @pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, torch.float8_e4m3fn])
    def test_types(self, tmp_path: Path, dtype: torch.dtype) -> None:
        state = var_state() | {"head.bias": torch.zeros(16).to(dtype)}
        message = error_of(save_pair(tmp_path, var=state))
        assert f"head.bias is stored as {str(dtype).removeprefix('torch.')}" in message


class TestPairing:
    @staticmethod
    def mixed(folder: Path, vae: ModelConfig) -> Path:
        return save_pair(folder, TINY, vae=vae_state(vae))

    def test_latent_channels(self, tmp_path: Path) -> None:
        message = error_of(self.mixed(tmp_path, tiny(vae={"z_channels": 8})))
        assert "do not belong together: the transformer has 4 latent channels, the VQ-VAE 8" in message

    def test_vocabulary(self, tmp_path: Path) -> None:
        message = error_of(self.mixed(tmp_path, tiny(vae={"vocab_size": 32})))
        assert "the transformer has 16 tokens in the vocabulary, the VQ-VAE 32" in message

    def test_another_number_of_scales_in_the_statistics(self, tmp_path: Path) -> None:
        load_checkpoint(self.mixed(tmp_path, tiny(patch_nums=(1, 2, 3, 4))))

    def test_another_number_of_phis(self, tmp_path: Path) -> None:
        message = error_of(self.mixed(tmp_path, tiny(patch_nums=(1, 2, 3, 4), vae={"share_quant_resi": 0})))
        assert "one phi for each of 4 scales, but the transformer has 3 scales" in message

    def test_swapped(self, tmp_path: Path) -> None:
        path = save_pair(tmp_path)
        assert "are the two files swapped?" in error_of(tmp_path / "vae_tiny.pth", vae=path)
        assert "are the two files swapped?" in error_of(path, vae=path)
        assert "are the two files swapped?" in error_of(tmp_path / "vae_tiny.pth", vae=tmp_path / "vae_tiny.pth")
        assert "holds a VQ-VAE, not a VAR transformer" in error_of(tmp_path / "vae_tiny.pth")

    def test_widths_of_no_vae(self, tmp_path: Path) -> None:
        state: State = vae_state() | {"encoder.conv_in.weight": torch.zeros(33, 3, 3, 3)}
        assert "are not multiples of the encoder's 33" in error_of(save_pair(tmp_path, vae=state))
