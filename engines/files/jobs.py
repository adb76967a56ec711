"""Many images as one job that can be interrupted at any time and continued by the same command.

A job is a list of items, one per image, each with a key: a hash of everything that its pixels follow
from. It runs in batches; sinks store what was made and know what is stored already, so a job that is
started again makes only what is missing:

    items -> (not stored in all sinks) -> produce, a batch at a time -> sinks

What draws several batches at once is a `Drawing`: it takes all batches that are missing, and gives each back when it
is made, in any order. `engines.files.pictures` stores PNG files, `engines.files.npz` rows of an .npz file.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engines.draw.results import Timings
from engines.errors import UsageError
from engines.files.shard import Shard
from engines.foreign import read_json
from engines.spec.choices import ORDERS
from engines.spec.uniforms import MAX_SEED
from engines.storage import Lock, digest_of, writing
from engines.words import counted

JOB_FILE = "job.json"
JOB_FORMAT = 1
MAX_IMAGES = 5_000_000  # a job has no more: a hundred times the 50,000 of an FID, and some seconds to prepare
KEY = "key"
FOREIGN = "exists and is not what this command makes: choose another name, or replace it with --overwrite"


@dataclass(frozen=True)
class Item:
    """One image of a job: its place k, its class, its seed, and the key of all that decides its pixels."""

    index: int
    class_id: int
    seed: int
    key: str
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """Of the sampling options, those that differ from image to image."""
    whole_index: int | None = None
    """The place of the image in the whole job, where this job is a shard."""

    @property
    def number(self) -> int:
        """The place of the image in the whole job: what pictures are called by, whoever draws them."""
        return self.index if self.whole_index is None else self.whole_index


@dataclass(frozen=True)
class Made:
    """The images, tokens and previews that a batch of items became."""

    images: NDArray[np.uint8]
    """The pictures, (B, h, w, 3) uint8."""
    tokens: NDArray[np.int64] | None = None
    """The token maps of all scales, (B, tokens of an image) int64, where asked for."""
    previews: Sequence[NDArray[np.uint8]] = ()
    """The pictures after each scale, each (B, h, w, 3) uint8, where asked for."""
    timings: Timings | None = None
    """What the engines took, where they tell."""


@dataclass(frozen=True)
class ImageJob:
    """The images to make, in order, with the settings that they share."""

    items: tuple[Item, ...]
    settings: Mapping[str, Any]
    key: str
    """Of the job: jobs that share it begin with the same images, and differ in how many there are."""
    shard: Shard | None = None
    whole: ImageJob | None = None
    """The job that `shard` is a part of; None: this is no shard."""

    @property
    def all(self) -> ImageJob:
        """The whole job."""
        return self.whole or self

    def describe(self) -> dict[str, Any]:
        """The content of a job.json, as plain JSON types."""
        own: dict[str, Any] = {}
        if self.whole is not None:
            own = {"shard": str(self.shard), "whole": {KEY: self.whole.key, "images": len(self.whole.items)}}
        return {"format": JOB_FORMAT, KEY: self.key, "images": len(self.items), **self.settings, **own}


class TakenError(UsageError):
    """A place that nobody need have named holds something else than what a job writes there: another one would do."""

    def __init__(self, message: str, *, what: str = "") -> None:
        """Args: message: with what to do; what: what lies there, for who does that."""
        super().__init__(message)
        self.what = what or message


class Sink(Protocol):
    """A place that stores the images of a job, and knows which it has."""

    replaced: int
    """Files of others that it has replaced, since it was told to."""

    def has(self, item: Item) -> bool:
        """Whether this image is stored already, whole and made by the same settings."""

    def write(self, items: Sequence[Item], made: Made) -> None:
        """Store the images of a batch of items."""

    def finish(self) -> None:
        """Complete the output; all items are stored when this is called."""

    def close(self) -> None:
        """Let go of files and locks; whatever was stored stays."""


Chunk = Sequence[Item]
"""The items of one batch."""
Drawing = Callable[[Sequence[Chunk]], Generator[tuple[Chunk, Made], None, None]]
"""What makes the images of all chunks, and yields each chunk with them as soon as they are there, in any order.

It is asked for the next one when the last is stored, and has to bound what it draws ahead of that: so the memory of who
stores them stays flat. It is closed where the job ends early.
"""


class JobInterruptedError(KeyboardInterrupt):
    """Ctrl-C during a job; the message says how far it came."""

    def __init__(self, done: int, total: int) -> None:
        super().__init__(f"interrupted: {done} of {total} images are done, the same command continues")
        self.done = done
        self.total = total


def hash_of(value: object) -> str:
    """A hash, in hex, of plain JSON types."""
    return digest_of(value)[:32]


def combinations(sweep: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every combination of the values of a sweep, the last option changing fastest; one empty one of an empty sweep."""
    return [dict(zip(sweep, values, strict=True)) for values in itertools.product(*sweep.values())]


