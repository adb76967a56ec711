"""Mixed load for minutes, by hand: is memory flat, is every answer right?

    PYTHONPATH=. python tests/engines/tritonserver/soak.py [MINUTES]

Unary and streaming requests of mixed settings and sizes, wrong ones, cancelled ones and streams that are dropped, by
eight clients. Prints the memory of the server's processes every 30 s, and what the answers were.
"""

import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import tritonclient.grpc as grpc
from triton_calls import Stream, inputs
from triton_server import Server
from tritonclient.utils import InferenceServerException

from engines.bundle.bundle import DEMO_BUNDLE, Bundle
from engines.draw.pipeline import Pipeline
from engines.triton.writing.pbtxt import Serving
from engines.triton.writing.repository import plan_python, write

CLIENTS = 8
KINDS = ("unary",) * 6 + ("several",) * 2 + ("stream",) * 3 + ("wrong", "cancelled", "dropped")


def megabytes(pid):
    """Resident memory of a process."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(lines["VmRSS"].split()[0]) // 1024


def ask(kind, client, server, rng, wanted):
    """One request; what came of it."""
    k = rng.randrange(len(wanted))
    given, tokens = wanted[k]
    if kind == "unary":
        return "right" if (client.infer("var", inputs(**given)).as_numpy("tokens") == tokens).all() else "WRONG"
    if kind == "several":
        several = [wanted[rng.randrange(len(wanted))] for _ in range(rng.randrange(2, 9))]
        joined = {name: [one[0][name] for one in several] for name in given}
        drawn = client.infer("var", inputs(**joined)).as_numpy("tokens")
        return "right" if all((a == b[1]).all() for a, b in zip(drawn, several, strict=True)) else "WRONG"
    if kind == "wrong":
        client.infer("var", inputs(class_=999))
    if kind == "cancelled":
        call = client.async_infer("var", inputs(class_=[1] * 8), lambda result, error: None)
        time.sleep(rng.random() / 4)
        call.cancel()
        return "cancelled"
    stream = Stream(server, **given)
    try:
        responses = iter(stream)
        if kind == "dropped":
            next(responses)
            stream.cancel()
            return "dropped"
        *_, last = responses
        return "right" if (last["tokens"] == tokens).all() else "WRONG"
    finally:
        stream.close()


def main(minutes):
    """Run, and print."""
    rng = random.Random(0)
    wanted = []
    with Pipeline.load(DEMO_BUNDLE) as local:
        for seed in range(24):
            given = {
                "class_": rng.randrange(172),
                "seed": seed,
                "cfg": rng.choice([0.0, 1.0, 3.0]),
                "top_k": rng.choice([1, 20, 900]),
            }
            sampling = {name: given[name] for name in ("cfg", "top_k")}
            wanted.append((given, local.generate(given["class_"], seeds=seed, **sampling).tokens[0]))
    results, ended = Counter(), threading.Event()
    with tempfile.TemporaryDirectory() as folder:
        write(plan_python(Bundle.open(DEMO_BUNDLE), Serving()), Path(folder) / "repository")
        with Server(Path(folder) / "repository", Path(folder)) as server:

            def work(seed):
                rng = random.Random(seed)
                with grpc.InferenceServerClient(server.grpc) as client:
                    while not ended.is_set():
                        kind = rng.choice(KINDS)
                        try:
                            results[kind, ask(kind, client, server, rng, wanted)] += 1
                        except InferenceServerException as error:
                            results[kind, error.message()[:60]] += 1

            threads = [threading.Thread(target=work, args=(seed,)) for seed in range(CLIENTS)]
            for thread in threads:
                thread.start()
            began = time.monotonic()
            print("seconds  server  " + "  ".join(server.stubs()) + "  (MB resident)", flush=True)
            while True:
                pids = [server.process.pid, *server.stubs().values()]
                print(f"{time.monotonic() - began:7.0f}  " + "  ".join(str(megabytes(pid)) for pid in pids), flush=True)
                if time.monotonic() - began >= 60 * minutes:
                    break
                time.sleep(30)
            ended.set()
            for thread in threads:
                thread.join()
            time.sleep(1.5)
            drawn, batches = server.metric("var_images_total", result="drawn"), server.metric("var_batches_total")
            print(f"{drawn:.0f} images in {batches:.0f} batches")
    for (kind, result), count in sorted(results.items()):
        print(f"{count:6}  {kind}: {result}")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 10)
