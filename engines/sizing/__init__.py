"""What a model needs and how fast a device could run it at best, before either is bought: `var-export estimate`.

models.py      the official sizes by name        devices.py   figures of devices, each with its source
cost.py        operations of cond and step       roofline.py  bytes and FLOPs -> the least time
decoder.py     operations of decode              memory.py    bytes of weights, cache, buffers, activations
workload.py    what is to run
estimate.py    all of it for one workload on one device
"""
