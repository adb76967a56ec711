"""The connection to a Ray cluster: quiet, without usage statistics, and one clear line where there is none."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.errors import BackendError, UsageError
from engines.machine import machine
from engines.packages import install_command
from engines.storage import ROOT

LOCAL, AUTO = "local", "auto"
"""Addresses: a cluster of this machine alone, started and ended; and the one that this machine is a part of."""
_OBJECTS = 1 << 29  # bytes of a local cluster's object store: some chunks of pictures, in RAM
_ANSWER_S = 10.0  # for a cluster to take a connection
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:]+\]|[\w.-]+):[0-9]{1,5}")
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else each worker without a GPU warns of a later default
    "RAY_DEDUP_LOGS": "0",
}


def parse_address(text: str) -> str:
    """An address that `Cluster` takes: `local`, `auto`, or HOST:PORT. Raises `UsageError`."""
    address = text.strip()
    if address.startswith("ray://"):
        raise UsageError(f"{address[:80]} is an address of Ray Client: run this on a machine of the cluster, with auto")
    if address not in (LOCAL, AUTO) and not _ADDRESS.fullmatch(address):
        raise UsageError(f"a Ray cluster is named as 10.0.0.5:6379, {LOCAL} or {AUTO}, not {address[:80]!r}")
    return address


@dataclass(frozen=True)
class Node:
    """One machine of a cluster that is alive."""

    name: str
    """The name that Ray gives each node, in hexadecimal."""
    host: str
    """The address by which the other nodes reach it."""
    cpus: float
    """The CPUs that Ray counts there."""
    gpus: float


class Cluster(AbstractContextManager["Cluster"]):
    """A connection of this process to a cluster, ended by `close` unless the process had one before."""

    def __init__(self, address: str) -> None:
        """Args: address: from `parse_address`.

        Raises `BackendError` where Ray is not installed, or nobody answers.
        """
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        try:
            import ray
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
        except ImportError as error:
            raise BackendError(f"--ray needs a package ({error}): {install_command('ray')}") from error
        self.ray, self._affinity = ray, NodeAffinitySchedulingStrategy
        self._own = not ray.is_initialized()
        if not self._own:
            return
        options: dict[str, Any] = {"num_cpus": machine().physical_cores, "object_store_memory": _OBJECTS}
        try:
            if address not in (LOCAL, AUTO):  # Ray itself would try for more than a minute
                host, port = address.rsplit(":", 1)
                socket.create_connection((host.strip("[]"), int(port)), _ANSWER_S).close()
            with _in_folder(ROOT):  # workers look for modules where the driver is: in this project, in no user's folder
                ray.init(
                    address,
                    include_dashboard=False if address == LOCAL else None,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    namespace="var-export",
                    **(options if address == LOCAL else {}),
                )
        except (OSError, OverflowError, RuntimeError, ValueError, AssertionError) as error:
            with contextlib.suppress(Exception):
                ray.shutdown()
            remedy = f"start one with ray start --head, or take --ray {LOCAL}" if address == AUTO else "is it up?"
            raise BackendError(f"no Ray cluster at {address} ({_first_line(error)}): {remedy}") from error

    def nodes(self) -> list[Node]:
        """The machines that are alive. A node that has just died may be among them for some seconds."""
        return [
            Node(
                each["NodeID"],
                each["NodeManagerAddress"],
                each["Resources"].get("CPU", 0.0),
                each["Resources"].get("GPU", 0.0),
            )
            for each in self.ray.nodes()
            if each["Alive"]
        ]

    def start(self, kind: type[Any], node: Node, *, cpus: float, gpus: float, **arguments: Any) -> Any:
        """An actor on that node and no other, or waiting until it has the resources; never restarted by Ray."""
        placed = self._affinity(node_id=node.name, soft=False)
        options = {"num_cpus": cpus, "num_gpus": gpus, "max_restarts": 0, "scheduling_strategy": placed}
        return self.ray.remote(kind).options(**options).remote(**arguments)

    def close(self) -> None:
        """End the connection, and the cluster where it was started for this process alone."""
        if self._own:
            self.ray.shutdown()

    def __exit__(self, *raised: object) -> None:
        self.close()


@contextlib.contextmanager
def _in_folder(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
