"""The items of a job, drawn by whatever draws: a pipeline here, a server, or a pipeline on a worker of a cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from engines.draw.results import ImageSource, Preview, Stop
from engines.files.jobs import Item, Made
from engines.spec.sampling import OPTIONS


def draw_items(
    source: ImageSource,
    items: Sequence[Item],
    settings: Mapping[str, Any],
    *,
    preview: bool,
    stop: Stop | None = None,
    **more: Any,
) -> Made:
    """Images of these items, in their order.

    Args:
        source: what draws.
        items: each with its class, its seed, and the sampling options that are its own.
        settings: plain values by name, among them each sampling option of `engines.spec.sampling`.
        preview: have the picture after each scale too.
        stop: asked before each scale whether no more is wanted.
        more: what this source takes beside them.

    Raises what the source raises, as `Pipeline.generate` does.

    """
    more |= {} if stop is None else {"stop": stop}
    options: Any = {option.name: settings[option.name] for option in OPTIONS} | more
    options |= {name: [item.sampling[name] for item in items] for name in items[0].sampling}
    classes, seeds = [item.class_id for item in items], [item.seed for item in items]
    if not preview:
        result = source.generate(classes, seeds=seeds, **options)
        return Made(result.images, result.tokens, timings=result.timings)
    scales: dict[int, list[Preview]] = {}
    for shown in source.stream(classes, seeds=seeds, **options):  # in parts, where the source holds fewer images
        scales.setdefault(shown.scale, []).append(shown)
    images = [np.concatenate([part.images for part in scales[scale]]) for scale in sorted(scales)]
    return Made(images[-1], np.concatenate([part.tokens for part in scales[max(scales)]]), images)
