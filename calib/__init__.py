"""Calibration and quantisation to INT8, torch-free.

a bundle in float      layers.py       which products can be quantised, by the names of their weights
     |                 collect.py      activations of the real scale loop --> statistics.py --> calibration.py (a file)
     v                 policy.py       which of them are, and how
a bundle in INT8       quantize.py     Q/DQ pairs and products with ranges per token put into the graphs
"""
