"""Plans: engines that a vendor's builder made for one kind of GPU, kept in the bundle beside the graphs.

A bundle holds any number of plan sets, each for one product, version and GPU; a loader takes the one that fits
the machine, or says of each why it does not. Nothing of a plan reaches the vendor's runtime before its entry
fits and its SHA-256 matches: a plan is code.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from engines.spec.choices import PLAN_TARGETS
from engines.spec.config import check_types
from engines.storage import digest_of
from engines.words import is_printable

FOLDER = "plans"
"""The folder inside a bundle that holds a folder for each plan set."""


@dataclass(frozen=True)
class FileEntry:
    """What a file of a bundle must be."""

    size: int
    """Bytes."""
    sha256: str

    def __post_init__(self) -> None:
        check_types(self, "file: ")


@dataclass(frozen=True, kw_only=True)
class PlanFile(FileEntry):
    """The plan of one graph."""

    file: str
    """Path inside the bundle."""
    onnx_sha256: str
    """SHA-256 of the graph that the plan was built from."""
    batch: tuple[int, int, int]
    """Images of one call: least, usual, most."""
    rows: tuple[int, int, int]
    """Rows of one call in the transformer, likewise."""
    profiles: int
    """Number of optimisation profiles; `step` has one per scale."""
    seconds: float
    """Time that the build of this plan took."""


@dataclass(frozen=True, kw_only=True)
class Platform:
    """What a plan is built on and must find again where it runs: the product, the system and the GPU."""

    target: str
    """The product, one of `engines.spec.choices.PLAN_TARGETS`."""
    version: str
    """Version of the product."""
    cuda: str
    """Version of the CUDA runtime."""
    system: str
    """Operating system and processor, such as `Linux x86_64`."""
    gpu: str | None
    """Name of the GPU; None where there is none."""
    compute_capability: str | None

    def __post_init__(self) -> None:
        check_types(self, "built_on.")

    def __str__(self) -> str:
        gpu = f"{self.gpu} (compute capability {self.compute_capability})" if self.gpu else "no GPU"
        return f"{self.target} {self.version}, CUDA {self.cuda}, {gpu}, {self.system}"


@dataclass(frozen=True, kw_only=True)
class PlanSet:
    """The plans of all graphs of a bundle, built together."""

    name: str
    """Name of the folder that holds the plans, inside `FOLDER`."""
    key: str
    """SHA-256 over all that decides the set: see `plan_key`."""
    built_on: Platform
    precision: str
    """Precision of the bundle."""
    compute_capabilities: tuple[str, ...]
    """Compute capabilities of the GPUs that run the set."""
    hardware_compatibility: str
    """TensorRT's level: `none`, `same-sm` or `ampere+`."""
    weight_streaming: bool
    weights_sha256: str
    """SHA-256 of the weight file that the graphs were read with."""
    options: Mapping[str, Any]
    """Options of the build, as `PlanOptions.to_dict` gives them."""
    graphs: Mapping[str, PlanFile]

    def __post_init__(self) -> None:
        check_types(self, f"plan set {self.name}: ")
        if not isinstance(self.options, dict):
            raise TypeError(f"plan set {self.name}: options must be a table")

    def why_not(self, here: Platform, files: Mapping[str, FileEntry], graph: str) -> str | None:
        """Why this set cannot serve a graph of the bundle with these files `here`; None where it can."""
        built = self.built_on
        if built.target != here.target:
            return f"it is for {built.target}"
        if built.version != here.version:
            return f"it was built by {built.target} {built.version}, here is {here.version}"
        if built.system != here.system:
            return f"it was built on {built.system}"
        if here.compute_capability is None:
            return "there is no GPU"
        if not self._covers(here):
            return f"it is for {self._gpus()}"
        if graph not in self.graphs:
            return f"it has no {graph} engine"
        if not self.built_from(files, graph):
            return f"it was built from another {graph} graph, or other weights"
        return None

    def built_from(self, files: Mapping[str, FileEntry], graph: str) -> bool:
        """Whether the set has a plan of this graph, made from the very files that the bundle lists."""
        wanted = (files[f"{graph}.onnx"].sha256, files["weights.bin"].sha256)
        return graph in self.graphs and (self.graphs[graph].onnx_sha256, self.weights_sha256) == wanted

    def _gpus(self) -> str:
        if self.hardware_compatibility == "ampere+":
            return "GPUs of compute capability 8.0 and more"
        tuned = self.built_on.target == "tensorrt" and self.hardware_compatibility == "none"
        return f"{(tuned and self.built_on.gpu) or 'GPUs'} of compute capability {', '.join(self.compute_capabilities)}"

    def _covers(self, here: Platform) -> bool:
        assert here.compute_capability is not None
        if self.built_on.target == "tensorrt-rtx" or self.hardware_compatibility == "same-sm":
            return here.compute_capability in self.compute_capabilities
        if self.hardware_compatibility == "ampere+":
            return float(here.compute_capability) >= 8.0
        # TensorRT tunes for one model of GPU and warns on others of the same compute capability; so do not start.
        return here.compute_capability in self.compute_capabilities and here.gpu == self.built_on.gpu

    def __str__(self) -> str:
        images = next(iter(self.graphs.values())).batch if self.graphs else (0, 0, 0)
        gpus = ", ".join(self.compute_capabilities)
        return f"{self.built_on.target} {self.built_on.version}, sm {gpus}, batch {images[0]} to {images[2]}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, for the manifest."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain


