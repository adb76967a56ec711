r"""One batch through the engines: condition, advance scale by scale, decode. It does not know which backend it drives.

cond --> x, AdaLN vectors
|
v
+--> step (scale k) --> tokens, logits
|        |   \
      |        |    new keys and values, written behind the cached ones
|        v
+---- x, f_hat of scale k+1          after any scale: decode --> image
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from engines.backends.base import Array
from engines.draw.batch import Batch
from engines.draw.conditioning import Conditioning
from engines.draw.engine_set import EngineSet
from engines.draw.refusal import require_finite
from engines.draw.results import OnScale, Preview, ScaleView, Stop, Timings
from engines.draw.workspace import Workspace
from engines.errors import CancelledError
from engines.spec.config import ModelConfig


class ScaleLoop:
    """Draws batches with the engines of one bundle. Safe for several threads: each batch borrows a workspace."""

    def __init__(self, config: ModelConfig, engines: EngineSet) -> None:
        self._config, self._engines = config, engines
        self._conditioning = Conditioning(lambda labels: engines.call("cond", {"labels": labels}, len(labels)))

    def draw(
        self, batch: Batch, part: slice, on_scale: OnScale | None, stop: Stop | None
    ) -> tuple[dict[str, Array], Timings]:
        """The outputs image, tokens and drawn of the fused graph, computed scale by scale, and the time they took.

        `part`: which images of the request these are, for `on_scale`. Raises `CancelledError` where `stop` says so.
        """
        last = self._config.num_scales - 1
        with self._begun(batch) as (space, cond):
            for scale in range(last + 1):
                _advance(space, scale, stop)
                if on_scale is not None:
                    on_scale(ScaleView(scale, part, space.logits[scale], space.mixed[scale] if space.mixed else None))
            image = space.decode(last)
            tokens, drawn = space.read_maps(space.tokens), space.read_maps(space.drawn)
            scales, decode = space.seconds()
        return {"image": image, "tokens": tokens, "drawn": drawn}, Timings(cond, scales, decode)

    def draft(self, batches: Iterable[Batch], scales: int, stop: Stop | None) -> tuple[Array, Timings]:
        """The tokens int64 (B, t) of the first scales of all batches, without images, and the time they took."""
        parts, timings = [], Timings()
        for batch in batches:
            began, images = time.perf_counter(), batch.shape[0]
            with self._begun(batch) as (space, cond):
                for scale in range(scales):
                    _advance(space, scale, stop)
                parts.append(space.read_maps(space.tokens[:scales])[:images])
                require_finite(self._config, {"drawn": space.read_maps(space.drawn[:scales])[:images]})
                seconds = [space.seconds_of(scale) for scale in range(scales)]
            timings.add(Timings(cond, seconds, total=time.perf_counter() - began))
        return np.concatenate(parts), timings

    def draw_fused(self, batch: Batch, stop: Stop | None) -> tuple[dict[str, Array], Timings]:
        """The same in one call of the fused graph. `stop` is asked once."""
        _ask(stop)
        start = time.perf_counter()
        with self._engines.alone("fused", *batch.shape) as space:
            outputs = space.run(batch.padded(space.shape).inputs)
        return outputs, Timings(scales=[time.perf_counter() - start])

    def previews(self, batch: Batch, wanted: Sequence[set[int]], stop: Stop | None) -> Iterator[Preview]:
        """The images after each scale. `wanted`: of each image, the scales to show it after; the last is among them."""
        last, images = self._config.num_scales - 1, batch.shape[0]
        began = time.perf_counter()
        paused = 0.0
        with self._begun(batch) as (space, cond):
            for scale in range(last + 1):
                _advance(space, scale, stop)
                which = np.array([i for i in range(images) if scale in wanted[i]], np.int64)
                if not len(which) or scale == last:
                    continue
                shown = time.perf_counter()
                if len(which) == images:
                    image = space.decode(scale)[:images]
                else:  # the others did not ask for it, and a decode costs as much as it has images
                    f_hat = space.f_hat[scale].read()[which]
                    image = self._engines.call("decode", {"f_hat": f_hat}, len(which))["image"]
                require_finite(self._config, {"image": image})
                yield Preview(scale, image, space.read_maps(space.tokens[: scale + 1])[which], False, which)
                paused += time.perf_counter() - shown
            image, tokens = space.decode(last)[:images], space.read_maps(space.tokens)[:images]
            require_finite(self._config, {"image": image, "drawn": space.read_maps(space.drawn)[:images]})
            scales, decode = space.seconds()
            timings = Timings(cond, scales, decode, time.perf_counter() - began - paused)
        yield Preview(last, image, tokens, True, which, timings)

    def close(self) -> None:
        """Forget what was computed for classes."""
        self._conditioning.clear()

    @contextmanager
    def _begun(self, batch: Batch) -> Iterator[tuple[Workspace, float]]:
        """A workspace that holds the batch, and the seconds that conditioning took."""
        with self._engines.stepwise(batch.shape) as space:
            start = time.perf_counter()
            batch = batch.padded(space.shape)
            cond = self._conditioning.of(batch.rows.labels)
            seconds = time.perf_counter() - start
            space.begin(batch, cond)
            yield space, seconds


def _ask(stop: Stop | None) -> None:
    """Raises `CancelledError` where the caller wants no more."""
    if stop is not None and stop():
        raise CancelledError("stopped: the caller wants no more")


def _advance(space: Workspace, scale: int, stop: Stop | None) -> None:
    """Start one scale, unless the caller wants no more."""
    if stop is not None and scale > 1:
        space.wait(scale - 2)  # a GPU would take the calls of all scales at once, and the question come too early
    _ask(stop)
    space.advance(scale)
