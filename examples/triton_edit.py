"""The lower half of a picture redrawn, over gRPC: python triton_edit.py PICTURE CLASS [HOST:8001].

Needs `pip install "tritonclient[grpc]" pillow`. How large pictures are, and of how many cells, the server tells.
"""

import sys

import numpy as np
import tritonclient.grpc as triton
from PIL import Image, ImageOps


def tensor(name, array, dtype):
    made = triton.InferInput(name, array.shape, dtype)
    made.set_data_from_numpy(array)
    return made


def main(picture, label, host="localhost:8001"):
    with triton.InferenceServerClient(host) as client:
        shapes = {one.name: tuple(one.dims) for one in client.get_model_config("var").config.input}
        size, cells = shapes["picture"][0], shapes["redrawn"][0]
        square = ImageOps.fit(ImageOps.exif_transpose(Image.open(picture)).convert("RGB"), (size, size))
        redrawn = np.zeros((1, cells, cells), np.bool_)
        redrawn[:, cells // 2 :] = True
        inputs = [
            tensor("picture", np.asarray(square)[None], "UINT8"),
            tensor("redrawn", redrawn, "BOOL"),
            tensor("label", np.array([[label]], np.object_), "BYTES"),
        ]
        image = client.infer("var", inputs, client_timeout=60).as_numpy("image")[0]
    Image.fromarray(image).save("edited.png")
    print("edited.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