def parse_plans(entries: Any) -> tuple[PlanSet, ...]:
    """The plan sets of a manifest. What is none raises `ValueError`, `TypeError`, `KeyError` or `UsageError`."""
    if not isinstance(entries, list):
        raise TypeError("plans must be a list")
    sets = tuple(_plan_set(dict(entry)) for entry in entries)
    if len({plans.name for plans in sets}) != len(sets):
        raise ValueError("two plan sets have one name")
    return sets


def plan_key(files: Mapping[str, FileEntry], graphs: Iterable[str], here: Platform, options: Mapping[str, Any]) -> str:
    """SHA-256 over what decides a plan set: the files of its graphs, the product, the GPU and the build's options."""
    onnx = {graph: files[f"{graph}.onnx"].sha256 for graph in graphs}
    value = {"graphs": onnx, "weights": files["weights.bin"].sha256, "machine": dataclasses.asdict(here)}
    return digest_of(value | {"options": dict(options)})


def _plan_set(entry: dict[str, Any]) -> PlanSet:
    name = _plain(entry["name"])
    graphs = {_plain(graph): _plan_file(name, graph, dict(plan)) for graph, plan in entry.pop("graphs").items()}
    built_on = Platform(**entry.pop("built_on"))
    if built_on.target not in PLAN_TARGETS:
        raise ValueError(f"plan set {name} is for an unknown target")
    capabilities = entry.pop("compute_capabilities")
    if not isinstance(capabilities, list) or not all(isinstance(item, str) for item in capabilities):
        raise TypeError(f"plan set {name}: compute_capabilities must be a list of strings")
    if not all(map(is_printable, capabilities)):
        raise ValueError(f"plan set {name}: compute_capabilities hold what is no text")
    return PlanSet(built_on=built_on, compute_capabilities=tuple(capabilities), graphs=graphs, **entry)


def _plan_file(name: str, graph: str, entry: dict[str, Any]) -> PlanFile:
    if entry["file"] != f"{FOLDER}/{name}/{graph}.plan":
        raise ValueError(f"plan set {name} names a file outside of its folder, or not by its graph")
    for counts in ("batch", "rows"):
        values = entry[counts] = tuple(entry[counts])
        if len(values) != 3 or any(type(value) is not int for value in values) or not 1 <= values[0] <= values[2]:
            raise TypeError(f"{entry['file']}: {counts} must be three whole numbers that do not fall")
    return PlanFile(**entry)


def _plain(name: Any) -> str:
    """A name that is no path, and no second line of a message."""
    if not isinstance(name, str) or not name.isprintable() or not name or "/" in name or name.startswith("."):
        raise ValueError(f"{name!r:.60} is no name of plans or of a graph")
    return name
