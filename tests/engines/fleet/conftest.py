"""A Ray cluster of several nodes on this machine, and a small job to draw on it."""

import importlib.util
import os
from pathlib import Path

import pytest

if importlib.util.find_spec("ray") is None:  # it comes with the extra ray
    collect_ignore_glob = ["test_*.py"]

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from fleet_jobs import SETTINGS, add_node
from fleet_sources import load

from engines.fleet.cluster import Cluster
from engines.fleet.hands import Staffing
from engines.fleet.pool import Fleet
from engines.fleet.worker import WorkOrder


@pytest.fixture(scope="session")
def nodes():
    """The cluster: a head without CPUs, and two nodes with one each."""
    import logging

    import ray
    from ray.cluster_utils import Cluster as LocalCluster

    here = Path(__file__)  # workers import the sources of the tests, and the project from this checkout
    os.environ["PYTHONPATH"] = os.pathsep.join([str(here.parent), str(here.parents[3])])
    cluster = LocalCluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 2**27})
    for _ in range(2):
        add_node(cluster)
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def connection(nodes):
    return Cluster(nodes.address)


@pytest.fixture
def lines():
    """What was told."""
    return []


@pytest.fixture
def make_fleet(connection, lines):
    """A fleet of fakes; keywords: of the source, and `source`, `most`, `mixed`, `patience`."""
    made = []

    def make(source=load, *, most=None, mixed=False, patience=120.0, **options):
        order = WorkOrder("", "", SETTINGS, options, load=source)
        staffing = Staffing(threads=1, most=most, mixed=mixed, patience=patience)
        made.append(Fleet(connection, order, None, staffing, tell=lines.append))
        return made[-1]

    yield make
    for fleet in made:
        fleet.close()
