"""Checkpoints as trainers save them: nested, wrapped, with prefixes, in shards; and those of models akin to VAR."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_samples import State, error_of, save_pair, save_safetensors, vae_state, var_state

from var_export.checkpoint.load import Checkpoint, load_checkpoint


def same_weights(checkpoint: Checkpoint) -> None:
    for state, expected in ((checkpoint.var_state, var_state()), (checkpoint.vae_state, vae_state())):
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[key], expected[key]) for key in expected)


def prefixed(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


def saved(folder: Path, value: Any, name: str = "mine.pt") -> Path:
    """A file of `value`, with a VQ-VAE beside it."""
    path = save_pair(folder)
    path.unlink()
    torch.save(value, folder / name)
    return folder / name


class TestNested:
    @pytest.mark.parametrize(
        "wrap",
        [
            lambda state: {"model_state_dict": state, "epoch": 3, "optimizer_state_dict": {"state": {0: {}}}},
            lambda state: {"state_dict": state, "global_step": 7},
            lambda state: {"model": state, "ema": None, "args": {"depth": 2}},
            lambda state: {"trainer": {"model": {"state_dict": state}}},
            lambda state: {"state_dict": prefixed(state, "model.") | {"criterion.weight": torch.ones(3)}},
            lambda state: {"model": state, "ema": state},  # one and the same
            lambda state: {"ema": {"n_averaged": torch.tensor(3)} | prefixed(state, "module.")},
            lambda state: {"ema.n_averaged": torch.tensor(3)} | prefixed(state, "ema.module."),
        ],
    )
    def test_the_only_one_that_fits(self, tmp_path: Path, wrap: Any) -> None:
        same_weights(load_checkpoint(saved(tmp_path, wrap(var_state()))))

    @pytest.mark.parametrize(
        "wrap",
        [
            lambda state: {"model": state},
            lambda state: {"generator_state_dict": state, "discriminator_state_dict": {"conv.weight": torch.ones(2)}},
            lambda state: {"state_dict": state | {"loss.discriminator.main.0.weight": torch.ones(2)}},
            lambda state: prefixed(state, "vae."),
        ],
    )
    def test_vae(self, tmp_path: Path, wrap: Any) -> None:
        path = save_pair(tmp_path)
        torch.save(wrap(vae_state()), tmp_path / "vae_tiny.pth")
        same_weights(load_checkpoint(path))

    def test_both_in_one_module(self, tmp_path: Path) -> None:
        both = prefixed(var_state(), "model.var.") | prefixed(vae_state(), "model.vae.")
        torch.save({"state_dict": both | {"model.loss.weight": torch.ones(1)}}, tmp_path / "last.ckpt")
        same_weights(load_checkpoint(tmp_path))

    def test_both_under_one_prefix(self, tmp_path: Path) -> None:
        torch.save({"state_dict": prefixed(var_state() | vae_state(), "net.")}, tmp_path / "last.ckpt")
        same_weights(load_checkpoint(tmp_path))

    def test_endless_nesting_ends(self, tmp_path: Path) -> None:
        endless: dict[str, Any] = {"a": 1}
        endless["b"] = endless
        assert "holds no VAR transformer and no VQ-VAE, but the keys 'a', 'b'" in error_of(saved(tmp_path, endless))

    def test_what_is_under_the_prefix_and_unknown_is_refused(self, tmp_path: Path) -> None:
        message = error_of(saved(tmp_path, prefixed(var_state() | {"adapter.weight": torch.ones(1)}, "model.")))
        assert "adapter.weight is no part of the VAR transformer" in message


class TestPrefixes:
    @pytest.mark.parametrize(
        "prefix",
        [
            "_fsdp_wrapped_module.",
            "_checkpoint_wrapped_module.",
            "_orig_mod._fsdp_wrapped_module.",
            "module.",
            "model.",
            "var.",
            "module.model._orig_mod.var.",
            "anything.",
        ],
    )
    def test_before_every_name(self, tmp_path: Path, prefix: str) -> None:
        same_weights(load_checkpoint(saved(tmp_path, prefixed(var_state(), prefix))))

    @pytest.mark.parametrize("wrapper", ["_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod", "module"])
    def test_inside_names(self, tmp_path: Path, wrapper: str) -> None:
        wrapped = {
            key.replace("blocks.0.", f"blocks.0.{wrapper}.").replace(".attn.", f".attn.{wrapper}."): value
            for key, value in prefixed(var_state(), f"{wrapper}.").items()
        }
        same_weights(load_checkpoint(saved(tmp_path, wrapped)))

    def test_flattened_pieces_of_fsdp(self, tmp_path: Path) -> None:
        message = error_of(saved(tmp_path, {"_fsdp_wrapped_module._flat_param": torch.ones(9)}))
        assert "save the state dict with StateDictType.FULL_STATE_DICT" in message


def average() -> State:
    return var_state() | {"head.bias": torch.full((16,), 0.5)}


class TestKey:
    def test_two_that_fit(self, tmp_path: Path) -> None:
        path = saved(tmp_path, {"model": var_state(), "ema": {"model": average(), "decay": 0.99}})
        assert "holds 2 state dicts of a VAR transformer: say which with --key model or --key ema.model" in error_of(
            path
        )
        for key in ("ema", "ema.model"):
            assert torch.equal(load_checkpoint(path, key=key).var_state["head.bias"], average()["head.bias"])
        same_weights(load_checkpoint(path, key="model"))  # the whole name, which is a part of the other's

    def test_each_by_its_name(self, tmp_path: Path) -> None:
        path = saved(tmp_path, {"state_dict": prefixed(var_state(), "net.") | prefixed(average(), "ema.")})
        assert "--key state_dict.net or --key state_dict.ema" in error_of(path)
        same_weights(load_checkpoint(path, key="net"))
        assert torch.equal(load_checkpoint(path, key="ema").var_state["head.bias"], average()["head.bias"])

    def test_beside_one_without_a_name(self, tmp_path: Path) -> None:
        path = saved(tmp_path, var_state() | prefixed(average(), "ema."))
        assert "with --key '' or --key ema" in error_of(path)
        same_weights(load_checkpoint(path, key=""))

    def test_of_the_vae(self, tmp_path: Path) -> None:
        path = save_pair(tmp_path)
        other = vae_state() | {"quant_conv.bias": torch.ones(4)}
        torch.save({"model": vae_state(), "ema": other}, tmp_path / "vae_tiny.pth")
        assert "vae_tiny.pth holds 2 state dicts of a VQ-VAE: say which" in error_of(path)
        assert load_checkpoint(path, key="ema").vae_state["quant_conv.bias"].tolist() == [1] * 4
        torch.save({"model": var_state()}, path)  # whose own name is another
        assert load_checkpoint(path, key="ema").vae_state["quant_conv.bias"].tolist() == [1] * 4

    def test_both_models_by_one_key(self, tmp_path: Path) -> None:
        pair = {"var": var_state(), "vae": vae_state()}
        torch.save({"model": pair, "ema": {"var": average(), "vae": vae_state()}}, tmp_path / "last.pt")
        checkpoint = load_checkpoint(tmp_path, key="ema")
        assert torch.equal(checkpoint.var_state["head.bias"], average()["head.bias"])

    @pytest.mark.parametrize("key", ["emo", "mod", "model.blocks", ""])
    def test_of_nothing(self, tmp_path: Path, key: str) -> None:
        path = saved(tmp_path, {"model": var_state(), "ema": {"step": 3}})
        assert f"holds nothing under the key {key!r}: it has model" in error_of(path, key=key)


SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"


def save_shards(folder: Path, state: State) -> Path:
    """A checkpoint in two shards with its index, as `save_pretrained` writes it, and a VQ-VAE."""
    save_pair(folder).unlink()
    keys = list(state)
    shards = {SHARDS[0]: keys[: len(keys) // 2], SHARDS[1]: keys[len(keys) // 2 :]}
    for name, held in shards.items():
        save_safetensors({key: state[key] for key in held}, folder / name)
    weight_map = {key: name for name, held in shards.items() for key in held}
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return folder


class TestShards:
    @pytest.mark.parametrize("named", ["", INDEX, *SHARDS])
    def test_named_in_any_way(self, tmp_path: Path, named: str) -> None:
        folder = save_shards(tmp_path / "my-var", var_state())
        checkpoint = load_checkpoint(folder / named)
        same_weights(checkpoint)
        assert checkpoint.sources == (*SHARDS, "vae_tiny.pth")
        assert checkpoint.config.name == "my-var"

    def test_every_shard_counts_in_the_hash(self, tmp_path: Path) -> None:
        digests = {load_checkpoint(save_shards(tmp_path / "a", var_state())).sha256}
        for k, key in enumerate((next(iter(var_state())), list(var_state())[-3])):
            other = var_state() | {key: var_state()[key] + 1}
            digests.add(load_checkpoint(save_shards(tmp_path / f"b{k}" / "a", other)).sha256)
        assert len(digests) == 3

    def test_without_an_index(self, tmp_path: Path) -> None:
        (save_shards(tmp_path, var_state()) / INDEX).unlink()
        same_weights(load_checkpoint(tmp_path))

    def test_of_torch(self, tmp_path: Path) -> None:
        save_pair(tmp_path).unlink()
        items = list(var_state().items())
        torch.save(dict(items[:9]), tmp_path / "pytorch_model-00001-of-00002.bin")
        torch.save(dict(items[9:]), tmp_path / "pytorch_model-00002-of-00002.bin")
        same_weights(load_checkpoint(tmp_path))

    def test_a_whole_file_beside_them(self, tmp_path: Path) -> None:
        save_safetensors(var_state(), save_shards(tmp_path, average()) / "model.safetensors")
        same_weights(load_checkpoint(tmp_path))

    @pytest.mark.parametrize("named", ["", INDEX, SHARDS[0]])
    def test_one_is_missing(self, tmp_path: Path, named: str) -> None:
        (save_shards(tmp_path, var_state()) / SHARDS[1]).unlink()
        message = error_of(tmp_path / named)
        assert f"needs {SHARDS[1]}, which is not beside it: put all 2 shards in one folder" in message

    def test_of_the_vae(self, tmp_path: Path) -> None:
        folder = save_shards(tmp_path / "vae", vae_state())
        path = save_pair(tmp_path / "var")
        same_weights(load_checkpoint(path, vae=folder / SHARDS[1]))

    @pytest.mark.parametrize(
        "index", ["[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": "../x"}}', '{"weight_map": 3}']
    )
    def test_bad_index(self, tmp_path: Path, index: str) -> None:
        (save_shards(tmp_path, var_state()) / INDEX).write_text(index)
        assert "is no index of shards: it needs a weight_map" in error_of(tmp_path / INDEX)

    def test_one_tensor_in_two(self, tmp_path: Path) -> None:
        folder = save_shards(tmp_path, var_state())
        save_safetensors(var_state(), folder / SHARDS[1])
        assert "which another shard holds too" in error_of(folder)


class TestFolders:
    @pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin", ".PTH"])
    def test_any_ending(self, tmp_path: Path, suffix: str) -> None:
        saved(tmp_path, var_state(), f"last{suffix}")
        same_weights(load_checkpoint(tmp_path))

    def test_beside_what_trainers_leave(self, tmp_path: Path) -> None:
        for name in ("optimizer.pt", "scheduler.pt", "training_args.bin"):
            saved(tmp_path, {"state": {}}, name)
        save_safetensors(var_state(), tmp_path / "model.safetensors")
        same_weights(load_checkpoint(tmp_path))

    def test_distributed(self, tmp_path: Path) -> None:
        (tmp_path / ".metadata").write_bytes(b"x")
        (tmp_path / "__0_0.distcp").write_bytes(b"x")
        assert "torch.distributed.checkpoint.format_utils dcp_to_torch" in error_of(tmp_path)


def renamed(state: State, *pairs: tuple[str, str]) -> State:
    for old, new in pairs:
        state = {key.replace(old, new): value for key, value in state.items()}
    return state


def without(state: State, *starts: str) -> State:
    return {key: value for key, value in state.items() if not key.startswith(starts)}


def masked(state: State) -> State:
    """With the mask of a model whose scales see themselves alone."""
    levels = state["lvl_1L"][0]
    mask = torch.where(levels[:, None] == levels[None, :], 0.0, -torch.inf)
    return state | {"attn_bias_for_masking": mask[None, None]}


ONES = torch.ones(2, 2)
RELATIVES = {  # as the public code of each names its tensors
    "VAR-CLIP": lambda: without(var_state(), "class_emb") | {"cond_proj.weight": ONES, "noise.weight": ONES},
    "Infinity": lambda: (
        without(var_state(), "pos_1LC", "blocks", "class_emb")
        | {"cfg_uncond": ONES, "text_norm.weight": ONES, "block_chunks.0.module.0.sa.mat_qkv.weight": ONES}
    ),
    "Switti": lambda: without(var_state(), "class_emb") | {"text_pooler.weight": ONES},
    "HMAR": lambda: (
        renamed(var_state(), ("blocks.", "base_blocks."), ("head.", "ns_head."))
        | {"word_embed_bias": ONES, "mask_embed.weight": ONES}
    ),
    "FlexVAR": lambda: without(var_state(), "lvl_") | {"pos_1LC": torch.ones(1, 64, 32, 32)},
}


class TestRelatives:
    @pytest.mark.parametrize("model", RELATIVES)
    @pytest.mark.parametrize("wrap", [dict, lambda state: {"trainer": {"gpt_fsdp": prefixed(state, "module.")}}])
    def test_named(self, tmp_path: Path, model: str, wrap: Any) -> None:
        message = error_of(saved(tmp_path, wrap(RELATIVES[model]())))
        assert f"is of {model}, not of VAR (it has " in message
        assert "download" not in message

    def test_hmar_before_its_second_training(self, tmp_path: Path) -> None:
        """The same names and shapes as VAR's: drawn as VAR, it would be noise."""
        assert "is of HMAR, not of VAR (it has a mask that hides other scales)" in error_of(
            saved(tmp_path, masked(var_state()))
        )
        trainer = {"trainer": {"transformer_wo_ddp": var_state(buffers=False), "vae_local": vae_state()}}
        assert "is of HMAR, not of VAR (it has transformer_wo_ddp)" in error_of(saved(tmp_path, trainer))

    @pytest.mark.parametrize(
        ("names", "model"),
        [
            (("conv_in.", "conv_in.conv."), "Infinity's tokenizer"),
            (("encoder.down.", "encoder.conv_blocks."), "LlamaGen's tokenizer, as FlexVAR uses it"),
        ],
    )
    def test_tokenizers(self, tmp_path: Path, names: tuple[str, str], model: str) -> None:
        path = save_pair(tmp_path, vae={"model": renamed(vae_state(), names)})
        assert f"is of {model}, not of VAR" in error_of(path)
