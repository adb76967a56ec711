"""What a server adds to a `Pipeline`, by hand, on the demo model: overhead, throughput with batch fill, first preview.

    PYTHONPATH=. python tests/engines/tritonserver/measure.py

The pipeline alone runs in a process of its own, in turns with the server, by the server's Python and ONNX Runtime.
"""

import statistics
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tritonclient.grpc as grpc
from triton_calls import Stream, inputs
from triton_server import ROOT, VENV, Server

from engines.bundle.bundle import DEMO_BUNDLE, Bundle
from engines.triton.writing.pbtxt import Serving
from engines.triton.writing.repository import plan_python, write

ALONE = """
import sys, time
from engines.bundle.bundle import DEMO_BUNDLE
from engines.draw.pipeline import Pipeline
with Pipeline.load(DEMO_BUNDLE) as pipeline:
    pipeline.generate(88)
    for _ in sys.stdin:
        began = time.perf_counter()
        taken = pipeline.generate(88).timings
        seconds = time.perf_counter() - began
        print(seconds, seconds - sum(taken.scales) - taken.decode, flush=True)
"""
TURNS, PAUSE = 100, 0.01  # after each turn, threads that spin come to rest


def overhead(server, client):
    """Milliseconds of one image, served and alone, in turns: median time, and mean time outside the engines."""

    def engines():
        time.sleep(1.5)  # metrics come once a second
        return server.metric("var_scale_seconds_total") + server.metric("var_decode_seconds_total")

    before = engines()
    served, alone, outside = [], [], []
    with subprocess.Popen(
        [VENV / "bin/python", "-c", ALONE], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        for _ in range(TURNS):
            began = time.perf_counter()
            client.infer("var", inputs(class_=88))
            served.append(time.perf_counter() - began)
            time.sleep(PAUSE)
            process.stdin.write("\n")
            process.stdin.flush()
            seconds, without = map(float, process.stdout.readline().split())
            alone.append(seconds)
            outside.append(without)
            time.sleep(PAUSE)
        process.stdin.close()
    served_outside = statistics.mean(served) - (engines() - before) / TURNS
    return [
        (1e3 * statistics.median(served), 1e3 * served_outside),
        (1e3 * statistics.median(alone), 1e3 * statistics.mean(outside)),
    ]


def throughput(server, client, clients):
    """Images per second and images per batch with so many clients in turn."""

    def counts():
        time.sleep(1.5)
        return server.metric("var_images_total", result="drawn"), server.metric("var_batches_total")

    images, batches = counts()
    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as threads:
        list(threads.map(lambda _: client.infer("var", inputs(class_=88)), range(clients * 16)))
    seconds = time.perf_counter() - began
    drawn, run = counts()
    return (drawn - images) / seconds, (drawn - images) / (run - batches)


def main():
    """Measure, and print."""
    with tempfile.TemporaryDirectory() as folder:
        write(plan_python(Bundle.open(DEMO_BUNDLE), Serving()), Path(folder) / "repository")
        with (
            Server(Path(folder) / "repository", Path(folder)) as server,
            grpc.InferenceServerClient(server.grpc) as client,
        ):
            print("server's process", server.process.pid, flush=True)
            for how, (whole, outside) in zip(("served", "alone"), overhead(server, client), strict=True):
                print(f"{how}: {whole:.1f} ms (median), {outside:.1f} ms outside the engines (mean)", flush=True)
            for clients in (1, 4, 8, 16):
                rate, fill = throughput(server, client, clients)
                print(f"{clients:2} clients: {rate:.1f} images/s, {fill:.1f} images a batch", flush=True)
            shares = []
            for seed in range(10):
                with Stream(server, class_=88, seed=seed) as stream:
                    list(stream)
                shares.append(stream.seconds[0] / stream.seconds[-1])
            print(f"first preview after {statistics.median(shares):.0%} of the time of the final image")


if __name__ == "__main__":
    main()
