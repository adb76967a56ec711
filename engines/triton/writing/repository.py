"""Writes the models into a repository: planned first, then put in place whole, and never over another's work."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import engines
from engines.backends import RuntimeOptions, asked_for, check_options
from engines.bundle.bundle import Bundle
from engines.bundle.manifest import MANIFEST
from engines.errors import UsageError
from engines.foreign import MALFORMED, read_json
from engines.spec.choices import ONNXRUNTIME
from engines.storage import link_or_copy, sha256_of, write_json, writing
from engines.triton.writing.pbtxt import Serving, stream_config, unary_config

MARK = "var-export.json"
"""In the folder of each model that we wrote: what its files were, so that an edited one is not lost."""
BUNDLE = "bundle"
VERSION = "1"
CONFIG = "config.pbtxt"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_MODEL = '''"""Written by var-export; the code is in `engines`, beside this file."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # before one that is installed

from engines.triton.serving.adapter import {kind} as TritonPythonModel  # noqa: E402
'''
# Rooms of the package that no server needs.
_LEFT_OUT = ("cli", "data", "sizing", "host", "files", "fidelity", "triton/writing", "triton/client.py")
REQUIREMENTS = """# For the python3 that Triton's stub processes find, or for an EXECUTION_ENV_PATH archive.
# Triton up to 24.10 was built for numpy 1: there, numpy<2.
numpy>=1.26
"""
_RUNTIMES = {
    "onnxruntime": "onnxruntime>=1.23\n",
    "onnxruntime-gpu": "onnxruntime-gpu>=1.27\ncuda-bindings>=12.8\n",
    "webgpu": "onnxruntime>=1.24.4\nonnxruntime-ep-webgpu>=0.4\n",
    "openvino": "openvino>=2025.4\n",
    "tensorrt": "tensorrt>=10.3\ncuda-bindings>=12.8\n",
    "tensorrt-rtx": "tensorrt-rtx>=1.7\ncuda-bindings>=12.8\n",
}


@dataclass(frozen=True)
class Model:
    """One model of a repository."""

    name: str
    texts: Mapping[str, str]
    """Files by their place in the model's folder."""
    links: Mapping[str, Path] = field(default_factory=dict)
    """Binary files by their place in it: linked hard where the file system can, else copied."""


def plan_python(bundle: Bundle, serving: Serving, *, embed: bool = True) -> list[Model]:
    """The two models of the Python backend. `embed`: hold the bundle's files, instead of its place.

    Raises `UsageError` on a bundle that cannot be served so.
    """
    check_name(serving.name)
    if bundle.for_gpus and not bundle.plans:
        raise UsageError(
            f"{bundle.path} is for TensorRT and has no plans: on the server, run `var-export build {bundle.path} "
            "--target tensorrt`, then this command"
        )
    if "stepwise" not in bundle.forms:
        raise UsageError(
            f"{bundle.path} has the fused graph alone, which cannot show scales nor stop: "
            "build with --form both, or serve that graph with --stock"
        )
    code = {place: file.read_text(encoding="utf-8") for place, file in _files_of_runtime("*.py").items()}
    graphs = _files_of_runtime("*.onnx")  # that the code runs to probe the machine
    runtime = _runtime_of(serving)
    place = f"../{BUNDLE}" if embed else str(bundle.path.resolve())
    stream = {
        CONFIG: stream_config(serving, bundle, place),
        "requirements.txt": REQUIREMENTS + _RUNTIMES[runtime],
        f"{VERSION}/model.py": _MODEL.format(kind="StreamModel"),
    }
    unary = {
        CONFIG: unary_config(serving, bundle),
        "requirements.txt": REQUIREMENTS,
        f"{VERSION}/model.py": _MODEL.format(kind="UnaryModel"),
    }
    return [
        Model(serving.name, unary | code),
        Model(serving.stream_name, stream | code, graphs | (_bundle_files(bundle) if embed else {})),
    ]


def _runtime_of(serving: Serving) -> str:
    """The row of `_RUNTIMES` that a server needs. Raises `BackendError` on settings that it would refuse."""
    options: RuntimeOptions = {
        "provider": serving.provider,
        "device": serving.device,
        "precision_hint": serving.precision_hint,
    }
    backend = serving.backend or asked_for(**options)
    if backend is not None:
        check_options(backend, **options)
    if backend in (None, ONNXRUNTIME) and serving.provider != "cpu":
        return "webgpu" if serving.provider == "webgpu" else "onnxruntime-gpu"
    return backend or ONNXRUNTIME


def write(models: list[Model], repository: Path, *, overwrite: bool = False) -> list[Path]:
    """Put the models in place, each whole; models of the same name that we wrote are replaced, others left alone.

    `overwrite`: replace ours even where somebody edited them.

    Raises `UsageError` where a folder of that name is not ours, was edited, or cannot be written.
    """
    repository = repository.absolute()
    if repository.exists() and not repository.is_dir():
        raise UsageError(f"{repository} is a file: name a folder for the model repository")
    for model in models:
        _check_replaceable(repository / model.name, overwrite)
    with writing(repository, "choose another --repository"), _staging(repository) as staging:
        for model in models:
            _fill(staging / model.name, model)
        repository.mkdir(parents=True, exist_ok=True)
        for model in models:
            target = repository / model.name
            if target.exists():
                target.rename(staging / f"{model.name}.previous")
            (staging / model.name).rename(target)
    return [repository / model.name for model in models]


def check_name(name: str) -> None:
    """Raises `UsageError` on what Triton or a file system would not take for a model's name."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r:.60} is no name for a model: letters, digits, dots, dashes and underscores")


def _files_of_runtime(pattern: str) -> dict[str, Path]:
    """Copies of the runtime's own source files, so that the server needs no more than numpy and a runtime."""
    root = Path(engines.__file__).parent
    left_out = [root / place for place in _LEFT_OUT]
    files = [file for file in sorted(root.rglob(pattern)) if not any(map(file.is_relative_to, left_out))]
    return {f"{VERSION}/{root.name}/{file.relative_to(root).as_posix()}": file for file in files}


def _bundle_files(bundle: Bundle) -> dict[str, Path]:
    names = [MANIFEST, *bundle.files, *(plan.file for plans in bundle.plans for plan in plans.graphs.values())]
    return {f"{BUNDLE}/{name}": bundle.path / name for name in names}


def _fill(folder: Path, model: Model) -> None:
    for place in (*model.texts, *model.links):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
    for place, text in model.texts.items():
        (folder / place).write_text(text, encoding="utf-8")
    for place, source in model.links.items():
        link_or_copy(source, folder / place)
    hashes = {place: sha256_of(folder / place) for place in model.texts}
    write_json(folder / MARK, {"files": hashes, "bundle": sorted(model.links)})


def _check_replaceable(folder: Path, overwrite: bool) -> None:
    """Raises `UsageError` where a model's folder holds what this command did not write."""
    if not folder.exists():
        return
    try:
        mark = read_json(folder / MARK)
        hashes, linked = dict(mark["files"]), set(mark["bundle"])
    except MALFORMED:  # a UsageError too
        raise UsageError(
            f"{folder} exists and was not written by this command: choose another --name or --repository"
        ) from None
    found = {
        file.relative_to(folder).as_posix(): file
        for file in folder.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    foreign = sorted(set(found) - set(hashes) - linked - {MARK})
    if foreign:
        raise UsageError(f"{folder / foreign[0]} was not written by this command: move it, and run it again")
    edited = [place for place, known in hashes.items() if place in found and sha256_of(found[place]) != known]
    if edited and not overwrite:
        raise UsageError(f"{folder / edited[0]} was edited since: keep a copy, then replace it with --overwrite")


@contextmanager
def _staging(repository: Path) -> Iterator[Path]:
    """A folder on the same file system; not in the repository if it can be: Triton takes all in it for models."""
    parent = repository.parent
    parent.mkdir(parents=True, exist_ok=True)
    if repository.exists() and repository.stat().st_dev != parent.stat().st_dev:
        parent = repository
    staging = parent / f".{repository.name}.{os.getpid()}.partial"
    staging.mkdir()
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
