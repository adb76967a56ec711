"""What the workers of a test draw with: pictures that follow from class and seed, and what is to go wrong.

Each function is a `WorkOrder.load`; `options` of the order say the rest, all of them plain values.
"""

import os
import time
from pathlib import Path

import numpy as np

from engines.draw.results import Result, Timings
from engines.errors import BackendError

SIDE = 4


def image_of(class_id, seed):
    """(SIDE, SIDE, 3) uint8."""
    return np.random.default_rng([class_id, seed]).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


def once(folder, name):
    """Whether this is the first time that any process asks for this name."""
    try:
        os.close(os.open(Path(folder, name), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


class Source:
    max_batch = 8

    def __init__(self, delay=0.0, runtime=None, die_at=None, fail_at=(), marks=None, blank=None):
        self.delay, self.runtime, self.die_at, self.fail_at, self.marks = delay, runtime, die_at, fail_at, marks
        self.blank = blank

    def generate(self, classes, *, seeds, **_):
        time.sleep(self.delay)
        if self.die_at in seeds and (self.marks is None or once(self.marks, "died")):
            os._exit(9)
        for seed in set(seeds) & set(self.fail_at):
            with Path(self.marks, f"tries-{seed}").open("a") as file:
                file.write("x")
            raise BackendError(f"no luck with seed {seed}")
        if self.blank is not None:  # pixels along a side
            images = np.zeros((len(classes), self.blank, self.blank, 3), np.uint8)
        else:
            images = np.stack([image_of(*each) for each in zip(classes, seeds, strict=True)])
        tokens = np.zeros((len(classes), 1), np.int64)
        return Result(images, tokens, tokens, np.array(classes), np.array(seeds, np.uint64), Timings())

    def describe_runtime(self):
        return {"backend": "fake", **(self.runtime or {})}

    def close(self):
        pass


def load(_, *, threads, **options):
    return Source(**options)


def load_together(_, *, threads, marks, of, **options):
    """None draws before so many are there."""
    Path(marks, f"worker-{os.getpid()}").touch()
    while len(list(Path(marks).glob("worker-*"))) < of:
        time.sleep(0.2)
    return Source(**options)


def load_otherwise_once(_, *, threads, marks, delay):
    """All workers but the first compute with another provider."""
    return Source(delay, {"provider": "first" if once(marks, "first") else "second"})


def load_never(_, *, threads):
    raise BackendError("this machine has no arithmetic")
