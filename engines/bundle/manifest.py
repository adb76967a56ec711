"""The manifest of a bundle: its facts, typed and checked. No file but `manifest.json` is looked at here.

    build      --> Manifest --> to_dict   --> manifest.json
    a device   <-- Manifest <-- from_dict <-- manifest.json, or the copy of it that a server has

A `Manifest` that exists can be relied on, whoever made it. docs/bundles.md has the format.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from engines.bundle.advice import what_else
from engines.bundle.plans import FileEntry, PlanSet, parse_plans
from engines.errors import BundleError, UsageError
from engines.foreign import read_json, reading
from engines.spec import choices, contract
from engines.spec.config import ModelConfig, check_types
from engines.spec.sampling import Sampling
from engines.storage import digest_of

SCHEMA_VERSION = 2
MANIFEST, WEIGHTS, GOLDEN = "manifest.json", "weights.bin", "golden.npz"
ALIGNMENT = 4096  # of tensors in the weight file: a page, so that one can be mapped by itself
_IDENTITY = ("schema", "contract", "build_key")  # a JSON file that has these is a bundle's manifest
_DIGEST = "digest"
_PLAIN = ("name", "precision", "form", "target", "max_top_k", "build_key", "golden_key")


@dataclass(frozen=True)
class StoredTensor:
    """A constant of the scale loop, stored in the weight file beside the weights."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    """Where it begins in the weight file, in bytes."""

    def __post_init__(self) -> None:
        check_types(self, "constant: ")


@dataclass(frozen=True)
class BuildFigures:
    """What a build measured of one form, by the names of `engines.judging.figures.KINDS`.

    A PSNR of equal pixels, which is infinite, is left out.
    """

    run: dict[str, float]
    """Over the whole golden run."""
    first: dict[str, list[float]]
    """Of its first image, which a device draws before it trusts itself: one value a scale, or one for all."""

    def __post_init__(self) -> None:
        values = [*self.run.values(), *(value for each in self.first.values() for value in each)]
        if not all(type(value) is float and math.isfinite(value) for value in values):
            raise ValueError("figures must be finite numbers")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a bundle is. Raises `UsageError` and `ValueError` on values that no bundle can have."""

    name: str
    config: ModelConfig
    precision: str
    """One of `choices.PRECISIONS`."""
    form: str
    """One of `choices.BUNDLE_FORMS`: `stepwise`, `fused` or `both`."""
    target: str
    """The runtime that the graphs were made for, one of `choices.GRAPH_TARGETS`."""
    max_top_k: int
    """Entries that the sampler sorts: the largest top_k that an image can ask for."""
    smooth: bool
    """Whether the graphs can mix codebook entries."""
    sampling: Sampling
    labels: tuple[str, ...] | None
    """One label per class, or None where the model has none."""
    build_key: str
    """SHA-256 over everything that the graphs were made from."""
    golden_key: str
    """SHA-256 over everything that the golden run was made from."""
    constants: Mapping[str, StoredTensor] = field(default_factory=dict)
    """Constants of the scale loop by name; empty until a build has stored them."""
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    """Files of the bundle by name, without manifest and plans; empty until a build has hashed them."""
    plans: tuple[PlanSet, ...] = ()
    """Plan sets for GPUs, oldest first."""
    figures: Mapping[str, BuildFigures] = field(default_factory=dict)
    """What the build measured of each form, which a device is held to; empty until it has."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Checkpoint files and hash, builder versions, how layers were quantised: plain JSON types, for people."""

    def __post_init__(self) -> None:
        check_types(self, "")
        known = {
            "precision": choices.PRECISIONS,
            "form": choices.BUNDLE_FORMS,
            "target": choices.GRAPH_TARGETS,
        }
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} must be one of {', '.join(values)}, got {getattr(self, name)!r:.60}")
        if not 1 <= self.max_top_k <= self.config.vae.vocab_size:
            raise ValueError(f"max_top_k must lie in 1 to {self.config.vae.vocab_size}, got {self.max_top_k}")
        classes = self.config.transformer.num_classes
        if self.labels is not None and not (
            isinstance(self.labels, tuple)
            and len(self.labels) == classes
            and all(isinstance(label, str) for label in self.labels)
        ):
            raise ValueError(f"labels must be {classes} strings")
        if not set(self.figures) <= set(choices.FORMS):
            raise ValueError(f"figures must be of {' and '.join(choices.FORMS)}, not {', '.join(self.figures):.200}")
        lengths = {len(values) for figures in self.figures.values() for values in figures.first.values()}
        if not lengths <= {1, self.config.num_scales}:
            raise ValueError("figures of the first image must be one, or one of each scale")
        if not isinstance(self.provenance, Mapping):
            raise TypeError("provenance must be a table")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of a bundle's folder, whose other files are not looked at. Raises `BundleError`."""
        return cls.from_dict(_document(folder), str(folder / MANIFEST))

    @classmethod
    def from_dict(cls, document: Mapping[str, Any], source: str) -> Manifest:
        """What `to_dict` gave of a finished bundle. Raises `BundleError`, in which `source` says where it is from."""
        found = [document.get(key) for key in ("schema", "contract")]
        wanted = [SCHEMA_VERSION, contract.CONTRACT_VERSION]
        if found != wanted:
            raise BundleError(
                f"{source} has schema {found[0]!r:.60} and graph contract {found[1]!r:.60}, "
                f"this version reads {wanted[0]} and {wanted[1]}; "
                "build it again, or use the version that wrote it"
            )
        if document != sealed(document):
            raise BundleError(f"{source} is not as it was written (its digest differs); copy it again, or build again")
        try:
            return cls._parse(document)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, UsageError) as error:
            raise BundleError(f"{source} is damaged ({error!s:.300}); build the bundle again") from error

    @classmethod
    def _parse(cls, document: Mapping[str, Any]) -> Manifest:
        config, labels = ModelConfig.from_dict(document["model"]), document["labels"]
        files = {name: FileEntry(**entry) for name, entry in document["files"].items()}
        needed = needed_files(document["form"], document["precision"])
        if not set(needed) <= set(files) <= set(needed_files(choices.BOTH, document["precision"])):
            raise ValueError(f"files must be {', '.join(needed)}, not {', '.join(files):.200}")
        return cls(
            **{name: document[name] for name in _PLAIN},
            config=config,
            smooth=document["smooth"],
            sampling=Sampling(**document["sampling"]),
            labels=tuple(labels) if isinstance(labels, list) else labels,
            constants=_constants(document["constants"], config, files[WEIGHTS].size),
            files=files,
            plans=parse_plans(document["plans"]),
            figures={form: BuildFigures(**figures) for form, figures in document["figures"].items()},
            provenance=document["provenance"],
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types: the content of `manifest.json`, with the table of every graph's inputs and outputs.

        See `sealed` for the last key.
        """
        graphs = {}
        for name in self.graphs:
            inputs, outputs = self.tensors(name)
            graphs[name] = {"inputs": [asdict(info) for info in inputs], "outputs": [asdict(info) for info in outputs]}
        document = {
            "schema": SCHEMA_VERSION,
            "contract": contract.CONTRACT_VERSION,
            "name": self.name,
            "model": self.config.to_dict(),
            "precision": self.precision,
            "form": self.form,
            "target": self.target,
            "max_top_k": self.max_top_k,
            "smooth": self.smooth,
            "sampling": self.sampling.to_dict(),
            "labels": self.labels,
            "build_key": self.build_key,
            "golden_key": self.golden_key,
            "graphs": graphs,
            "constants": {name: asdict(tensor) for name, tensor in self.constants.items()},
            "provenance": dict(self.provenance),
            "files": {name: asdict(entry) for name, entry in self.files.items()},
            "plans": [plans.to_dict() for plans in self.plans],
            "figures": {form: asdict(figures) for form, figures in self.figures.items()},
        }
        return sealed(document)

    @property
    def digest(self) -> str:
        """SHA-256 of all facts: the last key of `manifest.json`."""
        return str(self.to_dict()[_DIGEST])

    def recorded(self, form: str) -> BuildFigures:
        """What the build measured of a form; no figure where it has not yet."""
        return self.figures.get(form) or BuildFigures({}, {})

    @property
    def high_precision(self) -> str:
        """What is not quantised computes in: the precision itself, except in INT8 and INT4."""
        return choices.HIGH_PRECISIONS[self.target] if self.precision in choices.QUANTISED else self.precision

    @property
    def for_gpus(self) -> bool:
        """True where ONNX Runtime cannot run the graphs: BF16, and integers beside FP16 as TensorRT wants them."""
        return self.precision == "bf16" or (self.precision in choices.QUANTISED and self.target == "tensorrt")

    @property
    def graphs(self) -> tuple[str, ...]:
        """Names of the graphs that the bundle holds."""
        return contract.graphs_of(self.form)

    @property
    def forms(self) -> tuple[str, ...]:
        """`stepwise`, `fused`, or both; the first is the default."""
        return choices.FORMS if self.form == choices.BOTH else (self.form,)

    def tensors(self, graph: str) -> tuple[tuple[contract.TensorInfo, ...], tuple[contract.TensorInfo, ...]]:
        """Inputs and outputs of a graph."""
        return contract.resolve(contract.GRAPHS[graph], self.config, self.high_precision, smooth=self.smooth)

    def weights_bytes(self) -> int:
        """Size of the weight file."""
        return self.files[WEIGHTS].size

    @property
    def checkpoint_sha256(self) -> str | None:
        """The digest of the checkpoint that the bundle was built from, in hex; None where it does not say."""
        recorded = self.provenance.get("checkpoint")
        sha256 = recorded.get("sha256") if isinstance(recorded, Mapping) else None
        return sha256 if isinstance(sha256, str) else None

    @property
    def reduced_range(self) -> bool:
        """True where quantised weights have 7 bits, so that no kernel's products saturate."""
        quantisation = self.provenance.get("quantisation")
        options = quantisation.get("options") if isinstance(quantisation, Mapping) else None
        return isinstance(options, Mapping) and options.get("reduce_range") is True

    @property
    def total_bytes(self) -> int:
        """Bytes of all files together, without the manifest and the plans."""
        return sum(entry.size for entry in self.files.values())


def needed_files(form: str, precision: str) -> list[str]:
    """Files of a bundle of this form and precision, beside the manifest."""
    graphs = contract.graphs_of(form)
    files = (graph_file(graph, precision, cpu=cpu) for cpu in (False, True) for graph in graphs)
    return list(dict.fromkeys((WEIGHTS, GOLDEN, *files)))


def graph_file(graph: str, precision: str, *, cpu: bool) -> str:
    """The ONNX file of a graph for a GPU or for a `cpu`, which differ in FP16 alone: a CPU computes in FP32 there."""
    return f"{graph}.cpu.onnx" if cpu and precision == "fp16" else f"{graph}.onnx"


def sealed(document: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest's document with the digest of all its other keys, by which a change of one is seen.

    It guards against accidents, not against people: whoever changes a file can change its hash and this digest too.
    """
    content = {key: value for key, value in document.items() if key != _DIGEST}
    return content | {_DIGEST: digest_of(content)}


def is_bundle(folder: Path) -> bool:
    """Whether a folder is a bundle, of whatever version and in whatever state: its manifest says so."""
    try:
        _document(folder)
    except BundleError:
        return False
    return True


def _document(folder: Path) -> dict[str, Any]:
    """The manifest of a folder as JSON, of any version. Raises `BundleError` where the folder is no bundle."""
    file = folder / MANIFEST
    with reading(folder, "bundle", error=BundleError):
        if not file.is_file():
            raise BundleError(what_else(folder, MANIFEST))
    document = read_json(file, error=BundleError, remedy="build the bundle again")
    missing = [key for key in _IDENTITY if not isinstance(document, dict) or key not in document]
    if missing:
        raise BundleError(f"{file} is not the manifest of a bundle: it has no {', '.join(missing)}")
    return dict(document)


def _constants(entries: Mapping[str, Any], config: ModelConfig, size: int) -> dict[str, StoredTensor]:
    """Where the constants of the scale loop lie in a weight file of `size` bytes."""
    shapes = contract.scale_constant_shapes(config)
    if set(entries) != set(shapes):
        raise ValueError("constants must be up_s, down_s and pos_s of every scale s")
    constants = {}
    for name, shape in shapes.items():
        entry = entries[name]
        if (entry["dtype"], entry["shape"]) != ("float32", list(shape)):
            raise ValueError(f"constant {name} must be float32 {shape}")
        constants[name] = StoredTensor("float32", shape, entry["offset"])
        if not 0 <= constants[name].offset <= size - 4 * int(np.prod(shape)):
            raise ValueError(f"constant {name} lies outside of {WEIGHTS}")
        if constants[name].offset % ALIGNMENT:
            raise ValueError(f"constant {name} begins at no multiple of {ALIGNMENT} bytes")
    # Equal ones share a place; the others have their own.
    ends = sorted({(at.offset, at.offset + 4 * int(np.prod(at.shape))) for at in constants.values()})
    if any(end > start for (_, end), (start, _) in itertools.pairwise(ends)):
        raise ValueError("two constants overlap")
    return constants
