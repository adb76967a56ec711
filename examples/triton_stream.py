"""Saves the image after each scale as it arrives: python triton_stream.py [HOST:8001] [LABEL].

Needs `pip install "tritonclient[grpc]" pillow`.
"""

import queue
import sys

import numpy as np
import tritonclient.grpc as triton
from PIL import Image


def main(host="localhost:8001", label="frog"):
    arrived = queue.Queue()
    which = triton.InferInput("label", [1, 1], "BYTES")
    which.set_data_from_numpy(np.array([[label.encode()]], np.object_))
    with triton.InferenceServerClient(host) as client:
        client.start_stream(lambda result, error: arrived.put((result, error)))
        client.async_stream_infer("var_stream", [which])  # parameters={"preview_scales": "0,3"}: fewer decodes
        final = False
        while not final:
            result, error = arrived.get()
            if error is not None:
                raise error
            scale, final = int(result.as_numpy("scale")[0, 0]), bool(result.as_numpy("final")[0, 0])
            Image.fromarray(result.as_numpy("image")[0]).save(f"{label}-{scale}.png")
            print(f"{label}-{scale}.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
