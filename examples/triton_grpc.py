"""Four images of one class in one request over gRPC: python triton_grpc.py [HOST:8001] [CLASS].

Needs `pip install "tritonclient[grpc]" pillow`. With `tritonclient.http` and port 8000 the code is the same.
"""

import sys

import numpy as np
import tritonclient.grpc as triton
from PIL import Image


def tensor(name, values, dtype):
    array = np.array(values).reshape(-1, 1)  # one row per image
    made = triton.InferInput(name, array.shape, dtype)
    made.set_data_from_numpy(array)
    return made


def main(host="localhost:8001", index="88"):
    seeds = [1, 2, 3, 4]
    inputs = [
        tensor("class", np.full(4, int(index), np.int64), "INT64"),
        tensor("seed", np.array(seeds, np.uint64), "UINT64"),
        tensor("cfg", np.array([0.0, 1.0, 2.0, 4.0], np.float32), "FP32"),  # a value per image
    ]
    with triton.InferenceServerClient(host) as client:
        images = client.infer("var", inputs, client_timeout=60).as_numpy("image")
    for seed, image in zip(seeds, images, strict=True):
        Image.fromarray(image).save(f"{index}-{seed}.png")
        print(f"{index}-{seed}.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
