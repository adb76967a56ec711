"""Calibration for INT8, torch-free: the room is kept for it; a later version moves in.

activations from the real scale loop --> ranges and smoothing --> Q/DQ graphs --> a bundle of precision int8
"""
