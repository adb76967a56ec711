"""What the driver of a fleet costs: many real workers whose engines cost nothing, and images that are tiny.

    PYTHONPATH=. python tests/engines/fleet/driver_cost.py --workers 64 --images 50000

prints the driver's processor time for each image, storing it included, and its memory as the job goes on.
"""

import argparse
import logging
import os
import sys
import tempfile
import time
from pathlib import Path

import ray
from fleet_jobs import SETTINGS, rows
from fleet_sources import SIDE, load_together

from engines.files.jobs import make_job, run_drawing
from engines.fleet.cluster import Cluster
from engines.fleet.hands import Staffing
from engines.fleet.pool import Fleet
from engines.fleet.worker import WorkOrder

BATCH = 8


def resident():
    """Bytes of this process's memory that are in RAM and no file's."""
    text = Path("/proc/self/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("RssAnon")).split()[1]) * 1024


def measure(connection, workers, images, folder, side=SIDE):
    """Figures of one job: milliseconds of the driver for an image, images per second, memory at each tenth."""
    job = make_job((0,), seed=0, count=images, settings=SETTINGS)
    order = WorkOrder("", "", SETTINGS, {"blank": side, "marks": str(folder), "of": workers}, load=load_together)
    memory, at = [], {}

    def told(done):
        if done >= len(memory) * images / 10:
            memory.append(resident())

    with Fleet(connection, order, None, Staffing(threads=1, most=workers), tell=print) as fleet:

        def drawn(chunks):
            for each in fleet.drawn(chunks):
                if not at:  # when the first image is there, all workers are
                    at.update(cpu=time.process_time(), wall=time.perf_counter())
                yield each

        run_drawing(job, [rows(job, Path(folder, "a.npz"), side)], drawn, batch=BATCH, progress=told)
        spent, wall = time.process_time() - at["cpu"], time.perf_counter() - at["wall"]
        drew = sum(worker.images > 0 for worker in fleet.record.workers)
    return {"ms_an_image": spent / images * 1e3, "images_per_s": images / wall, "workers": drew, "memory": memory}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--side", type=int, default=SIDE, help="pixels")
    args = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *map(str, sys.path[1:])])
    ray.init("local", num_cpus=args.workers, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Cluster("local"), args.workers, args.images, folder, args.side)
    ray.shutdown()
    shown = ", ".join(f"{size / 2**20:.1f}" for size in figures.pop("memory"))
    print(", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
    print(f"MiB at each tenth: {shown}")


if __name__ == "__main__":
    main()
