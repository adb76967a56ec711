"""Plans: engines that a vendor's builder made for one kind of GPU, kept in the bundle beside the graphs.

A bundle holds any number of plan sets, each for one product, version and GPU; a loader takes the one that fits
the machine, or says of each why it does not. Nothing of a plan reaches the vendor's runtime before its entry
fits and its SHA-256 matches: a plan is code.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engines.errors import BundleError

if TYPE_CHECKING:
    from engines.bundle.bundle import Bundle

FOLDER = "plans"
TARGETS = ("tensorrt", "tensorrt-rtx")


@dataclass(frozen=True, kw_only=True)
class PlanFile:
    """The plan of one graph."""

    file: str
    """Path inside the bundle."""
    size: int
    sha256: str
    onnx_sha256: str
    """Of the graph that it was built from."""
    batch: tuple[int, int, int]
    """Images: least, usual, most."""
    rows: tuple[int, int, int]
    profiles: int
    """How many; of `step` one per scale."""
    seconds: float
    """That the build took."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a plan must fit, as the runtime finds it."""

    target: str
    version: str
    """Of the product."""
    cuda: str
    system: str
    """As `Linux x86_64`."""
    gpu: str | None
    """The device's name; None where there is none."""
    compute_capability: str | None

    def __str__(self) -> str:
        gpu = f"{self.gpu} (compute capability {self.compute_capability})" if self.gpu else "no GPU"
        return f"{self.target} {self.version}, CUDA {self.cuda}, {gpu}, {self.system}"


@dataclass(frozen=True, kw_only=True)
class PlanSet:
    """The plans of all graphs of a bundle, built together."""

    name: str
    """Of its folder."""
    key: str
    """SHA-256 over all that decides it."""
    built_on: Machine
    precision: str
    compute_capabilities: tuple[str, ...]
    """Of the GPUs that it runs on."""
    hardware_compatibility: str
    weight_streaming: bool
    weights_sha256: str
    """Of the weight file that the graphs were read with."""
    options: Mapping[str, Any]
    graphs: Mapping[str, PlanFile]

    def why_not(self, here: Machine, bundle: Bundle, graph: str) -> str | None:
        """Why this set cannot serve `graph` on a machine; None where it can."""
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
        if not self.built_from(bundle, graph):
            return f"it was built from another {graph} graph, or other weights"
        return None

    def built_from(self, bundle: Bundle, graph: str) -> bool:
        """Whether it has this graph, as the bundle holds it."""
        wanted = (bundle.files[f"{graph}.onnx"].sha256, bundle.files["weights.bin"].sha256)
        return graph in self.graphs and (self.graphs[graph].onnx_sha256, self.weights_sha256) == wanted

    def _gpus(self) -> str:
        if self.hardware_compatibility == "ampere+":
            return "GPUs of compute capability 8.0 and more"
        tuned = self.built_on.target == "tensorrt" and self.hardware_compatibility == "none"
        return f"{(tuned and self.built_on.gpu) or 'GPUs'} of compute capability {', '.join(self.compute_capabilities)}"

    def _covers(self, here: Machine) -> bool:
        assert here.compute_capability is not None
        if self.built_on.target == "tensorrt-rtx" or self.hardware_compatibility == "same-sm":
            return here.compute_capability in self.compute_capabilities
        if self.hardware_compatibility == "ampere+":
            return _number(here.compute_capability) >= 8.0
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
    """The plan sets of a manifest. Raises `ValueError`, `TypeError` and `KeyError` on what is none."""
    if not isinstance(entries, list):
        raise TypeError("plans must be a list")
    sets = tuple(_plan_set(dict(entry)) for entry in entries)
    if len({plans.name for plans in sets}) != len(sets):
        raise ValueError("two plan sets have one name")
    return sets


def pick(bundle: Bundle, here: Machine, graph: str) -> PlanSet:
    """The plan set to run `graph` with: the newest that fits. Raises `BundleError` that says why none does."""
    reasons = []
    for plans in reversed(bundle.plans):
        reason = plans.why_not(here, bundle, graph)
        if reason is None:
            return plans
        reasons.append(f"{plans.name}: {reason}")
    build = f"build one with: var-export build {bundle.path} --target {here.target}"
    if not reasons:
        raise BundleError(f"{bundle.path} holds no plans; {build}")
    raise BundleError(f"{bundle.path} holds no plan for {here} ({'; '.join(reasons)}); {build}")


def plan_key(bundle: Bundle, here: Machine, options: Mapping[str, Any]) -> str:
    """What decides a plan set: graphs, product, GPU and options."""
    graphs = {graph: bundle.files[f"{graph}.onnx"].sha256 for graph in bundle.graphs}
    value = {"graphs": graphs, "weights": bundle.files["weights.bin"].sha256, "machine": dataclasses.asdict(here)}
    return hashlib.sha256(json.dumps(value | {"options": dict(options)}, sort_keys=True).encode()).hexdigest()


def _plan_set(entry: dict[str, Any]) -> PlanSet:
    name = _plain(entry["name"])
    graphs = {_plain(graph): _plan_file(name, graph, dict(plan)) for graph, plan in entry.pop("graphs").items()}
    built_on = Machine(**entry.pop("built_on"))
    if built_on.target not in TARGETS:
        raise ValueError(f"plan set {name} is for an unknown target")
    capabilities = entry.pop("compute_capabilities")
    if not isinstance(capabilities, list) or not all(isinstance(item, str) for item in capabilities):
        raise TypeError(f"plan set {name}: compute_capabilities must be a list of strings")
    plans = PlanSet(built_on=built_on, compute_capabilities=tuple(capabilities), graphs=graphs, **entry)
    _check_types(built_on, f"plan set {name}")
    _check_types(plans, f"plan set {name}")
    return plans


def _plan_file(name: str, graph: str, entry: dict[str, Any]) -> PlanFile:
    if entry["file"] != f"{FOLDER}/{name}/{graph}.plan":
        raise ValueError(f"plan set {name} names a file outside of its folder, or not by its graph")
    for counts in ("batch", "rows"):
        values = entry[counts] = tuple(entry[counts])
        if len(values) != 3 or any(type(value) is not int for value in values) or not 1 <= values[0] <= values[2]:
            raise TypeError(f"{entry['file']}: {counts} must be three whole numbers that do not fall")
    plan = PlanFile(**entry)
    _check_types(plan, plan.file)
    return plan


def _plain(name: Any) -> str:
    """A name that is no path, and no second line of a message."""
    if not isinstance(name, str) or not name.isprintable() or not name or "/" in name or name.startswith("."):
        raise ValueError(f"{name!r:.60} is no name of plans or of a graph")
    return name


_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "str | None": (str, type(None)),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
}


def _check_types(value: Any, what: str) -> None:
    """Every field has the type that it is annotated with; a bool is no number."""
    for entry in dataclasses.fields(value):
        kinds, item = _KINDS.get(str(entry.type)), getattr(value, entry.name)
        if kinds is not None and (not isinstance(item, kinds) or (isinstance(item, bool) and bool not in kinds)):
            raise TypeError(f"{what}: {entry.name} must be of type {entry.type}")
    if not isinstance(getattr(value, "options", {}), dict):
        raise TypeError(f"{what}: options must be a table")


def _number(capability: str) -> float:
    return float(capability)
