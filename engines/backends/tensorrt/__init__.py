"""TensorRT and TensorRT-RTX: one code path for both.

    library.py       the vendor's module, its log, and its words as errors of ours
    profiles.py      which shapes an engine is built for
    options.py       what a user decides about a build
    build.py         a bundle -> plans, stored in the bundle
    monitor.py       how far a build is, and Ctrl-C
    runner.py        a bundle's plans -> the backend that the scale loop drives
    engine.py        one plan: contexts, calls, CUDA graphs
    kernel_cache.py  what TensorRT-RTX compiled, kept between processes

Every name of `trt.*` that is used here exists in TensorRT 10.3 to 11.4 and TensorRT-RTX 1.7, or is asked for with
`hasattr` first; tests hold that against the vendor's own bindings.
"""
