"""A small job to draw on a cluster, where its images go, and one more node."""

import numpy as np
from fleet_sources import SIDE

from engines.files.jobs import make_job
from engines.files.npz import NpzRows
from engines.spec.sampling import Sampling

SETTINGS = {**vars(Sampling()), "provider": "cpu", "build_key": "ab"}


def add_node(cluster):
    return cluster.add_node(num_cpus=1, object_store_memory=2**27)


def job_of(count=24):
    return make_job((3, 5), seed=10, count=count // 2, settings=SETTINGS)


def rows(job, path, side=SIDE):
    arrays = {"arr_0": ((side, side, 3), np.dtype(np.uint8))}
    return NpzRows(job, path, arrays, lambda _, made: {"arr_0": made.images})
