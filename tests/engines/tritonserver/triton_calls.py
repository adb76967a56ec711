"""Short ways to call a server, written against tritonclient alone: a user's view, not our client's."""

import queue
import time

import numpy as np
import tritonclient.grpc as grpc
import tritonclient.http as http

TYPES = {
    "class": ("INT64", np.int64),
    "label": ("BYTES", np.object_),
    "seed": ("UINT64", np.uint64),
    "cfg": ("FP32", np.float32),
    "temperature": ("FP32", np.float32),
    "top_k": ("INT64", np.int64),
    "top_p": ("FP32", np.float32),
    "smooth": ("BOOL", np.bool_),
    "cfg_scales": ("INT64", np.int64),
}


def column(name, values):
    """(images, 1) of the input's type."""
    values = values if isinstance(values, list) else [values]
    return np.array([[value] for value in values], TYPES[name][1])


def inputs(protocol=grpc, **given):
    made = []
    for name, values in given.items():
        name = name.rstrip("_")
        array = column(name, values)
        made.append(protocol.InferInput(name, array.shape, TYPES[name][0]))
        made[-1].set_data_from_numpy(array)
    return made


def unary(server, *, outputs=None, **given):
    """One request over gRPC: (image, tokens)."""
    with grpc.InferenceServerClient(server.grpc) as client:
        wanted = None if outputs is None else [grpc.InferRequestedOutput(name) for name in outputs]
        result = client.infer("var", inputs(**given), outputs=wanted, client_timeout=120)
        return result.as_numpy("image"), result.as_numpy("tokens")


def unary_http(server, **given):
    with http.InferenceServerClient(server.http, network_timeout=120) as client:
        result = client.infer("var", inputs(http, **given))
        return result.as_numpy("image"), result.as_numpy("tokens")


class Stream:
    """One streaming request; iterates over its responses as dictionaries of arrays."""

    def __init__(self, server, *, parameters=None, model="var_stream", **given):
        self.client = grpc.InferenceServerClient(server.grpc)
        self.arrived = queue.Queue()
        self.client.start_stream(lambda result, error: self.arrived.put((result, error, time.perf_counter())))
        self.started = time.perf_counter()
        self.client.async_stream_infer(model, inputs(**given), parameters=parameters)
        self.seconds = []

    def __iter__(self):
        final = False
        while not final:
            result, error, at = self.arrived.get(timeout=120)
            if error is not None:
                raise error
            self.seconds.append(at - self.started)
            arrays = {name: result.as_numpy(name) for name in ("image", "tokens", "scale", "final")}
            final = bool(arrays["final"].all())
            yield arrays

    def cancel(self):
        self.client.stop_stream(cancel_requests=True)

    def close(self):
        self.client.stop_stream()
        self.client.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def eventually(condition, seconds=30):
    """Wait until `condition()` is true; its last value."""
    end = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return value


def settle(server, still=2.5, seconds=60):
    """Wait until everything that happened has been counted: the models hand their counts over once a second."""
    end = time.monotonic() + seconds
    while True:
        seen = ours(server)
        time.sleep(still)
        if ours(server) == seen:
            return
        assert time.monotonic() < end, "the server's counts never come to rest"


def ours(server):
    """Every counter of our own on the server's page, as it prints them."""
    return sorted(line for line in server.metrics().splitlines() if line.startswith("var_"))