def make_job(
    classes: Sequence[int],
    *,
    seed: int,
    count: int,
    settings: Mapping[str, Any],
    sweep: Mapping[str, Sequence[Any]] | None = None,
    order: str = ORDERS[0],
) -> ImageJob:
    """`count` images of each class, the classes in turn; draw k of the job has the seed `seed` + k.

    So a job of a larger `count` begins with the same images, and continues a smaller one.

    Args:
        classes: indexes, in order; one that is named twice comes twice in each turn.
        seed: of the first draw.
        count: how often each class comes.
        settings: everything else that the pixels follow from, as plain JSON types: the bundle's build key, the resolved
            sampling values, the provider.
        sweep: values of sampling options, by name: each draw is made with every combination of them, the last option
            changing fastest, and so becomes as many images.
        order: one of `ORDERS`; by class, they are the same images in another order, and no larger job begins with them.

    Raises `UsageError` where a seed would exceed 64 bits, or the images are too many.
    """
    sweep = sweep or {}
    cells = combinations(sweep)
    draws = len(classes) * count
    if draws * len(cells) > MAX_IMAGES:
        raise UsageError(
            f"{draws * len(cells)} images are too many for one job: split it into jobs of up to {MAX_IMAGES}"
        )
    if not 0 <= seed <= MAX_SEED - (draws - 1):
        raise UsageError(f"seeds run from {seed} to {seed + draws - 1}: they must lie between 0 and {MAX_SEED}")
    shared = [hash_of({**settings, **cell}) for cell in cells]
    items: list[Item] = []
    for draw in range(draws):
        class_id = classes[draw % len(classes)]
        for cell, of_cell in zip(cells, shared, strict=True):
            key = hashlib.sha256(f"{of_cell} {class_id} {seed + draw}".encode()).hexdigest()[:32]
            items.append(Item(len(items), class_id, seed + draw, key, cell))
    all_settings = {**settings, **{name: list(values) for name, values in sweep.items()}}
    all_settings |= {"classes": list(classes), "seed": seed}
    if order != ORDERS[0]:
        place = {class_id: place for place, class_id in reversed(list(enumerate(classes)))}
        items.sort(key=lambda item: place[item.class_id])
        items = [replace(item, index=index) for index, item in enumerate(items)]
        all_settings |= {"order": order, "count": count}
    return ImageJob(tuple(items), {**all_settings, "count": count}, hash_of(all_settings))


def shard_of(job: ImageJob, shard: Shard) -> ImageJob:
    """The part of a job that one machine draws. Raises `UsageError` where no image is left for it."""
    items = job.items[shard.items]
    if not items:
        raise UsageError(f"shard {shard} of {counted(len(job.items), 'image')} has none: take fewer shards")
    own = tuple(replace(item, index=index, whole_index=item.index) for index, item in enumerate(items))
    return replace(job, items=own, key=hash_of([job.key, str(shard)]), shard=shard, whole=job)


def run_job(
    job: ImageJob,
    sinks: Sequence[Sink],
    produce: Callable[[Sequence[Item]], Made],
    *,
    batch: int,
    progress: Callable[[float], None] | None = None,
) -> int:
    """Make what the sinks do not have yet, `batch` images at a time, one batch after the other, and store it in them.

    Returns and raises as `run_drawing`.
    """

    def in_turn(chunks: Sequence[Chunk]) -> Generator[tuple[Chunk, Made], None, None]:
        for chunk in chunks:
            yield chunk, produce(chunk)

    return run_drawing(job, sinks, in_turn, batch=batch, progress=progress)


def run_drawing(
    job: ImageJob,
    sinks: Sequence[Sink],
    drawing: Drawing,
    *,
    batch: int,
    progress: Callable[[float], None] | None = None,
) -> int:
    """Have what the sinks do not have yet drawn, in chunks of `batch` images, and store it in all of them.

    The sinks are closed at the end, whatever happens. `progress` is called before the first batch and after each with
    the number of images that are done. Returns the number of images made; the others were stored already.

    Raises `JobInterruptedError` on Ctrl-C; what was stored stays and is found by the next run.
    """
    total = len(job.items)
    done = 0
    try:
        pending = [item for item in job.items if not all(sink.has(item) for sink in sinks)]
        done = total - len(pending)
        if progress:
            progress(done)
        chunks = [pending[start : start + batch] for start in range(0, len(pending), batch)]
        with contextlib.closing(drawing(chunks)) as drawn:
            for chunk, made in drawn:
                for sink in sinks:
                    sink.write(chunk, made)
                done += len(chunk)
                if progress:
                    progress(done)
        for sink in sinks:
            sink.finish()
    except KeyboardInterrupt:
        raise JobInterruptedError(done, total) from None
    finally:
        for sink in sinks:
            sink.close()
    return len(pending)


def held(folder: Path) -> Lock:
    """The lock of a folder, which is made, against a second process that would write the same job."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock = Lock(folder, busy=f"another process is writing to {folder}: wait for it, or choose another place")
    lock.acquire()
    return lock


def read_job_file(path: Path) -> dict[str, Any] | None:
    """The content of a job.json that this version wrote; None where the file is anything else."""
    try:
        value = read_json(path)
    except UsageError:
        return None
    ours = isinstance(value, dict) and value.get("format") == JOB_FORMAT and isinstance(value.get(KEY), str)
    return value if ours else None
