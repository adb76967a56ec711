"""Files that are not what they should be: each refused in one line, and nothing in them is run."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_samples import error_of, save_pair, save_safetensors, vae_state, var_state

from var_export.checkpoint.pickles import unfolds_too_far


class Trap:
    """Creates the file `path` when unpickled without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


def refused(tmp_path: Path, content: bytes, name: str = "var_d16.pth") -> str:
    path = tmp_path / name
    path.write_bytes(content)
    message = error_of(path)
    assert str(path) in message
    return message


def torch_bytes(tmp_path: Path, value: Any, *, legacy: bool = False) -> bytes:
    path = tmp_path / "whole"
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path.read_bytes()


class TestNoCheckpoint:
    def test_empty(self, tmp_path: Path) -> None:
        assert "is empty: download it again" in refused(tmp_path, b"")

    def test_lfs_pointer(self, tmp_path: Path) -> None:
        pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1241251221\n"
        assert "git lfs pull" in refused(tmp_path, pointer)

    @pytest.mark.parametrize(
        "page", [b"<!DOCTYPE html><html>404</html>", b"\n <HTML>", b"<?xml version='1.0'?><Error/>"]
    )
    def test_web_page(self, tmp_path: Path, page: bytes) -> None:
        assert "is a web page, not a checkpoint: download the file itself" in refused(tmp_path, page)

    @pytest.mark.parametrize("junk", [b"hello", b"\x00" * 600, b"GGUF" + b"\x00" * 40])
    def test_something_else(self, tmp_path: Path, junk: bytes) -> None:
        assert "is neither a torch nor a safetensors file" in refused(tmp_path, junk)

    def test_other_zip(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "z", "w") as archive:
            archive.writestr("a.txt", "b")
        message = refused(tmp_path, (tmp_path / "z").read_bytes())
        assert "truncated, damaged or no checkpoint: check which file it is" in message
        assert "download" not in message

    def test_the_vae_may_be_it(self, tmp_path: Path) -> None:
        path = save_pair(tmp_path)
        (tmp_path / "vae_tiny.pth").write_bytes(b"")
        assert f"{tmp_path}/vae_tiny.pth is empty" in error_of(path)

    def test_unreadable(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = save_pair(tmp_path)
        if os.geteuid() != 0:
            path.chmod(0)
        else:  # nothing is unreadable to root

            def refuse(*_: Any, **__: Any) -> Any:
                raise PermissionError(13, "Permission denied")

            monkeypatch.setattr(Path, "open", refuse)
        assert f"cannot read {path} (Permission denied): check its permissions" in error_of(path)


class TestDamaged:
    @pytest.mark.parametrize("kept", [0.05, 0.5, 0.999])
    @pytest.mark.parametrize("legacy", [False, True])
    def test_truncated_torch(self, tmp_path: Path, kept: float, legacy: bool) -> None:
        whole = torch_bytes(tmp_path, var_state(), legacy=legacy)
        message = refused(tmp_path, whole[: int(len(whole) * kept)])
        assert "download it again" in message

    @pytest.mark.parametrize("kept", [0.001, 0.5, 0.999])
    def test_truncated_safetensors(self, tmp_path: Path, kept: float) -> None:
        whole = save_safetensors(var_state(), tmp_path / "whole").read_bytes()
        assert "truncated, damaged or no checkpoint: download it again" in refused(
            tmp_path, whole[: int(len(whole) * kept)]
        )

    def test_garbage_after_the_first_bytes(self, tmp_path: Path) -> None:
        for content in (b"\x80\x02junkjunk", b"PK\x03\x04junk", b"\x10\0\0\0\0\0\0\0{not json at all", b"\x80"):
            assert "truncated, damaged or no checkpoint" in refused(tmp_path, content)

    @pytest.mark.parametrize("legacy", [False, True])
    def test_whole_but_damaged_is_not_to_be_downloaded_again(self, tmp_path: Path, legacy: bool) -> None:
        whole = torch_bytes(tmp_path, var_state(), legacy=legacy)
        at = whole.index(b"pos_1LC") - 20  # in the pickle, before what is stored
        for damaged in (whole[:at] + b"\xff" * 16 + whole[at + 16 :], whole.replace(b"FloatStorage", b"FlootStorage")):
            assert "download" not in refused(tmp_path, damaged)
        header = save_safetensors(var_state(), tmp_path / "whole").read_bytes()
        assert "download" not in refused(tmp_path, header.replace(b'"F32"', b'"X32"', 1))


class TestUnsafe:
    @pytest.mark.parametrize("legacy", [False, True])
    def test_code_is_refused_and_not_run(self, tmp_path: Path, legacy: bool) -> None:
        trace = tmp_path / "trace"
        content = torch_bytes(tmp_path, {**var_state(), "extra": Trap(trace)}, legacy=legacy)
        message = refused(tmp_path, content)
        assert "would need to run code to load, which is refused" in message
        assert "convert it to safetensors" in message
        assert "open" in message
        assert not trace.exists()

    def test_trainer_with_foreign_objects(self, tmp_path: Path) -> None:
        content = torch_bytes(tmp_path, {"trainer": {"var_wo_ddp": var_state()}, "args": {"out": Path("/tmp")}})
        assert "holds more than tensors (pathlib." in refused(tmp_path, content)

    @pytest.mark.parametrize("protocol", [2, 4])
    def test_plain_pickle(self, tmp_path: Path, protocol: int) -> None:
        trace = tmp_path / "trace"
        refused(tmp_path, pickle.dumps({"a": Trap(trace)}, protocol=protocol))
        assert not trace.exists()


def nested_key(levels: int) -> bytes:
    """The pickle of a dict whose key is a tuple that holds another one twice, and so on."""
    twice = b"".join(b"q" + bytes([k]) + b"h" + bytes([k]) + b"\x86" for k in range(levels))
    return b"\x80\x02})" + twice + b"K\x01s."


def zipped(content: bytes, tmp_path: Path) -> bytes:
    with zipfile.ZipFile(tmp_path / "z", "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
    return (tmp_path / "z").read_bytes()


class TestEndless:
    """What would take years to load, or to walk through."""

    def test_a_key_of_tuples_in_tuples(self, tmp_path: Path) -> None:
        stream = b"".join(pickle.dumps(value, 2) for value in (119547037146038801333356, 1001, {}))
        for content in (zipped(nested_key(60), tmp_path), stream + nested_key(60), nested_key(60)):
            assert "refers to its own parts over and over" in refused(tmp_path, content)

    def test_a_small_file_that_lists_millions(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "var_d16.pth", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", b"\x80\x02(" + b"N" * 5_000_000 + b"l.")
        assert (tmp_path / "var_d16.pth").stat().st_size < 20_000
        assert "or lists millions of things" in error_of(tmp_path / "var_d16.pth")

    @pytest.mark.parametrize("legacy", [False, True])
    @pytest.mark.parametrize("kind", [list, dict, tuple])
    def test_whatever_holds_itself_over_and_over(self, tmp_path: Path, kind: type, legacy: bool) -> None:
        value: Any = kind()
        for _ in range(60):
            value = {"a": value, "b": value} if kind is dict else kind([value, value])
        content = torch_bytes(tmp_path, {"model": value, **var_state()}, legacy=legacy)
        assert "refers to its own parts over and over" in refused(tmp_path, content)

    @pytest.mark.parametrize("legacy", [False, True])
    def test_tensors_that_are_shared_and_long_lists_are_not(self, tmp_path: Path, legacy: bool) -> None:
        path = tmp_path / "var_d16.pth"
        shared = var_state()
        content = {"model": shared, "ema": shared, "losses": [0.5] * 100_000, "again": [[shared] * 9] * 9}
        path.write_bytes(torch_bytes(tmp_path, content, legacy=legacy))
        assert not unfolds_too_far(path, is_zip=not legacy)
        path.write_bytes(zipped(nested_key(10), tmp_path))
        assert not unfolds_too_far(path, is_zip=True)

    @pytest.mark.parametrize(
        "content", [b"", b"\x80", b"\x80\x02h\x07.", b"\x80\x02s.", b"\x80\x02q\x00.", b"PK\x03\x04"]
    )
    def test_what_cannot_be_followed_is_left_to_loading(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a").write_bytes(content)
        assert not unfolds_too_far(tmp_path / "a", is_zip=False)
        assert not unfolds_too_far(tmp_path / "a", is_zip=True)


class TestContents:
    @pytest.mark.parametrize(
        ("value", "held"),
        [
            ({}, "an empty or foreign dict"),
            ([torch.zeros(1)], "an empty or foreign list"),
            (torch.zeros(1), "an empty or foreign Tensor"),
            ({"state_dict": {}, "epoch": 1}, "the keys 'state_dict', 'epoch'"),
            ({f"bert.{i}": torch.zeros(1) for i in range(9)}, "the keys 'bert.0', 'bert.1', 'bert.2' and 6 more"),
        ],
    )
    def test_foreign(self, tmp_path: Path, value: Any, held: str) -> None:
        message = refused(tmp_path, torch_bytes(tmp_path, value))
        assert f"holds no VAR transformer and no VQ-VAE, but {held}" in message

    @pytest.mark.parametrize("other", ["module.pos_1LC", "_orig_mod.pos_1LC", "module._orig_mod.pos_1LC"])
    def test_two_keys_of_one_tensor(self, other: str, tmp_path: Path) -> None:
        """Whichever came last won: of a state dict with the average beside the weights, one in silence."""
        state = var_state()
        message = refused(tmp_path, torch_bytes(tmp_path, {**state, other: state["pos_1LC"] + 1}))
        assert "holds both 'pos_1LC' and" in message
        assert other in message

    def test_keys_that_are_no_names(self, tmp_path: Path) -> None:
        state = {**var_state(), ("a", "b"): torch.zeros(1)}
        assert "('a', 'b') is no name of a tensor" in refused(tmp_path, torch_bytes(tmp_path, state))

    def test_tensors_larger_than_their_file(self, tmp_path: Path) -> None:
        state = var_state() | {"word_embed.weight": torch.zeros(1).expand(10**6, 10**6)}
        assert "far more than the file has" in refused(tmp_path, torch_bytes(tmp_path, state))

    def test_more_than_tensors_in_a_state_dict(self, tmp_path: Path) -> None:
        message = refused(tmp_path, torch_bytes(tmp_path, {**var_state(), "epoch": 3}))
        assert "'epoch' is of type int, not a tensor" in message
        message = refused(tmp_path, torch_bytes(tmp_path, {"var_wo_ddp": [1]}))
        assert "holds no VAR transformer and no VQ-VAE, but the keys 'var_wo_ddp': give a state dict" in message

    def test_parameters_are_tensors(self, tmp_path: Path) -> None:
        path = save_pair(tmp_path, vae={key: torch.nn.Parameter(value) for key, value in vae_state().items()})
        from var_export.checkpoint.load import load_checkpoint

        assert not any(tensor.requires_grad for tensor in load_checkpoint(path).vae_state.values())
