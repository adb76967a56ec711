"""INT8 bundles: what `calib` knows of one layer, applied to a whole bundle and judged. Torch-free."""
