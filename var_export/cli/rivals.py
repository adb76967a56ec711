"""What races with the engine in `var-export bench`: other backends, bundles and types of PyTorch, in turns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from engines.cli.common import Runtime, filled_by, option, option_group
from engines.cli.progress import StageClock
from engines.errors import UsageError
from engines.spec.choices import BACKENDS, ONNXRUNTIME, OPENVINO
from var_export.cli.common import (
    CHECKPOINT,
    FOLDER,
    CheckpointParts,
    choices_option,
    needs_export_packages,
    numbers_option,
    torch_threads,
)

if TYPE_CHECKING:
    from engines.bundle.bundle import Bundle
    from engines.draw.pipeline import Pipeline
    from engines.fidelity.speed import Bench, Comparison, Draw

TORCH_TYPES = ("fp32", "bf16")


@dataclass(frozen=True, kw_only=True)
class Rivals:
    """What else draws the same images; the first of `backends` is the engine that is measured."""

    cfg_scales: tuple[int, ...] = filled_by(
        numbers_option(
            "--cfg-scales",
            "numbers of scales",
            "9,8",
            "Race images guided in so many first scales in turns with those guided in all, and say how alike they are.",
        )
    )
    reference: str | None = option(
        type=CHECKPOINT,
        metavar="CHECKPOINT|demo|random",
        help="Race PyTorch (eager, same threads) in turns with the engine; random: weights of the same shapes.",
    )
    reference_dtypes: tuple[str, ...] = filled_by(
        choices_option(
            "--reference-dtype",
            "reference_dtypes",
            TORCH_TYPES,
            "What PyTorch computes in: FP32, or autocast to BF16.",
            default=TORCH_TYPES[0],
        )
    )
    backends: tuple[str, ...] = filled_by(
        choices_option(
            "--backend",
            "backends",
            BACKENDS,
            "What computes; further ones race in turns with it. [default: of the bundle's plans, else onnxruntime]",
        )
    )
    against: tuple[Path, ...] = option(
        type=FOLDER, multiple=True, metavar="BUNDLE", help="Race another bundle of the same model in turns; repeatable."
    )
    parts: CheckpointParts = filled_by(
        option_group(
            "parts",
            CheckpointParts,
            vae="The VQ-VAE of --reference, as for build.",
            config="The config.json of --reference, as for build.",
        )
    )


@dataclass(frozen=True, kw_only=True)
class Races:
    """The races of one engine, from its first check to their outcomes."""

    rivals: Rivals
    runtime: Runtime
    bundle: Bundle
    form: str | None
    max_batch: int

    def engine(self) -> Pipeline:
        """The engine that all race with."""
        return self._opened(self.bundle, self.rivals.backends[0] if self.rivals.backends else None)

    def check(self) -> None:
        """Find out whether all can race, before anything is timed.

        Raises `UsageError`, `BackendError`, `BundleError`.
        """
        from engines.bundle.bundle import Bundle

        rivals, runtime = self.rivals, self.runtime
        if len(rivals.backends) > 1:
            named = isinstance(runtime.device, str)
            of_onnxruntime, of_openvino = runtime.provider != "cpu", named or runtime.precision_hint is not None
            for asked, owner, flag in (
                (of_onnxruntime, ONNXRUNTIME, "--provider"),
                (of_openvino, OPENVINO, "--device" if named else "--precision-hint"),
            ):
                if asked and owner not in rivals.backends:
                    raise UsageError(f"{flag} is an option of {owner}, which does not race: add it to --backend")
        for backend in rivals.backends[1:]:
            self._suited(backend).open(self.bundle).close()
        for path in rivals.against:
            given, wanted = (each.config.to_dict() | {"name": ""} for each in (Bundle.open(path), self.bundle))
            if given != wanted:
                differing = ", ".join(key for key in wanted if given[key] != wanted[key])
                raise UsageError(f"{path} is of another model than {self.bundle.path}: its {differing} differ")

    def run(self, timer: Bench, *, cfg: float, pairs: int, progress: StageClock) -> Iterator[Comparison]:
        """One race after the other, each rival in turns with the engine; of the rivals, one is loaded at a time."""
        from engines.bundle.bundle import Bundle
        from engines.fidelity.speed import RANDOM, Comparison
        from engines.machine import machine

        rivals, bundle = self.rivals, self.bundle

        def race(name: str, title: str, draw: Draw, *, same_weights: bool = True) -> Comparison:
            return Comparison(name, title, same_weights, timer.race(draw, cfg=cfg, pairs=pairs))

        for scales in rivals.cfg_scales:
            yield timer.end_early(scales, cfg=cfg, pairs=pairs)
        for backend in rivals.backends[1:]:
            progress(f"loading {bundle.path} for {backend}")
            with self._opened(bundle, backend) as rival:
                yield race(backend, _title(rival), _drawing(rival, cfg))
        for path in rivals.against:
            progress(f"loading {path}")
            other = Bundle.open(path)
            with self._opened(other, rivals.backends[0] if rivals.backends else None) as rival:
                title = f"{path} ({other.precision}, {_title(rival)})"
                same = other.checkpoint_sha256 == bundle.checkpoint_sha256
                yield race(path.name or str(path), title, _drawing(rival, cfg), same_weights=same)
        if rivals.reference is not None:
            for dtype, draw, version in self._references(cfg, progress):
                how = "eager FP32" if dtype == TORCH_TYPES[0] else f"eager, autocast to {dtype.upper()}"
                title = f"PyTorch {version} ({how}, weights: {rivals.reference})"
                name = "PyTorch" if dtype == TORCH_TYPES[0] else f"PyTorch {dtype.upper()}"
                with torch_threads(self.runtime.threads or machine().physical_cores):
                    raced = race(name, title, draw, same_weights=rivals.reference != RANDOM)
                yield raced

    def _opened(self, bundle: Bundle, backend: str | None) -> Pipeline:
        from engines.draw.pipeline import Pipeline

        opened = self._suited(backend).open(bundle)
        try:
            return Pipeline(bundle, opened, form=self.form, max_batch=self.max_batch)
        except BaseException:
            opened.close()
            raise

    def _suited(self, backend: str | None) -> Runtime:
        """The options that a backend has; several backends share one command line."""
        runtime = self.runtime
        if len(self.rivals.backends) < 2:
            return replace(runtime, backend=backend)
        named = isinstance(runtime.device, str)
        return replace(
            runtime,
            backend=backend,
            provider=runtime.provider if backend == ONNXRUNTIME else "cpu",
            precision_hint=runtime.precision_hint if backend == OPENVINO else None,
            device=runtime.device if named == (backend == OPENVINO) else None,
        )

    def _references(self, cfg: float, progress: StageClock) -> Iterator[tuple[str, Draw, str]]:
        """What draws an image with the PyTorch reference in each type, and the version of PyTorch."""
        progress("loading the PyTorch reference")
        with needs_export_packages("--reference"):
            import torch

            from var_export import live
            from var_export.model.reference import Reference
        from engines.fidelity.speed import RANDOM

        rivals, bundle = self.rivals, self.bundle
        if rivals.reference == RANDOM:
            reference = Reference.random(bundle.config)
        else:
            reference = live.checkpoint_for(bundle, str(rivals.reference), **vars(rivals.parts)).reference()
        sampling = replace(bundle.sampling, cfg=cfg)
        for dtype in rivals.reference_dtypes:
            autocast = torch.bfloat16 if dtype == "bf16" else None
            yield dtype, live.draw_with(reference, sampling, bundle.max_top_k, autocast=autocast), torch.__version__


def _drawing(rival: Pipeline, cfg: float) -> Draw:
    return lambda classes, seeds: rival.generate(classes, seeds=seeds, cfg=cfg).tokens


def _title(rival: Pipeline) -> str:
    from engines.fidelity.speed import runtime_title

    return runtime_title(rival.describe_runtime())
