"""What two runtimes drew, beside each other."""

import numpy as np


def assert_same(result, expected):
    """Two `Result`s hold the same images."""
    for name in ("tokens", "drawn", "images", "classes", "seeds"):
        np.testing.assert_array_equal(getattr(result, name), getattr(expected, name), err_msg=name)
