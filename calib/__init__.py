"""Calibration and quantisation to INT8, torch-free.

    a bundle in float --> observe   activations of the real scale loop --> statistics --> calibration (a file)
            |             choose    which layers are quantised, how, and with which ranges and factors
            v             rewrite   integer products put into the graphs
    a bundle in INT8  --> judge     what it costs, layer by layer and as a whole

`quantise` runs the stages; `graphs` holds what all of them, and builds from a checkpoint, do with ONNX graphs.
"""
