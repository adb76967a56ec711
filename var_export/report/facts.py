"""What a figure depends on: the bundle, the machine, the versions, the command."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from engines.bundle.bundle import Bundle
from engines.bundle.inspection import quantised_layers
from engines.cli.common import version
from engines.host.environment import installed
from engines.machine import Machine
from engines.spec.policy import METHODS
from engines.words import counted
from var_export.report.parts import Facts, Table
from var_export.report.words import listed, size

LOADED = ("numpy", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt_rtx", "torch", "onnx", "onnx_ir")


def bundle_facts(bundle: Bundle) -> Facts:
    """What is in a bundle."""
    config, checkpoint = bundle.config, bundle.provenance.get("checkpoint") or {}
    files = Table(
        "Files of the bundle",
        ("file", "SHA-256", "size"),
        [(name, entry.sha256, size(entry.size)) for name, entry in bundle.files.items()],
        words=2,
    )
    pairs = [
        ("path", str(bundle.path)),
        ("model", f"{config.name}: {config.image_size} px, {counted(config.num_scales, 'scale')}, "
         f"{counted(config.num_tokens, 'token')}, {counted(config.transformer.num_classes, 'class', 'classes')}"),
        ("transformer", f"depth {config.transformer.depth}, width {config.transformer.width}"),
        ("precision", bundle.precision.upper() + _ways(bundle)),
        ("forms", " and ".join(bundle.forms) + (", can be smoothed" if bundle.smooth else "")),
        ("graphs for", bundle.target),
        ("size", f"{size(bundle.total_bytes)} in {counted(len(bundle.files), 'file')}"),
        ("plans", "; ".join(map(str, bundle.plans))),
        ("checkpoint", ", ".join(map(str, checkpoint.get("files", ())))),
        ("checkpoint's SHA-256", str(checkpoint.get("sha256", ""))),
        ("build key", bundle.build_key),
    ]  # fmt: skip
    return Facts("Bundle", pairs, [files])


def _ways(bundle: Bundle) -> str:
    """How the layers of a quantised bundle are computed; empty for any other."""
    found = Counter(layer.way for layer in quantised_layers(bundle))
    return ": " + listed([f"{counted(found[way], 'layer')} {way}" for way in METHODS if found[way]]) if found else ""


def environment_facts(machine: Machine, runtime: Mapping[str, Any] | None = None) -> Facts:
    """The machine, what ran on it, and the versions of both sides."""
    versions = installed()
    known = [f"{name} {found}" for name in LOADED if (found := versions.get(name))]
    pairs = [("machine", str(machine)), ("load before", f"{machine.load:.1f}")]
    if runtime is not None:
        backend = str(runtime.get("backend", ""))
        pairs += [
            ("backend", f"{backend} {runtime.get(backend, '')}".strip()),
            ("provider", str(runtime.get("provider", ""))),
            ("GPU", str(runtime.get("gpu") or "")),
            ("threads", str(runtime.get("threads") or "")),
            ("form", str(runtime.get("form", ""))),
        ]
    pairs += [("Python", machine.python), ("packages", ", ".join(known)), ("var-export", version())]
    return Facts("Environment", pairs)
