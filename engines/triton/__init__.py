"""Serving with NVIDIA Triton: writes a model repository, and holds what its Python models do.

    tensors.py      the table of request and response tensors      repository.py  writes the folders
    request.py      tensors of a request -> checked values         config.py      their config.pbtxt
    service.py      one batch over many requests, with previews    stock.py       the fused graph, no Python
    forward.py      the unary model: hands requests on             adapter.py     Triton's Python interface
    flags.py        cancellation, from one to the other            client.py      `var-run --url`: images from a server
    facts.py        what a configuration says of its bundle

Only `adapter.py` knows `triton_python_backend_utils`, and only `client.py` knows `tritonclient`.
"""
