"""Checkpoints with something wrong: bytes, headers, tensors, pickles, and the text files beside them."""

from __future__ import annotations

import io
import json
import pickle
import struct
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from tests.fuzz import odd
from tests.support import tiny_checkpoint, tiny_config
from var_export.checkpoint.load import load_checkpoint

KINDS = ("bytes", "safetensors header", "tensors", "pickle", "config", "labels", "settings")
CONFIG = {
    "name": "tiny",
    "vae": {"quant_resi": 0.5, "norm_num_groups": 32},
    "var": {"heads": 2},
    "patch_nums": [1, 2, 3],
    "sampling": {"cfg": 1.5, "top_k": 60, "top_p": 0.9},
    "labels": "labels.txt",
}
LABELS = "a\nb\nc\nd\ne\n"
LABEL_FORMS = (
    LABELS,
    '["a", "b"]',
    '{"0": "a", "4": "e"}',
    "{0: 'a', 1: 'b, c'}",
    "0: a\n1: b\n",
    "index,label\n0,a\n1,b\n",
)


class Trap:
    """Asks a careless reader to run a command."""

    def __init__(self, call, *args):
        self.call = call, args

    def __reduce__(self):
        return self.call


class Checkpoints:
    """The class of cases about checkpoints."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        honest = tiny_checkpoint(tiny_config())
        self.states = {"var": honest.var_state, "vae": honest.vae_state}
        self._write("var.safetensors", save(_plain(self.states["var"])))
        self._write("vae.safetensors", save(_plain(self.states["vae"])))
        self._write("labels.txt", LABELS.encode())
        load_checkpoint(folder / "var.safetensors", config=self._write("config.json", odd.json_bytes(CONFIG)))

    def run(self, rng: np.random.Generator) -> tuple[str, str]:
        """One case, see `tests.fuzz.bundles`."""
        kind = odd.pick(rng, KINDS)
        for file in self.folder.iterdir():
            file.unlink()
        pth, which = bool(rng.integers(2)), odd.pick(rng, ["var", "var", "vae"])
        states = {name: dict(state) for name, state in self.states.items()}
        if kind == "tensors":
            for _ in range(int(rng.integers(1, 3))):
                states[which] = self._odd_state(rng, states[which])
        files = {name: _stored(state, pth) for name, state in states.items()}
        if kind == "bytes":
            files[which] = odd.damaged(rng, files[which])
        elif kind == "safetensors header":
            pth, files = False, {name: _stored(state, False) for name, state in states.items()}
            files[which] = _odd_header(rng, files[which])
        elif kind == "pickle":
            pth, files[which] = True, _odd_pickle(rng, states[which])
        for name, data in files.items():
            self._write(f"{name}.{'pth' if pth else 'safetensors'}", data)
        config = odd.json_bytes(CONFIG)
        if kind == "config":
            config = odd.damaged(rng, config) if rng.random() < 0.3 else odd.json_bytes(odd.edited(rng, CONFIG))
        self._write("config.json", config)
        self._write(
            "labels.txt", odd.damaged(rng, odd.pick(rng, LABEL_FORMS).encode()) if kind == "labels" else LABELS.encode()
        )
        settings = {}
        if kind == "settings":
            key = odd.pick(
                rng, ["heads", "vae.quant_resi", "patch_nums", "norm_eps", "name", "vae.share_quant_resi", "x"]
            )
            settings = {key: str(odd.value(rng))}
        checkpoint = load_checkpoint(
            self.folder / f"var.{'pth' if pth else 'safetensors'}",
            config=self.folder / "config.json",
            overrides=settings,
        )
        json.dumps(checkpoint.config.to_dict())
        return kind, "loaded"

    def _odd_state(self, rng, state):
        key = odd.pick(rng, sorted(key for key, value in state.items() if isinstance(value, torch.Tensor)) or [""])
        if not key:
            return state
        tensor, how = state.pop(key), int(rng.integers(11))
        if how == 0:
            return state
        if how == 1:
            return {**state, key: tensor, f"module.{key}": tensor + 1}
        if how == 2:
            return {**state, key: tensor.reshape(-1)}
        if how == 3:
            return {**state, key: torch.cat([tensor, tensor]) if tensor.ndim else tensor}
        if how == 4:
            return {**state, key: tensor.to(odd.pick(rng, [torch.int32, torch.float16, torch.bool, torch.complex64]))}
        if how == 5:
            return {**state, key: torch.full_like(tensor.float(), odd.pick(rng, [float("nan"), float("inf"), 1e38]))}
        if how == 6:
            return {**state, key: tensor[:0] if tensor.ndim else tensor}
        if how == 7:
            return {**state, key: torch.zeros((1,) * max(1, tensor.ndim)).expand((10**4,) * max(1, tensor.ndim))}
        if how == 8:
            return {**state, odd.pick(rng, ["blocks.1000000.x", "extra", "a" * 10**5, "\x1b", ""]): tensor, key: tensor}
        if how == 9:
            return {**state, key: tensor.to_sparse() if tensor.ndim else tensor}
        return {"module": {**state, key: tensor}} if rng.random() < 0.5 else {**state, key: odd.value(rng)}

    def _write(self, name: str, data: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(data)
        return path


def _plain(state):
    return {key: tensor.contiguous().clone() for key, tensor in state.items() if isinstance(tensor, torch.Tensor)}


def _stored(state, pth):
    plain = all(isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided for tensor in state.values())
    if not pth and plain and sum(tensor.numel() for tensor in state.values()) < 10**6:
        return save(_plain(state))
    stream = io.BytesIO()
    torch.save(state, stream)
    return stream.getvalue()


def _odd_header(rng, data):
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    text = json.dumps(odd.edited(rng, header, surrogates=False)).encode()
    declared = odd.pick(rng, [len(text), len(text), len(text), len(text), 2**63, 2**32, 0, len(text) + 1])
    return struct.pack("<Q", declared) + text + data[8 + length :]


def _odd_pickle(rng, state):
    content = odd.pick(
        rng,
        [
            {**state, "x": Trap(print, "never")},
            {**state, "x": Trap(eval, "1")},
            [state],
            {"trainer": {"var_wo_ddp": odd.value(rng)}},
            {"trainer": state},
            {("a", 1): 1},
            {1: torch.zeros(1), **state},
            odd.value(rng),
            set(state),
            None,
        ],
    )
    if rng.random() < 0.3:
        return odd.damaged(rng, pickle.dumps(content if not isinstance(content, dict) else {"a": 1}, 2))
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=bool(rng.integers(2)))
    return stream.getvalue()
