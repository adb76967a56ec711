"""The front door: what a user may pass, and what comes out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from checkpoint_samples import TINY, error_of, save_pair, save_safetensors, tiny, vae_state, var_state

import var_export
from engines.spec.config import ModelConfig, TransformerConfig, VaeConfig
from engines.spec.sampling import Sampling
from var_export.checkpoint.load import Checkpoint, demo_checkpoint, load_checkpoint
from var_export.checkpoint.strictness import expected_shapes

DATA = Path(var_export.__file__).parent / "data"
DEMO = DATA / "demo"

# Facts of the constructor of VARHF in the official code: what PyTorchModelHubMixin would store for TINY.
MIXIN_CONFIG = {
    "vae_kwargs": {"vocab_size": 16, "z_channels": 4, "ch": 32, "test_mode": True, "v_patch_nums": [1, 2, 3]},
    "num_classes": 5,
    "depth": 2,
    "embed_dim": 64,
    "num_heads": 2,
    "mlp_ratio": 2.0,
    "drop_rate": 0.0,
    "attn_drop_rate": 0.0,
    "drop_path_rate": 0.0,
    "norm_eps": 1e-5,
    "shared_aln": False,
    "cond_drop_rate": 0.1,
    "attn_l2_norm": True,
    "patch_nums": [1, 2, 3],
    "flash_if_available": True,
    "fused_if_available": True,
}


def same_weights(checkpoint: Checkpoint) -> None:
    for state, expected in ((checkpoint.var_state, var_state()), (checkpoint.vae_state, vae_state())):
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[key], expected[key]) for key in expected)


class TestDemo:
    def test_what_it_is(self) -> None:
        checkpoint = demo_checkpoint()
        assert checkpoint.config == ModelConfig(
            name="var-emoji-demo",
            patch_nums=(1, 2, 3, 4, 5, 6, 8),
            vae=VaeConfig(vocab_size=2048, z_channels=16, ch=32, ch_mult=(1, 1, 2, 4)),
            transformer=TransformerConfig(depth=4, width=256, heads=4, mlp_hidden=1024, num_classes=171),
        )
        assert checkpoint.config.image_size == 64
        assert checkpoint.sampling == Sampling(cfg=1.0, top_k=20, top_p=0.5)
        assert checkpoint.labels is not None
        assert len(checkpoint.labels) == 171
        assert checkpoint.labels[0] == "grinning-face-with-big-eyes"
        assert checkpoint.sources == ("var_demo.safetensors", "vae_demo.safetensors")

    def test_its_files_hold_every_official_key(self) -> None:
        checkpoint = demo_checkpoint()
        var, vae = expected_shapes(checkpoint.config)
        assert {key: tuple(tensor.shape) for key, tensor in checkpoint.var_state.items()} == var
        assert {key: tuple(tensor.shape) for key, tensor in checkpoint.vae_state.items()} == vae

    def test_weights_keep_their_stored_type(self) -> None:
        assert demo_checkpoint().var_state["head.weight"].dtype == torch.float16

    def test_the_reference_takes_it(self) -> None:
        checkpoint = demo_checkpoint()
        checkpoint.reference()

    def test_the_file_in_it_means_the_same(self) -> None:
        by_file, by_folder = load_checkpoint(DEMO / "var_demo.safetensors"), demo_checkpoint()
        assert by_file.sha256 == by_folder.sha256
        assert (by_file.sampling, by_file.labels) == (by_folder.sampling, by_folder.labels)

    def test_as_pth_without_any_other_file(self, tmp_path: Path) -> None:
        checkpoint = demo_checkpoint()
        torch.save(checkpoint.var_state, tmp_path / "var_emoji.pth")
        torch.save(checkpoint.vae_state, tmp_path / "vae_emoji.pth")
        alone = load_checkpoint(tmp_path / "var_emoji.pth", name="var-emoji-demo")
        assert alone.config == checkpoint.config
        assert alone.sampling == Sampling()
        assert alone.labels is None


class TestFormats:
    def test_flat_pth_finds_the_vae_beside_it(self, tmp_path: Path) -> None:
        checkpoint = load_checkpoint(save_pair(tmp_path))
        assert checkpoint.config == tiny(name="var_tiny")
        assert checkpoint.sources == ("var_tiny.pth", "vae_tiny.pth")
        same_weights(checkpoint)

    def test_older_torch_stream(self, tmp_path: Path) -> None:
        for name, state in (("var_old.pth", var_state()), ("vae_old.pth", vae_state())):
            torch.save(state, tmp_path / name, _use_new_zipfile_serialization=False)
        same_weights(load_checkpoint(tmp_path / "var_old.pth"))

    def test_safetensors(self, tmp_path: Path) -> None:
        save_safetensors(vae_state(), tmp_path / "vae.safetensors")
        same_weights(load_checkpoint(save_safetensors(var_state(), tmp_path / "var.safetensors")))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_stored_types(self, tmp_path: Path, dtype: torch.dtype) -> None:
        # Converted as a whole, buffers and all.
        var, vae = ({k: v.to(dtype) for k, v in state.items()} for state in (var_state(), vae_state()))
        checkpoint = load_checkpoint(save_pair(tmp_path, var=var, vae=vae))
        assert checkpoint.config.patch_nums == TINY.patch_nums
        assert {tensor.dtype for tensor in checkpoint.var_state.values()} == {dtype}

    def test_weights_are_mapped_not_read(self, tmp_path: Path) -> None:
        # The file's pages back the tensors: what is written to it later shows.
        path = save_pair(tmp_path)
        head = load_checkpoint(path).var_state["head.weight"]
        content = path.read_bytes()
        at = content.index(var_state()["head.weight"].numpy().tobytes())
        with path.open("r+b") as stream:
            stream.seek(at)
            stream.write(torch.tensor([123.0]).numpy().tobytes())
        assert head[0, 0] == 123

    @pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module.", "module._orig_mod."])
    def test_trainer_checkpoint(self, tmp_path: Path, prefix: str) -> None:
        trainer = {
            "config": {"patch_nums": (1, 2, 3), "resos": (2, 4, 6), "label_smooth": 0.0, "prog_it": 0},
            "var_wo_ddp": {prefix + key: value for key, value in var_state().items()},
            "vae_local": {prefix + key: value for key, value in vae_state().items()},
            "var_opt": {"scaler": None, "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": []}},
        }
        path = tmp_path / "ar-ckpt-best.pth"
        torch.save({"epoch": 200, "iter": 0, "trainer": trainer, "args": {"depth": 2, "pn": "1_2_3"}}, path)
        checkpoint = load_checkpoint(path)
        same_weights(checkpoint)
        assert checkpoint.config.name == "ar-ckpt-best"
        assert checkpoint.sources == ("ar-ckpt-best.pth",)
        assert load_checkpoint(tmp_path).sha256 == checkpoint.sha256

    def test_trainer_state_without_its_wrapper_takes_another_vae(self, tmp_path: Path) -> None:
        torch.save({"var_wo_ddp": var_state()}, tmp_path / "trainer.pth")
        assert "--vae FILE" in error_of(tmp_path / "trainer.pth")
        torch.save({"trainer": {"vae_local": vae_state()}}, tmp_path / "other.pth")
        same_weights(load_checkpoint(tmp_path / "trainer.pth", vae=tmp_path / "other.pth"))

    def test_wrappers_inside_keys(self, tmp_path: Path) -> None:
        compiled = {key.replace("blocks.0.", "blocks.0._orig_mod."): value for key, value in var_state().items()}
        same_weights(load_checkpoint(save_pair(tmp_path, var=compiled)))

    @pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
    def test_mixin_folder(self, tmp_path: Path, file: str) -> None:
        folder = tmp_path / "my VAR"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(MIXIN_CONFIG))
        if file.endswith("bin"):
            torch.save(var_state(), folder / file)
        else:
            save_safetensors(var_state(), folder / file)
        assert "--vae FILE" in error_of(folder)
        vae = save_safetensors(vae_state(), tmp_path / "vae.safetensors")
        checkpoint = load_checkpoint(folder, vae=vae)
        same_weights(checkpoint)
        assert checkpoint.config == tiny(name="my-VAR", var={"norm_eps": 1e-5})
        assert load_checkpoint(folder, vae=tmp_path).config == checkpoint.config

    def test_buffers_may_be_left_out(self, tmp_path: Path) -> None:
        vae = {key: value for key, value in vae_state().items() if "ema_vocab_hit" not in key}
        path = save_pair(tmp_path, vae=vae, buffers=False)
        checkpoint = load_checkpoint(path, overrides={"patch_nums": "1,2,3"})
        assert checkpoint.config.patch_nums == (1, 2, 3)


class TestFolders:
    def test_same_stem_prefers_safetensors(self, tmp_path: Path) -> None:
        save_pair(tmp_path)
        save_safetensors(var_state(), tmp_path / "var_tiny.safetensors")
        assert load_checkpoint(tmp_path).sources == ("var_tiny.safetensors", "vae_tiny.pth")

    def test_empty(self, tmp_path: Path) -> None:
        assert f"{tmp_path} holds no checkpoint" in error_of(tmp_path)

    def test_a_vae_alone(self, tmp_path: Path) -> None:
        torch.save(vae_state(), tmp_path / "vae.pth")
        assert "holds no checkpoint" in error_of(tmp_path)
        (tmp_path / "other").mkdir()
        assert "holds no VQ-VAE" in error_of(save_pair(tmp_path / "pair"), vae=tmp_path / "other")

    def test_several_models(self, tmp_path: Path) -> None:
        path = save_pair(tmp_path)
        shutil.copy(path, tmp_path / "var_more.pth")
        assert "several checkpoints (var_more.pth, var_tiny.pth): name the file" in error_of(tmp_path)
        load_checkpoint(path)

    def test_one_var_among_others(self, tmp_path: Path) -> None:
        shutil.copy(save_pair(tmp_path), tmp_path / "optimizer.pth")
        assert load_checkpoint(tmp_path).sources == ("var_tiny.pth", "vae_tiny.pth")

    def test_several_vaes(self, tmp_path: Path) -> None:
        path = save_pair(tmp_path)
        shutil.copy(tmp_path / "vae_tiny.pth", tmp_path / "vae_more.pth")
        assert "several VQ-VAEs (vae_more.pth, vae_tiny.pth): say which with --vae FILE" in error_of(path)
        assert load_checkpoint(path, vae=tmp_path / "vae_more.pth").sources[1] == "vae_more.pth"

    def test_no_such_path(self, tmp_path: Path) -> None:
        assert f"there is no file or folder {tmp_path}/missing.pth" in error_of(tmp_path / "missing.pth")
        assert "there is no file or folder" in error_of(save_pair(tmp_path), vae=tmp_path / "missing.pth")

    def test_no_vae(self, tmp_path: Path) -> None:
        torch.save(var_state(), tmp_path / "var_d16.pth")
        message = error_of(tmp_path / "var_d16.pth")
        assert "pass it with --vae FILE" in message
        assert "var_d16.pth" in message

    def test_a_folder_for_a_file(self, tmp_path: Path) -> None:
        assert "is a folder where a file is needed" in error_of(save_pair(tmp_path), config=tmp_path)

    def test_config_of_a_shared_folder_is_nobodys(self, tmp_path: Path) -> None:
        path = save_pair(tmp_path)
        (tmp_path / "config.json").write_text('{"depth": 99}')
        assert "depth = 99" in error_of(path)
        shutil.copy(path, tmp_path / "var_more.pth")
        load_checkpoint(path)

    def test_foreign_config_beside_a_file(self, tmp_path: Path) -> None:
        path = save_pair(tmp_path)
        (tmp_path / "config.json").write_text('{"architectures": ["Bert"]}')
        load_checkpoint(path)
        assert "'architectures' is no known key" in error_of(tmp_path)


class TestNames:
    def test_official(self, tmp_path: Path) -> None:
        save_pair(tmp_path)
        (tmp_path / "var_tiny.pth").rename(tmp_path / "var_d2.pth")
        assert load_checkpoint(tmp_path).config.name == "var-d2-6"
        (tmp_path / "var_d2.pth").rename(tmp_path / "var_d16.pth")  # it is not what it is called
        assert load_checkpoint(tmp_path).config.name == "var_d16"

    def test_precedence(self, tmp_path: Path) -> None:
        path = save_pair(tmp_path)
        (tmp_path / "config.json").write_text('{"model": "From config", "patch_nums": [1, 2, 3]}')
        assert load_checkpoint(path).config.name == "From-config"
        assert load_checkpoint(path, overrides={"name": "set"}).config.name == "set"
        assert load_checkpoint(path, overrides={"name": "set"}, name="given").config.name == "given"

    def test_safe_as_a_folder(self, tmp_path: Path) -> None:
        path = save_pair(tmp_path)
        assert load_checkpoint(path, name="../été / v1.0").config.name == "ete-v1.0"
        assert "cannot name a folder" in error_of(path, name="../..")
        assert "cannot name a folder" in error_of(path, overrides={"name": "//"})


class TestSampling:
    def test_official_unless_said(self, tmp_path: Path) -> None:
        path = save_pair(tmp_path)
        assert load_checkpoint(path).sampling == Sampling()
        assert load_checkpoint(path, default_cfg=0).sampling == Sampling(cfg=0.0)
        (tmp_path / "config.json").write_text('{"sampling": {"cfg": 2, "top_k": 600, "more_smooth": false}}')
        assert load_checkpoint(tmp_path).sampling == Sampling(cfg=2.0, top_k=600)
        assert load_checkpoint(tmp_path, default_cfg=0.5).sampling == Sampling(cfg=0.5, top_k=600)

    @pytest.mark.parametrize("cfg", [-1.0, float("nan"), float("inf")])
    def test_bad_guidance(self, tmp_path: Path, cfg: float) -> None:
        assert "the default guidance: sampling.cfg must" in error_of(save_pair(tmp_path), default_cfg=cfg)

    @pytest.mark.parametrize(
        ("sampling", "problem"),
        [
            ('{"top_p": 2}', "sampling.top_p must lie in 0 to 1, got 2.0"),
            ('{"temperature": 0}', "sampling.temperature must be 0.0001 or more, got 0.0"),
            ('{"top_k": "many"}', "sampling.top_k = 'many' is not a whole number"),
            ('{"steps": 3}', "sampling.steps is no known key"),
            ("3", "sampling must be a JSON object"),
        ],
    )
    def test_bad_config(self, tmp_path: Path, sampling: str, problem: str) -> None:
        save_pair(tmp_path)
        (tmp_path / "config.json").write_text(f'{{"sampling": {sampling}}}')
        assert problem in error_of(tmp_path)


class TestLabels:
    def test_none(self, tmp_path: Path) -> None:
        assert load_checkpoint(save_pair(tmp_path)).labels is None

    def test_beside_the_checkpoint(self, tmp_path: Path) -> None:
        path = save_pair(tmp_path)
        (tmp_path / "labels.txt").write_bytes("\ufeffcat\r\ndog, hound\r\n ünder \r\nd\r\ne\r\n\r\n".encode())
        assert load_checkpoint(path).labels == ("cat", "dog, hound", "ünder", "d", "e")

    def test_given(self, tmp_path: Path) -> None:
        path = save_pair(tmp_path / "pair")
        (tmp_path / "pair" / "labels.txt").write_text("wrong\n")
        (tmp_path / "mine.txt").write_text("a\nb\n\nd\ne")
        assert load_checkpoint(path, labels=tmp_path / "mine.txt").labels == ("a", "b", "", "d", "e")
        assert load_checkpoint(path).labels == ("wrong", "", "", "", "")
        assert "there is no file" in error_of(path, labels=tmp_path / "none.txt")

    def test_named_by_the_config(self, tmp_path: Path) -> None:
        path = save_pair(tmp_path / "pair")
        (tmp_path / "config.json").write_text('{"labels": "names.txt"}')
        assert "names the labels names.txt, which is not beside it" in error_of(path, config=tmp_path / "config.json")
        (tmp_path / "names.txt").write_text("a\nb\nc\nd\ne\n")
        assert load_checkpoint(path, config=tmp_path / "config.json").labels == ("a", "b", "c", "d", "e")
        (tmp_path / "config.json").write_text('{"labels": "../names.txt"}')
        assert "is not the name of a file beside it" in error_of(path, config=tmp_path / "config.json")

    def test_not_text(self, tmp_path: Path) -> None:
        path = save_pair(tmp_path)
        (tmp_path / "labels.txt").write_bytes(b"\xff\xfe\x00")
        assert "is not UTF-8 text" in error_of(path)


class TestHash:
    def test_follows_content_and_configuration(self, tmp_path: Path) -> None:
        path = save_pair(tmp_path / "a")
        digest = load_checkpoint(path, name="x").sha256
        assert len(digest) == 64
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        assert load_checkpoint(tmp_path / "b", name="x").sha256 == digest
        assert load_checkpoint(path, name="x", overrides={"quant_resi": "0.25"}).sha256 != digest
        other = vae_state()
        other["quant_conv.bias"][0] += 1
        assert load_checkpoint(save_pair(tmp_path / "c", vae=other), name="x").sha256 != digest

    def test_says_which_of_several_was_taken(self, tmp_path: Path) -> None:
        torch.save({"model": var_state(), "ema": {**var_state()}}, save_pair(tmp_path))
        digests = {load_checkpoint(tmp_path, key=key).sha256 for key in ("model", "ema")}
        assert len(digests) == 2
