"""Small jobs and what they are made of, for the tests of jobs and their sinks."""

import numpy as np

from engines.files.jobs import Made, make_job
from engines.files.npz import NpzRows
from engines.files.pictures import Grid, Pictures
from engines.pictures.images import load_picture

SIDE = 6
SETTINGS = {"build_key": "ab", "cfg": 1.0, "provider": "cpu"}
ARRAYS = {"arr_0": ((SIDE, SIDE, 3), np.dtype(np.uint8)), "seeds": ((), np.dtype(np.uint64))}


def job_of(classes=(3, 5), seed=10, count=4, **changes):
    return make_job(classes, seed=seed, count=count, settings={**SETTINGS, **changes})


def image_of(item):
    return np.random.default_rng([item.class_id, item.seed]).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


class Producer:
    """Makes batches, and counts; stops with `error` after `stop_at` batches."""

    def __init__(self, stop_at=None, error=KeyboardInterrupt):
        self.batches, self.stop_at, self.error = [], stop_at, error

    def __call__(self, items):
        if len(self.batches) == self.stop_at:
            raise self.error
        self.batches.append([item.index for item in items])
        images = np.stack([image_of(item) for item in items])
        return Made(images, previews=[np.zeros_like(images), images])


def pictures(job, folder, *, own=True, **options):
    paths = [folder / f"{item.class_id}-{item.seed}.png" for item in job.items]
    return Pictures(job, paths, lambda item: {"class": str(item.class_id)}, folder=folder if own else None, **options)


def rows(job, path, **options):
    def of(items, made):
        return {"arr_0": made.images, "seeds": np.array([item.seed for item in items], np.uint64)}

    return NpzRows(job, path, ARRAYS, of, **options)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def check_pictures(job, folder):
    for item in job.items:
        assert np.array_equal(load_picture(folder / f"{item.class_id}-{item.seed}.png"), image_of(item))


def grid_of(job, folder, files=(), **options):
    return Grid(job, folder / "grid.png", {"bundle": "b"}, files=files, side=SIDE, **options)
