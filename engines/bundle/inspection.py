"""What is in a bundle, for people and scripts: `var-export inspect`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from engines.bundle.bundle import Bundle
from engines.bundle.plans import PlanSet
from engines.spec import contract
from engines.spec.policy import role_of
from engines.storage import sha256_of

OK, CHANGED, DAMAGED = "ok", "SHA-256 differs", "damaged"


@dataclass(frozen=True)
class QuantisedLayer:
    """One product with trained weights in a quantised bundle."""

    name: str
    graph: str
    role: str
    """See `engines.spec.policy.role_of`."""
    way: str
    """How it is computed: one of `engines.spec.policy.METHODS`."""


def quantised_layers(bundle: Bundle) -> list[QuantisedLayer]:
    """All layers of a quantised bundle, in the order of their computation; empty for the others."""
    recorded = (bundle.provenance.get("quantisation") or {}).get("layers") or {}
    return [QuantisedLayer(name, name.partition("/")[0], role_of(name), way) for name, way in recorded.items()]


def kept_in_fp32(bundle: Bundle) -> dict[str, float | None]:
    """Layers of a half-precision bundle that compute in FP32, and how far what they give reaches in the golden run."""
    recorded = bundle.provenance.get("kept_fp32")
    largest = recorded.get("largest") if isinstance(recorded, dict) else None
    known = largest.items() if isinstance(largest, dict) else ()
    return {name: value if isinstance(value, float) else None for name, value in known}


def kept_lines(bundle: Bundle) -> list[str]:
    """A line for each layer of `kept_in_fp32`, for people."""
    return [
        f"computed in FP32: {name}" + ("" if largest is None else f", which reaches {largest:,.0f}")
        for name, largest in kept_in_fp32(bundle).items()
    ]


def grouped(layers: Iterable[QuantisedLayer]) -> list[tuple[str, str, str, int]]:
    """Graph, role, way, and how many layers have these, in the order of their first."""
    return [(*kind, count) for kind, count in Counter((at.graph, at.role, at.way) for at in layers).items()]


def file_states(bundle: Bundle) -> dict[str, str]:
    """`ok`, or what is wrong with it, for each file that the manifest lists."""
    return {
        name: OK if sha256_of(bundle.path / name) == entry.sha256 else CHANGED for name, entry in bundle.files.items()
    }


def plan_states(bundle: Bundle, plans: PlanSet) -> dict[str, str]:
    """`ok` or `damaged` for the plan of each graph."""
    return {graph: DAMAGED if bundle.plan_problem(plan) else OK for graph, plan in plans.graphs.items()}


def describe(bundle: Bundle, states: dict[str, str]) -> dict[str, Any]:
    """Everything worth knowing, as plain JSON types; `states` comes from `file_states`."""
    config, facts = bundle.config, bundle.to_dict()
    del facts["golden_key"], facts["constants"]
    return facts | {
        "path": str(bundle.path),
        "verified": all(state == OK for state in states.values()),
        "classes": config.transformer.num_classes,
        "labels": None if bundle.labels is None else sum(map(bool, bundle.labels)),
        "model": facts["model"]
        | {"image_size": config.image_size, "num_tokens": config.num_tokens, "num_scales": config.num_scales},
        "bytes": bundle.total_bytes,
        "files": {name: entry | {"state": states[name]} for name, entry in facts["files"].items()},
        "plans": [plans.to_dict() | {"states": plan_states(bundle, plans)} for plans in bundle.plans],
        "graphs": {
            name: {"meaning": contract.GRAPHS[name].meaning, **tables} for name, tables in facts["graphs"].items()
        },
        "layers": [asdict(layer) for layer in quantised_layers(bundle)],
        "kept_fp32": kept_in_fp32(bundle),
    }


def folded(tensors: Sequence[contract.TensorInfo]) -> Iterator[contract.TensorInfo]:
    """The tensors, with those that exist once per transformer block as one: `past_k_0 ... past_k_15`."""
    groups: dict[tuple[Any, ...], list[contract.TensorInfo]] = {}
    for info in tensors:
        stem = re.sub(r"_\d+$", "", info.name)
        groups.setdefault((stem, info.dtype, info.shape, info.meaning), []).append(info)
    for group in groups.values():
        first, last = group[0], group[-1]
        name = first.name if first is last else f"{first.name} ... {last.name}"
        yield contract.TensorInfo(name, first.dtype, first.shape, first.meaning)
