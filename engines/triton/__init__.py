"""Serving with NVIDIA Triton: what writes a model repository, what its Python models do, and the client.

    wire.py     the table of request and response tensors, what of a request becomes which, and what a bundle is
    client.py   `var-run --url`: a server as an `engines.draw.results.ImageSource`

    writing/    repository.py    the folders, put in place whole       stock.py   the fused graph, without Python
                pbtxt.py         their config.pbtxt
    serving/    service.py       one batch over many requests, with previews
                forward.py       the unary model: hands requests on     cancellation.py   from one model to the other
                adapter.py       Triton's Python interface

Only `adapter.py` knows `triton_python_backend_utils`, and only `client.py` knows `tritonclient`.
"""
