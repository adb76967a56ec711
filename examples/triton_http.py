"""One image over HTTP, without a client library: python triton_http.py [HOST:8000] [LABEL]."""

import json
import sys
import urllib.request

import numpy as np
from PIL import Image


def main(host="localhost:8000", label="parrot"):
    document = json.dumps({"label": label, "seed": 7, "cfg": 2.0}).encode()
    with urllib.request.urlopen(f"http://{host}/v2/models/var/generate", document) as reply:
        answer = json.load(reply)
    side = round((len(answer["image"]) / 3) ** 0.5)
    Image.fromarray(np.array(answer["image"], np.uint8).reshape(side, side, 3)).save(f"{label}.png")
    print(f"{label}.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
