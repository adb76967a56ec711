"""Bundles with something wrong in files, manifest or golden run, with and without digests made again."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path

import numpy as np

from engines.bundle.bundle import Bundle
from engines.bundle.inspection import describe, file_states
from engines.bundle.manifest import GOLDEN, MANIFEST, WEIGHTS, sealed
from engines.draw.pipeline import Pipeline
from engines.errors import VarExportError
from engines.fidelity.checks import verify
from engines.storage import sha256_of
from tests.bundles import shared_bundle
from tests.fuzz import odd

KINDS = (
    *("file", "swap", "manifest bytes", "manifest", "facts"),
    *("manifest resealed", "golden resealed", "graph resealed", "weights resealed", "sizes resealed"),
)
RESEALED = KINDS[5:]
SHARES = (0.12, 0.05, 0.11, 0.17, 0.06, 0.19, 0.12, 0.04, 0.04, 0.1)


class Bundles:
    """The class of cases about bundles. `honest` is what an undamaged bundle draws."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.honest_bundle = shared_bundle("tiny-fp32")
        self.files = {file.name: file.read_bytes() for file in self.honest_bundle.iterdir() if file.is_file()}
        self.manifest = json.loads(self.files[MANIFEST])
        with np.load(io.BytesIO(self.files[GOLDEN])) as archive:
            self.golden = dict(archive)
        self.honest = {form: self._drawn(self.honest_bundle, form) for form in ("stepwise", "fused")}

    def run(self, rng: np.random.Generator) -> tuple[str, str]:
        """One case: its kind, and what came of it. Raises what the bundle's use raises."""
        kind = str(rng.choice(KINDS, p=SHARES))
        place = self.folder / "bundle"
        shutil.rmtree(place, ignore_errors=True)
        changed = self._changed(kind, rng)
        place.mkdir()
        for name, content in (self.files | changed).items():
            if content is None:
                continue
            if name in changed:
                (place / name).write_bytes(content)
            else:
                os.link(self.honest_bundle / name, place / name)
        if set(changed) - {MANIFEST} and kind in RESEALED:
            self._reseal(place)
        form = odd.pick(rng, ["stepwise", "stepwise", "stepwise", "fused"])
        bundle = Bundle.open(place)
        json.dumps(describe(bundle, file_states(bundle)))
        problem = _problem_of(lambda: bundle.golden)  # who draws does not read it
        drawn = self._drawn(place, form)
        if kind == "golden resealed" and problem is None:
            self._verify(place)
        if problem is not None:
            raise problem
        if all(np.array_equal(drawn[name], self.honest[form][name]) for name in drawn):
            return kind, "as the honest one"
        if kind in RESEALED:
            return kind, "another picture"
        raise AssertionError(f"another picture, and no error: {kind}, {sorted(changed)}")

    def _changed(self, kind: str, rng: np.random.Generator) -> dict[str, bytes | None]:
        names = sorted(set(self.files) - {MANIFEST})
        if kind == "file":
            name = odd.pick(rng, names)
            return {name: odd.damaged(rng, self.files[name]) if rng.random() < 0.9 else None}
        if kind == "swap":
            first, second = odd.pick(rng, names), odd.pick(rng, names)
            return {first: self.files[second], second: self.files[first]}
        if kind == "manifest bytes":
            return {MANIFEST: odd.damaged(rng, self.files[MANIFEST])}
        if kind == "manifest":
            return {MANIFEST: odd.json_bytes(odd.edited(rng, self.manifest))}
        if kind == "facts":
            return {MANIFEST: odd.json_bytes(self._facts(rng))}
        if kind == "manifest resealed":
            document = odd.edited(rng, self.manifest)
            return {MANIFEST: odd.json_bytes(sealed(document))}
        if kind == "sizes resealed":
            return {MANIFEST: odd.json_bytes(sealed(self._sizes(rng)))}
        if kind == "golden resealed":
            return {GOLDEN: self._golden(rng)}
        if kind == "graph resealed":
            name = odd.pick(rng, [name for name in names if name.endswith(".onnx")])
            return {name: odd.flipped(rng, self.files[name])}
        return {WEIGHTS: odd.flipped(rng, self.files[WEIGHTS])}

    def _facts(self, rng: np.random.Generator) -> dict[str, object]:
        """The manifest with a number that is as good as the right one, and gives another picture."""
        document = json.loads(self.files[MANIFEST])
        if rng.random() < 0.5:
            constants = document["constants"]
            names = sorted(constants)
            one, other = odd.pick(rng, names), odd.pick(rng, names)
            constants[one]["offset"], constants[other]["offset"] = constants[other]["offset"], constants[one]["offset"]
        else:
            name = odd.pick(rng, ["cfg", "temperature", "top_k", "top_p"])
            document["sampling"][name] = odd.pick(rng, [0.5, 0.25]) if name != "top_k" else 1
        return document

    def _sizes(self, rng: np.random.Generator) -> dict[str, object]:
        """The manifest with other numbers of the model, each of which could be one."""
        document = json.loads(self.files[MANIFEST])
        for _ in range(int(rng.integers(1, 3))):
            group = document["model"][odd.pick(rng, ["vae", "transformer"])]
            name = odd.pick(rng, [name for name, value in group.items() if type(value) is int])
            group[name] = odd.near(rng, group[name])
        return document

    def _golden(self, rng: np.random.Generator) -> bytes:
        if rng.random() < 0.4:
            return odd.damaged(rng, self.files[GOLDEN])
        arrays = dict(self.golden)
        for _ in range(int(rng.integers(1, 3))):
            name, array = odd.array(rng, arrays)
            arrays.pop(name)
            if array is not None:
                arrays[name] = array
        stream = io.BytesIO()
        np.savez(stream, **arrays)
        return stream.getvalue()

    def _reseal(self, place: Path) -> None:
        document = json.loads(self.files[MANIFEST])
        for name, entry in document["files"].items():
            entry.update(size=(place / name).stat().st_size, sha256=sha256_of(place / name))
        (place / MANIFEST).unlink()  # a link to that of the honest one
        (place / MANIFEST).write_bytes(odd.json_bytes(sealed(document)))

    @staticmethod
    def _verify(place: Path) -> None:
        """The check that a device makes, of one image."""
        with Pipeline.load(place, threads=1, max_batch=1, check="never") as pipeline:
            verify(pipeline, {name: array[:1] for name, array in pipeline.bundle.golden.items()})

    @staticmethod
    def _drawn(place: Path, form: str) -> dict[str, np.ndarray]:
        with Pipeline.load(place, threads=1, form=form, max_batch=1, check="never") as pipeline:
            result = pipeline.generate([1], seeds=3)
            return {"image": result.images, "tokens": result.tokens, "encoded": pipeline.encode(result.images)}


def _problem_of(run) -> VarExportError | None:
    try:
        run()
    except VarExportError as error:
        return error
    return None
