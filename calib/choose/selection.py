"""Which layers to quantise for a bound on the loss: most saved per loss first, as many as keep the bound.

Losses of single layers add up only roughly, so they give the order; where to stop is found with all chosen layers
quantised at once, by bisection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from engines.errors import UsageError

FIGURES = ("kl", "top1", "psnr")
SKIPS = 3
LEAST_LOSS = 1e-12  # of a layer, so that a measured loss of 0 or below has a place in the order


@dataclass(frozen=True)
class Bounds:
    """What the quantised engines must keep, against the PyTorch reference; None leaves a figure free."""

    kl: float | None = None
    """Nats, at most."""
    top1: float | None = None
    """Share of tokens whose most likely entry changes, at most."""
    psnr: float | None = None
    """Of the image with the reference's tokens, dB, at least."""

    @classmethod
    def parse(cls, texts: Iterable[str]) -> Bounds:
        """From `kl=0.002`, `top1=1%`, `psnr=36`; a number alone is a KL. Raises `UsageError`."""
        found: dict[str, float] = {}
        for text in texts:
            name, _, number = text.rpartition("=")
            name = name.strip() or "kl"
            if name not in FIGURES:
                raise UsageError(f"{text!r} is no bound; write kl=NATS, top1=SHARE or psnr=DB")
            if name in found:
                raise UsageError(f"two bounds for {name}; give one")
            found[name] = _number(number.strip(), text)
        return cls(**found)

    @property
    def transformer(self) -> bool:
        """Whether transformer layers are bound: what they do shows in logits."""
        return self.kl is not None or self.top1 is not None

    @property
    def decoder(self) -> bool:
        """Whether the decoder's layers are."""
        return self.psnr is not None

    def __bool__(self) -> bool:
        return self.transformer or self.decoder

    def holds(self, kl: float | None = None, top1: float | None = None, psnr: float | None = None) -> bool:
        """Whether these figures keep them; `top1` is the share that agrees. What is not given is not judged."""
        return not (
            (self.kl is not None and kl is not None and not kl <= self.kl)
            or (self.top1 is not None and top1 is not None and not top1 >= 1 - self.top1)
            or (self.psnr is not None and psnr is not None and not psnr >= self.psnr)
        )


def _number(text: str, whole: str) -> float:
    percent = text.endswith("%")
    try:
        value = float(text.removesuffix("%")) / (100 if percent else 1)
    except ValueError:
        value = -1
    if not 0 <= value < float("inf"):
        raise UsageError(f"{whole!r} is no bound: the number must be 0 or more")
    return value


@dataclass(frozen=True)
class Option:
    """One way for one layer."""

    layer: str
    way: str
    saved: float
    loss: float


def order(options: Iterable[Option]) -> list[tuple[str, str]]:
    """Layers and ways in the order in which to take them; a layer may come again, in a way that is less mild.

    Per layer only the ways on the lower convex hull of (saved, loss) count: each next one saves more, at a worse rate.
    What saves nothing never comes.
    """
    by_layer: dict[str, list[Option]] = {}
    for option in options:
        if option.saved > 0:
            by_layer.setdefault(option.layer, []).append(option)
    steps: list[tuple[float, int, str, str]] = []  # loss per saving
    for layer, known in by_layer.items():
        saved = loss = 0.0
        while better := [option for option in known if option.saved > saved]:
            rate, best = min(
                ((max(option.loss - loss, LEAST_LOSS) / (option.saved - saved), option) for option in better),
                key=lambda pair: (pair[0], -pair[1].saved),
            )
            steps.append((rate, len(steps), layer, best.way))
            saved, loss = best.saved, max(best.loss, loss)
    return [(layer, way) for _, _, layer, way in sorted(steps)]


def after(steps: Sequence[tuple[str, str]], start: Mapping[str, str]) -> dict[str, str]:
    """The way of each layer once these steps are taken from `start`."""
    return {**start, **dict(steps)}


def most(steps: Sequence[tuple[str, str]], keeps: Callable[[Sequence[tuple[str, str]]], bool]) -> list[tuple[str, str]]:
    """Which steps can be taken, in their order: `keeps(some)` measures whether some of them keep the bound together.

    A bisection finds the first that breaks it; its layer stays as it is then, and the search goes on behind it, up to
    `SKIPS` times.
    """
    taken, left = 0, list(steps)
    for skipped in range(SKIPS + 1):
        if taken == len(left) or keeps(left):
            return left
        low, high = taken, len(left)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if keeps(left[:middle]) else (low, middle)
        taken, broke = low, left[low][0]
        if skipped < SKIPS:
            left = left[:low] + [step for step in left[low:] if step[0] != broke]
    return left[:taken]
