"""The fused graph on a stock backend (`var-export triton --stock`): python triton_fused.py BUNDLE [HOST:8001].

The server holds a graph and nothing else, so what decides a draw is made here: rows, settings and uniform numbers.
Needs `pip install ".[triton]"`; of BUNDLE only its manifest is read.
"""

import sys

import tritonclient.grpc as triton
from PIL import Image

from engines import Bundle
from engines.draw.batch import fused_inputs
from engines.draw.request import make_request

TYPES = {"float32": "FP32", "int64": "INT64", "bool": "BOOL"}


def main(folder, host="localhost:8001"):
    bundle = Bundle.open(folder, verify=False)
    request = make_request(bundle, [88, 3], seeds=[1, 2])
    batch = request.batch(bundle.config, slice(None))
    inputs = []
    for name, array in fused_inputs(batch, bundle.tensors("fused")[0]).items():
        inputs.append(triton.InferInput(name, array.shape, TYPES[array.dtype.name]))
        inputs[-1].set_data_from_numpy(array)
    with triton.InferenceServerClient(host) as client:
        images = client.infer("var", inputs, outputs=[triton.InferRequestedOutput("image")]).as_numpy("image")
    for number, image in enumerate(images):
        Image.fromarray(image).save(f"fused-{number}.png")
        print(f"fused-{number}.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
