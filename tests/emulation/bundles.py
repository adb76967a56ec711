"""Bundles without a model inside: everything that plans, bindings and the scale loop look at, and no weights."""

from __future__ import annotations

import hashlib
import json

import numpy as np

from engines.bundle.manifest import SCHEMA_VERSION
from engines.spec import contract
from engines.spec.config import ModelConfig, SamplingDefaults


def hollow_bundle(folder, config: ModelConfig, *, precision="fp16", form="both", max_top_k=64):
    """Graphs are one line of text each; the constants of the scales are there, in their true sizes."""
    folder.mkdir(parents=True)
    constants, offset, arrays = {}, 0, []
    rng = np.random.default_rng(0)
    for name, shape in contract.scale_constant_shapes(config).items():
        constants[name] = {"dtype": "float32", "shape": list(shape), "offset": offset}
        arrays.append(rng.random(shape, np.float32))
        offset += arrays[-1].nbytes
    contents = {"weights.bin": b"".join(array.tobytes() for array in arrays), "golden.npz": b"no golden run"}
    contents |= {f"{graph}.onnx": f"{graph} of {config.name}".encode() for graph in contract.graphs_of(form)}
    files = {}
    for name, data in contents.items():
        (folder / name).write_bytes(data)
        files[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest = {
        "schema": SCHEMA_VERSION,
        "contract": contract.CONTRACT_VERSION,
        "name": config.name,
        "model": config.to_dict(),
        "precision": precision,
        "form": form,
        "target": "onnxruntime",
        "max_top_k": max_top_k,
        "sampling": vars(SamplingDefaults(cfg=2.0, top_k=20, top_p=0.9)),
        "labels": None,
        "build_key": "hollow",
        "golden_key": "hollow",
        "files": files,
        "constants": constants,
        "provenance": {},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder
