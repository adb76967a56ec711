"""The front door of the runtime: `Pipeline.load(path)`, then `generate`, `stream`, `encode`, `decode`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines import backends
from engines.backends.base import Array
from engines.bundle.bundle import Bundle, default_bundle
from engines.draw.batch import Batch, fused_inputs
from engines.draw.conditioning import Conditioning
from engines.draw.engine_set import EngineSet
from engines.draw.loop import ScaleView, Stop, Timings, Workspace, advance, ask
from engines.draw.mask import prepare
from engines.draw.request import Flags, Forced, PerImage, PreviewScales, check_tokens, make_request, preview_sets
from engines.draw.results import Preview, Result
from engines.errors import UsageError

OnScale = Callable[[ScaleView], None]


class Pipeline:
    """A bundle, loaded: draws images and converts between images and tokens.

    Safe to use from several threads: engines are shared, and every running batch has buffers of its own.
    """

    def __init__(
        self, bundle: Bundle, backend: backends.Backend, *, form: str | None = None, max_batch: int = 8
    ) -> None:
        if max_batch < 1:
            raise UsageError(f"max_batch must be 1 or more, got {max_batch}")
        self.bundle, self.backend, self.max_batch = bundle, backend, max_batch
        self.config, self.labels, self.sampling = bundle.config, bundle.labels, bundle.sampling
        self.form = form or bundle.forms[0]
        if self.form not in bundle.forms:
            raise UsageError(
                f"{bundle.path} was built as {' and '.join(bundle.forms)}, not {self.form}; use --form both"
            )
        self._engines = engines = EngineSet(bundle, backend)
        self._conditioning = Conditioning(lambda labels: engines.call("cond", {"labels": labels}, len(labels)))
        for graph in ("fused",) if self.form == "fused" else ("cond", "step", "decode"):
            self.max_batch = min(self.max_batch, engines.open(graph).max_images or self.max_batch)

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        *,
        backend: str | None = None,
        provider: str = "cpu",
        threads: int | None = None,
        device: int = 0,
        form: str | None = None,
        max_batch: int = 8,
    ) -> Pipeline:
        """Open a bundle and its engines.

        Args:
            path: bundle folder; the newest under `bundles/`, else the embedded demo, by default.
            backend: one of `engines.spec.choices.BACKENDS`; the one of the bundle's plans that fit this machine,
                else ONNX Runtime, by default.
            provider: what ONNX Runtime computes on; never anything else than asked.
            threads: of each operator on the CPU; all physical cores by default.
            device: which GPU, as CUDA counts them.
            form: `stepwise` or `fused`; the bundle's first form by default.
            max_batch: images that run at once; more are split.

        Raises `BundleError` and `BackendError`.

        """
        bundle = Bundle.open(default_bundle()[0] if path is None else path)
        runtime = backends.for_bundle(bundle, backend, provider=provider, threads=threads, device=device)
        try:
            return cls(bundle, runtime, form=form, max_batch=max_batch)
        except BaseException:
            runtime.close()
            raise

    def generate(
        self,
        classes: int | str | Sequence[int | str],
        *,
        seeds: int | Sequence[int] = 0,
        cfg: PerImage = None,
        temperature: PerImage = None,
        top_k: PerImage = None,
        top_p: PerImage = None,
        smooth: Flags = None,
        forced: Forced | None = None,
        on_scale: OnScale | None = None,
        stop: Stop | None = None,
    ) -> Result:
        """Draw one image per class.

        Args:
            classes: class indices or labels; the number of classes stands for no class.
            seeds: one per image, or one: image k then has seed `seeds + k`.
            cfg: guidance strength; 0 runs half the work.
            temperature: divides the logits.
            top_k: most likely tokens kept; 0 keeps all.
            top_p: probability mass kept; 0 keeps all.
            smooth: mix codebook entries instead of drawing one, which the bundle must have been built for.
            forced: tokens int (B, T), or a pair of tokens and bool mask (B, T): taken instead of drawn.
            on_scale: called after each scale with its logits and draws.
            stop: asked before each scale, in the thread that called; where it says true, no more is computed.

        Each of cfg to smooth is a value or one per image; the bundle recommends one where None is given.
        Raises `UsageError` on values that cannot be, `CancelledError` where `stop` said so.

        """
        request = make_request(
            self.bundle,
            classes,
            seeds=seeds,
            cfg=cfg,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            smooth=smooth,
            forced=forced,
        )
        timings = Timings(scales=[0.0] * (self.config.num_scales if self.form == "stepwise" else 1))
        parts = []
        for start in range(0, len(request), self.max_batch):
            part = slice(start, min(start + self.max_batch, len(request)))
            began = time.perf_counter()
            batch = request.batch(self.config, part)
            if self.form == "fused":
                drawn = self._run_fused(batch, timings, on_scale, stop)
            else:
                drawn = self._run_stepwise(batch, timings, part, on_scale, stop)
            parts.append({name: value[: len(batch.cfg)] for name, value in drawn.items()})
            timings.total += time.perf_counter() - began
        joined = {name: np.concatenate([part[name] for part in parts]) for name in ("image", "tokens", "drawn")}
        return Result(joined["image"], joined["tokens"], joined["drawn"], request.classes, request.seeds, timings)

    def stream(
        self,
        classes: int | str | Sequence[int | str],
        *,
        seeds: int | Sequence[int] = 0,
        cfg: PerImage = None,
        temperature: PerImage = None,
        top_k: PerImage = None,
        top_p: PerImage = None,
        smooth: Flags = None,
        forced: Forced | None = None,
        preview_scales: PreviewScales = None,
        stop: Stop | None = None,
    ) -> Iterator[Preview]:
        """Draw one batch and yield the images after each scale.

        Args: as `generate`; preview_scales: the scales to decode after (each costs a decode), or one such list per
        image, all by default; the last scale is always among them.

        Raises `UsageError` for more than `max_batch` images, and for a bundle without the stepwise form.
        """
        if self.form != "stepwise":
            raise UsageError("previews need the stepwise form; load with form='stepwise'")
        request = make_request(
            self.bundle,
            classes,
            seeds=seeds,
            cfg=cfg,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            smooth=smooth,
            forced=forced,
        )
        if len(request) > self.max_batch:
            raise UsageError(f"{len(request)} images to stream, but max_batch is {self.max_batch}")
        wanted = preview_sets(preview_scales, len(request), self.config.num_scales)
        return self._previews(request.batch(self.config, slice(None)), wanted, stop)

    def edit(
        self,
        images: NDArray[np.uint8],
        mask: NDArray[np.bool_],
        classes: int | str | Sequence[int | str] | None = None,
        *,
        seeds: int | Sequence[int] = 0,
        **settings: Any,
    ) -> Result:
        """Redraw a part of pictures; the rest keeps the tokens that the encoder gives it.

        Args:
            images: uint8 (h, w, 3) or (B, h, w, 3), of the model's size.
            mask: bool, true where to redraw: pixels (h, w) or latent cells (S, S), of each image or of all.
            classes: what to draw; none is the unconditional label, which costs half.
            seeds: as `generate`; several of one image give several variants.
            settings: cfg to stop, as `generate`.

        One of images, mask, classes and seeds stands for as many as there are of the others. Raises `UsageError`.

        """
        names, forced = prepare(self.config, self.encode, images, mask, classes, seeds)
        return self.generate(names, seeds=seeds, forced=forced, **settings)

    def encode(self, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Images uint8 (B, h, w, 3) of the model's size -> tokens int64 (B, T)."""
        size = self.config.image_size
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (size, size, 3):
            raise UsageError(f"images must be uint8 (B, {size}, {size}, 3), got {images.dtype} {images.shape}")
        return self._map("encode", "image", images, "tokens")

    def decode(self, tokens: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Tokens int (B, T) -> images uint8 (B, h, w, 3)."""
        tokens = np.asarray(tokens)
        if tokens.ndim != 2 or tokens.shape[1] != self.config.num_tokens:
            raise UsageError(f"tokens must be integers (B, {self.config.num_tokens}), got shape {tokens.shape}")
        check_tokens(tokens, self.config)
        f_hat = self._map("accumulate", "tokens", tokens.astype(np.int64), "f_hat")
        return self.decode_features(f_hat)

    def decode_features(self, f_hat: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Accumulated feature maps float32 (B, Z, S, S) -> images uint8 (B, h, w, 3)."""
        f_hat = np.asarray(f_hat)
        Z, S = self.config.vae.z_channels, self.config.latent_size
        if f_hat.dtype != np.float32 or f_hat.ndim != 4 or f_hat.shape[1:] != (Z, S, S):
            raise UsageError(f"feature maps must be float32 (B, {Z}, {S}, {S}), got {f_hat.dtype} {f_hat.shape}")
        return self._map("decode", "f_hat", f_hat, "image")

    def reconstruct(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Images through the tokens and back, uint8 (B, h, w, 3)."""
        return self.decode(self.encode(images))

    def describe_runtime(self) -> dict[str, Any]:
        """Versions, provider and threads, for reports."""
        return {"numpy": np.__version__, "form": self.form, **self.backend.describe()}

    def close(self) -> None:
        """Free engines and buffers; the pipeline cannot be used afterwards."""
        self._engines.close()
        self._conditioning.clear()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run_stepwise(
        self,
        batch: Batch,
        timings: Timings,
        part: slice,
        on_scale: OnScale | None,
        stop: Stop | None,
    ) -> dict[str, Array]:
        last = self.config.num_scales - 1
        with self._engines.stepwise(batch.shape) as space:
            timings.cond += self._begin(space, batch)
            for scale in range(last + 1):
                advance(space, scale, stop)
                if on_scale is not None:
                    on_scale(ScaleView(scale, part, space.logits[scale], space.mixed[scale] if space.mixed else None))
            image = space.decode(last)
            tokens, drawn = space.read_maps(space.tokens), space.read_maps(space.drawn)
            scales, decode = space.seconds()
            timings.scales = [sum(pair) for pair in zip(timings.scales, scales, strict=True)]
            timings.decode += decode
        return {"image": image, "tokens": tokens, "drawn": drawn}

    def _run_fused(self, batch: Batch, timings: Timings, on_scale: object, stop: Stop | None) -> dict[str, Array]:
        if on_scale is not None:
            raise UsageError("logits per scale need the stepwise form; load with form='stepwise'")
        ask(stop)
        start = time.perf_counter()
        with self._engines.alone("fused", *batch.shape) as space:
            batch = batch.padded(space.shape)
            inputs = fused_inputs(batch, self.config.vae.vocab_size if self.bundle.smooth else None)
            if batch.noise is None:
                inputs.pop("noise", None)
            result = space.run(inputs)
        timings.scales[0] += time.perf_counter() - start
        return result

    def _previews(self, batch: Batch, wanted: Sequence[set[int]], stop: Stop | None) -> Iterator[Preview]:
        last, images = self.config.num_scales - 1, len(batch.cfg)
        began = time.perf_counter()
        paused = 0.0
        with self._engines.stepwise(batch.shape) as space:
            cond = self._begin(space, batch)
            for scale in range(last + 1):
                advance(space, scale, stop)
                which = np.array([i for i in range(images) if scale in wanted[i]], np.int64)
                if not len(which) or scale == last:
                    continue
                shown = time.perf_counter()
                if len(which) == images:
                    image = space.decode(scale)[:images]
                else:  # the others did not ask for it, and a decode costs as much as it has images
                    image = self.decode_features(space.f_hat[scale].read()[which])
                yield Preview(scale, image, space.read_maps(space.tokens[: scale + 1])[which], False, which)
                paused += time.perf_counter() - shown
            image, tokens = space.decode(last)[:images], space.read_maps(space.tokens)[:images]
            scales, decode = space.seconds()
            timings = Timings(cond, scales, decode, time.perf_counter() - began - paused)
        yield Preview(last, image, tokens, True, which, timings)

    def _begin(self, space: Workspace, batch: Batch) -> float:
        start = time.perf_counter()
        batch = batch.padded(space.shape)
        cond = self._conditioning.of(batch.rows.labels)
        seconds = time.perf_counter() - start
        space.begin(batch, cond)
        return seconds

    def _map(self, graph: str, given: str, values: Array, result: str) -> Array:
        """Run a graph with one input and one output over all of `values`, in batches."""
        if len(values) == 0:
            raise UsageError("nothing to do: the array holds no image")
        parts = []
        for start in range(0, len(values), self.max_batch):
            part = values[start : start + self.max_batch]
            parts.append(self._engines.call(graph, {given: part}, len(part))[result])
        return np.concatenate(parts)
