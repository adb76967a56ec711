"""`hf://` names, against a stand-in of the Hub on this machine."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from checkpoint_samples import error_of, save_pair, save_safetensors, tiny, vae_state, var_state

from engines.errors import CheckpointError
from engines.hub import HubFile, parse_hub_name
from engines.packages import install_command
from tests.hub_server import Hub
from var_export.checkpoint.load import load_checkpoint


def serve_official(hub: Hub) -> None:
    folder = hub.root / "owner" / "var"
    save_pair(folder)
    (folder / "var_tiny.pth").rename(folder / "var_d2.pth")
    (folder / "vae_tiny.pth").rename(folder / "vae_ch160v4096z32.pth")


class TestNames:
    @pytest.mark.parametrize(
        ("name", "file"),
        [
            ("hf://owner/repo/var_d16.pth", HubFile("owner/repo", "var_d16.pth")),
            ("hf://a-b/c.d/e/f.pth", HubFile("a-b/c.d", "e/f.pth")),
            ("hf://owner/repo@v1/x.pth", HubFile("owner/repo", "x.pth", "v1")),
            (Path("hf://owner/repo/x.pth"), HubFile("owner/repo", "x.pth")),
        ],
    )
    def test_parse(self, name: str, file: HubFile) -> None:
        assert parse_hub_name(name) == file
        assert parse_hub_name(file.url) == file

    @pytest.mark.parametrize(
        "name", ["hf://", "hf://owner", "hf://owner/repo", "hf://owner/repo/", "hf://owner/repo@v1"]
    )
    def test_no_file(self, name: str) -> None:
        assert "names no file of a repository: write hf://owner/repo/path/to/file" in error_of(name)


class TestDownload:
    def test_the_official_vae_comes_along(self, hub: Hub) -> None:
        serve_official(hub)
        checkpoint = load_checkpoint("hf://owner/var/var_d2.pth")
        assert checkpoint.config == tiny(name="var-d2-6")
        assert checkpoint.sources == ("var_d2.pth", "vae_ch160v4096z32.pth")
        assert torch.equal(checkpoint.var_state["pos_1LC"], var_state()["pos_1LC"])

    def test_comes_from_the_cache_afterwards(self, hub: Hub) -> None:
        serve_official(hub)
        digest = load_checkpoint("hf://owner/var/var_d2.pth").sha256
        hub.requests.clear()
        assert load_checkpoint("hf://owner/var/var_d2.pth").sha256 == digest
        files = ("var_d2.pth", "vae_ch160v4096z32.pth")  # and labels.txt is known not to be there
        assert hub.requests == [f"HEAD /owner/var/resolve/main/{file}" for file in files]

    def test_without_network_afterwards(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        serve_official(hub)
        digest = load_checkpoint("hf://owner/var/var_d2.pth").sha256
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        assert load_checkpoint("hf://owner/var/var_d2.pth").sha256 == digest

    def test_revision_vae_and_labels(self, hub: Hub) -> None:
        save_pair(hub.root / "owner" / "mine" / "sub")
        (hub.root / "owner" / "mine" / "sub" / "labels.txt").write_text("a\nb\nc\nd\ne\n")
        checkpoint = load_checkpoint("hf://owner/mine@v1/sub/var_tiny.pth", vae="hf://owner/mine/sub/vae_tiny.pth")
        assert checkpoint.config.name == "var_tiny"
        assert checkpoint.labels == ("a", "b", "c", "d", "e")
        assert "HEAD /owner/mine/resolve/v1/sub/var_tiny.pth" in hub.requests

    def test_mixin_repository(self, hub: Hub, tmp_path: Path) -> None:
        folder = hub.root / "owner" / "my-mixin"
        save_safetensors(var_state(), folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"depth": 2, "norm_eps": 1e-5, "vae_kwargs": {"ch": 32}}))
        vae = save_safetensors(vae_state(), tmp_path / "vae.safetensors")
        config = load_checkpoint("hf://owner/my-mixin/model.safetensors", vae=vae).config
        assert config == tiny(name="my-mixin", var={"norm_eps": 1e-5})

    def test_shards(self, hub: Hub) -> None:
        folder, items = save_pair(hub.root / "owner" / "large").parent, list(var_state().items())
        names = [f"model-0000{k}-of-00002.safetensors" for k in (1, 2)]
        for name, held in zip(names, (items[:9], items[9:]), strict=True):
            save_safetensors(dict(held), folder / name)
        index = {"weight_map": {key: names[k >= 9] for k, (key, _) in enumerate(items)}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        for name in ("model.safetensors.index.json", names[1]):
            checkpoint = load_checkpoint(f"hf://owner/large/{name}", vae=folder / "vae_tiny.pth")
            assert checkpoint.config == tiny(name="large")
            assert torch.equal(checkpoint.var_state["pos_1LC"], var_state()["pos_1LC"])

    def test_explicit_config_and_labels(self, hub: Hub, tmp_path: Path) -> None:
        folder = hub.root / "owner" / "extra"
        folder.mkdir(parents=True)
        (folder / "c.json").write_text('{"vae": {"using_znorm": true}, "labels": "names.txt"}')
        (folder / "names.txt").write_text("a\nb\nc\nd\ne\n")
        checkpoint = load_checkpoint(save_pair(tmp_path / "pair"), config="hf://owner/extra/c.json")
        assert checkpoint.config.vae.using_znorm
        assert checkpoint.labels == ("a", "b", "c", "d", "e")


class TestProblems:
    def test_no_vae_in_the_repository(self, hub: Hub) -> None:
        torch.save(var_state(), save_pair(hub.root / "owner" / "bare"))
        message = error_of("hf://owner/bare/var_tiny.pth")
        assert "hf://owner/bare/var_tiny.pth holds no VQ-VAE" in message
        assert "pass it with --vae FILE" in message

    def test_no_such_file(self, hub: Hub) -> None:
        serve_official(hub)
        assert "the repository owner/var has no file var_d99.pth" in error_of("hf://owner/var/var_d99.pth")

    def test_no_such_repository(self, hub: Hub) -> None:
        assert "there is no repository owner/none, or it is private" in error_of("hf://owner/none/var_d16.pth")

    def test_no_such_revision(self, hub: Hub) -> None:
        serve_official(hub)
        assert "has no revision v9" in error_of("hf://owner/var@v9/var_d2.pth")

    def test_gated(self, hub: Hub) -> None:
        hub.status, hub.error_code = 403, "GatedRepo"
        assert "is gated: accept its terms" in error_of("hf://owner/var/var_d2.pth")

    def test_offline(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        assert "the Hub cannot be reached" in error_of("hf://owner/var/var_d2.pth")

    def test_unreachable(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        monkeypatch.setattr(time, "sleep", lambda _: None)  # between retries
        assert "the Hub cannot be reached" in error_of("hf://owner/var/var_d2.pth")

    def test_broken_server(self, hub: Hub) -> None:
        serve_official(hub)
        hub.status = 418
        assert "the Hub cannot be reached" in error_of("hf://owner/var/var_d2.pth")

    def test_broken_download(self, hub: Hub) -> None:
        serve_official(hub)
        hub.status, hub.fails = 418, "GET"
        message = error_of("hf://owner/var/var_d2.pth")
        assert "hf://owner/var/var_d2.pth could not be downloaded" in message
        assert "418" in message

    def test_unsupported_repository_name(self, hub: Hub) -> None:
        assert "is no name of a repository" in error_of("hf://owner/re--po/x.pth")

    def test_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        with pytest.raises(CheckpointError, match=re.escape(install_command("hub"))):
            load_checkpoint("hf://owner/var/var_d16.pth")
