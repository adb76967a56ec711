"""Bundles without a model inside: everything that plans, bindings and the scale loop look at, and no weights."""

from __future__ import annotations

import dataclasses
import json

import numpy as np

from engines.bundle.bundle import sha256_of
from engines.bundle.manifest import ALIGNMENT, Manifest, StoredTensor, graph_file, needed_files
from engines.bundle.plans import FileEntry
from engines.spec import contract
from engines.spec.config import ModelConfig
from engines.spec.sampling import Sampling


def fill_hollow(folder, config: ModelConfig, *, precision="fp16", form="both", max_top_k=64, name=None) -> Manifest:
    """The files of a bundle but its manifest, which returns, as a build has it before it knows the files.

    Graphs are one line of text each; the constants of the scales are there, in their true sizes.
    """
    constants, offset, arrays = {}, 0, []
    rng = np.random.default_rng(0)
    for constant, shape in contract.scale_constant_shapes(config).items():
        constants[constant] = StoredTensor("float32", shape, offset)
        arrays.append(rng.random(shape, np.float32))
        padding = -arrays[-1].nbytes % ALIGNMENT
        arrays.append(np.zeros(padding // 4, np.float32))
        offset += arrays[-2].nbytes + padding
    contents = {"weights.bin": b"".join(array.tobytes() for array in arrays), "golden.npz": b"no golden run"}
    graphs = (graph_file(graph, precision, cpu=cpu) for graph in contract.graphs_of(form) for cpu in (False, True))
    contents |= {name: f"{name.partition('.')[0]} of {config.name}".encode() for name in graphs}
    for file, data in contents.items():
        (folder / file).write_bytes(data)
    return Manifest(
        name=name or config.name,
        config=config,
        precision=precision,
        form=form,
        target="onnxruntime",
        max_top_k=max_top_k,
        smooth=False,
        sampling=Sampling(cfg=2.0, top_k=20, top_p=0.9),
        labels=None,
        build_key="hollow",
        golden_key="hollow",
        constants=constants,
    )


def hollow_bundle(folder, config: ModelConfig, **options):
    """The folder of a bundle as `fill_hollow` makes it."""
    folder.mkdir(parents=True)
    manifest = fill_hollow(folder, config, **options)
    paths = [folder / name for name in needed_files(manifest.form, manifest.precision)]
    files = {path.name: FileEntry(path.stat().st_size, sha256_of(path)) for path in paths}
    document = dataclasses.replace(manifest, files=files).to_dict()
    (folder / "manifest.json").write_text(json.dumps(document))
    return folder
