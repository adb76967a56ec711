"""The front door of the runtime: `Pipeline.load(path)`, then `generate`, `stream`, `encode`, `decode`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engines import backends
from engines.bundle.bundle import Bundle, default_bundle
from engines.draw.converting import Converter
from engines.draw.device_check import DRAWING, DeviceCheck
from engines.draw.editing import prepare
from engines.draw.engine_set import EngineSet
from engines.draw.loop import ScaleLoop
from engines.draw.refusal import require_finite
from engines.draw.request import (
    Classes,
    Forced,
    PreviewScales,
    Request,
    Seeds,
    make_request,
    preview_sets,
)
from engines.draw.results import OnScale, Preview, Result, Stop, Timings
from engines.errors import UsageError
from engines.spec.choices import FITS

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from engines.editing.handed import Images, Masks
    from engines.spec.sampling import SamplingOptions


class Pipeline(Converter, AbstractContextManager["Pipeline"]):
    """A bundle, loaded: draws images and converts between images and tokens.

    Safe to use from several threads: engines are shared, and every running batch has buffers of its own.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: backends.Backend,
        *,
        form: str | None = None,
        max_batch: int = 8,
        check: DeviceCheck | None = None,
    ) -> None:
        if max_batch < 1:
            raise UsageError(f"max_batch must be 1 or more, got {max_batch}")
        self.bundle, self.backend, self.max_batch = bundle, backend, max_batch
        self.config, self.labels, self.sampling = bundle.config, bundle.labels, bundle.sampling
        self.form = form or bundle.forms[0]
        if self.form not in bundle.forms:
            built = " and ".join(bundle.forms)
            raise UsageError(f"{bundle.path} was built as {built}, not {self.form}; use --form both")
        self._check = check or DeviceCheck("never")
        self._engines = EngineSet(bundle, backend)
        self._loop = ScaleLoop(bundle.config, self._engines)
        for graph in ("fused",) if self.form == "fused" else ("cond", "step", "decode"):
            self.max_batch = min(self.max_batch, self._engines.open(graph).max_images or self.max_batch)
        self._check.require(self, DRAWING)

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        *,
        backend: str | None = None,
        form: str | None = None,
        max_batch: int = 8,
        check: str = "once",
        tell: Callable[[str], None] | None = None,
        **runtime: Unpack[backends.RuntimeOptions],
    ) -> Pipeline:
        """Open a bundle and its engines.

        Args:
            path: bundle folder, or `hf://` as of `from_pretrained`; the newest under `bundles/`, else the embedded
                demo, by default.
            backend: one of `engines.spec.choices.BACKENDS`; the one of the bundle's plans that fit this machine,
                else ONNX Runtime, else OpenVINO, by default.
            form: `stepwise` or `fused`; the bundle's first form by default.
            max_batch: images that run at once; more are split.
            check: `once`, `always` or `never`: when to hold this machine against the golden run before it draws. That
                takes one image, or 5 seconds and a decode; who passed is kept in the user's cache folder.
            tell: called with a line where plans cannot run here and before a check; by default both are logged.
            runtime: provider, threads, device and precision_hint, as `engines.backends.RuntimeOptions` explains them.

        Raises `BundleError`, `BackendError`, and `CheckFailedError` where this machine computes something else.

        """
        judged = DeviceCheck(check, tell)
        bundle = Bundle.open(default_bundle()[0] if path is None else path)
        opened = backends.for_bundle(bundle, backend, tell=tell, **runtime)
        try:
            return cls(bundle, opened, form=form, max_batch=max_batch, check=judged)
        except BaseException:
            opened.close()
            raise

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> Pipeline:
        """`load` with the bundle named, as in other libraries: a folder, or `hf://OWNER/REPO[@REVISION][/FOLDER]`.

        Of the Hugging Face Hub, the files are downloaded to its cache unless they are there; it needs the extra `hub`.
        """
        return cls.load(name, **options)

    def generate(
        self,
        classes: Classes,
        *,
        seeds: Seeds = 0,
        forced: Forced | None = None,
        on_scale: OnScale | None = None,
        stop: Stop | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Result:
        """Draw one image per class, or one of one class per seed.

        Args:
            classes: class indices or labels; the number of classes stands for no class.
            seeds: one per image, or one: image k then has seed `seeds + k`.
            forced: tokens int (B, T), or a pair of tokens and bool mask (B, T): taken instead of drawn.
            on_scale: called after each scale with its logits and draws.
            stop: asked before each scale, in the thread that called; where it says true, no more is computed.
            sampling: cfg, temperature, top_k, top_p, smooth, cfg_scales, as `engines.spec.sampling.Sampling` explains
                them: each a value, or one per image; the bundle recommends one where none is given.

        Raises `UsageError` on values that cannot be, `CancelledError` where `stop` said so.

        """
        request = make_request(self.bundle, classes, seeds=seeds, forced=forced, **sampling)
        request.check_form(self.form, self.config)
        if self.form == "fused" and on_scale is not None:
            raise UsageError("logits per scale need the stepwise form; load with form='stepwise'")
        parts, timings = [], Timings()
        for start in range(0, len(request), self.max_batch):
            part = slice(start, min(start + self.max_batch, len(request)))
            began = time.perf_counter()
            batch = request.batch(self.config, part)
            if self.form == "fused":
                drawn, taken = self._loop.draw_fused(batch, stop)
            else:
                drawn, taken = self._loop.draw(batch, part, on_scale, stop)
            parts.append({name: value[: batch.shape[0]] for name, value in drawn.items()})
            require_finite(self.config, {name: parts[-1][name] for name in ("drawn", "image")})
            taken.total = time.perf_counter() - began
            timings.add(taken)
        image, tokens, own = (np.concatenate([part[name] for part in parts]) for name in ("image", "tokens", "drawn"))
        return Result(image, tokens, own, request.classes, request.seeds, timings, request.texts(self.bundle))

    def draft(self, request: Request, scales: int, stop: Stop | None = None) -> tuple[NDArray[np.int64], Timings]:
        """Tokens (B, t) of the first `scales` of images, for another model to go on from: see `Collaboration`."""
        if self.form == "fused":
            raise UsageError("drawing some of the scales needs the stepwise form; load with form='stepwise'")
        starts = range(0, len(request), self.max_batch)
        batches = (request.batch(self.config, slice(start, start + self.max_batch)) for start in starts)
        return self._loop.draft(batches, scales, stop)

    def stream(
        self,
        classes: Classes,
        *,
        seeds: Seeds = 0,
        forced: Forced | None = None,
        preview_scales: PreviewScales = None,
        stop: Stop | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Iterator[Preview]:
        """Draw and yield the images after each scale.

        Args: as `generate`; preview_scales: the scales to decode after (each costs a decode), or one such list per
        image, all by default; the last scale is always among them.

        More images than `max_batch` are drawn a batch after the other; `Preview.which` says which are shown. Raises
        `UsageError` as `generate`, at once, and for a bundle without the stepwise form.
        """
        if self.form != "stepwise":
            raise UsageError("previews need the stepwise form; load with form='stepwise'")
        request = make_request(self.bundle, classes, seeds=seeds, forced=forced, **sampling)
        wanted = preview_sets(preview_scales, len(request), self.config.num_scales)
        return self._stream(request, wanted, stop)

    def _stream(self, request: Request, wanted: Sequence[set[int]], stop: Stop | None) -> Iterator[Preview]:
        for start in range(0, len(request), self.max_batch):
            part = slice(start, start + self.max_batch)
            for preview in self._loop.previews(request.batch(self.config, part), wanted[part], stop):
                yield dataclasses.replace(preview, which=preview.which + start)

    def edit(
        self,
        images: Images,
        mask: Masks,
        classes: int | str | Sequence[int | str] | None = None,
        *,
        seeds: int | Sequence[int] = 0,
        fit: str = FITS[0],
        composite: bool = False,
        on_scale: OnScale | None = None,
        stop: Stop | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Result:
        """Redraw a part of pictures; the rest keeps the tokens that the encoder gives it.

        Args:
            images: as `encode` takes them, of any size, and fit.
            mask: bool, true where to redraw: pixels (h, w) or latent cells (S, S), of each image or of all; or files or
                pictures of Pillow that are white there.
            classes: what to draw; none is the unconditional label, which costs half.
            seeds: as `generate`; several of one image give several variants.
            fit: see `encode`.
            composite: give the originals, in their size, with what was redrawn laid over them; by default, the model's
                squares.
            on_scale: as `generate`, as are stop and sampling.
            stop: see there.
            sampling: see there.

        One of images, mask, classes and seeds stands for as many as there are of the others. Raises `UsageError`.

        """
        asked = prepare(self.config, images, mask, classes, seeds, fit)
        if composite:
            asked.check_composite()
        kept = self.keeping(asked.squares(), asked.areas)
        result = self.generate(asked.classes, seeds=seeds, on_scale=on_scale, stop=stop, **kept, **sampling)
        return dataclasses.replace(result, images=asked.laid_over(result.images)) if composite else result

    def describe_runtime(self) -> dict[str, Any]:
        """Versions, provider and threads, for reports."""
        return {"numpy": np.__version__, "form": self.form, **self.backend.describe()}

    def close(self) -> None:
        """Free engines and buffers; it cannot be used afterwards."""
        self._engines.close()
        self._loop.close()

    def __exit__(self, *raised: object) -> None:
        self.close()
