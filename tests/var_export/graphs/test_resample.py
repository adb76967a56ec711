import math

import numpy as np
import pytest
import torch
from support import tiny_config
from torch.nn import functional

from var_export.graphs.resample import down_matrix, up_matrix

OFFICIAL = {
    "demo": (1, 2, 3, 4, 5, 6, 8),
    "256": (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    "512": (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
}


@pytest.mark.parametrize("scales", OFFICIAL.values(), ids=OFFICIAL)
def test_matrices_do_what_interpolation_does(scales):
    config = tiny_config(patch_nums=scales)
    size = config.latent_size
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(2, 3, size, size, generator=generator)
    for scale, side in enumerate(scales):
        small = torch.randn(2, 3, side, side, generator=generator)
        up = (up_matrix(config, scale) @ small.flatten(2).mT).mT.reshape(2, 3, size, size)
        torch.testing.assert_close(up, functional.interpolate(small, size=(size, size), mode="bicubic"))
        down = (down_matrix(config, scale) @ whole.flatten(2).mT).mT.reshape(2, 3, side, side)
        torch.testing.assert_close(down, functional.interpolate(whole, size=(side, side), mode="area"))


@pytest.mark.parametrize("scales", OFFICIAL.values(), ids=OFFICIAL)
def test_matrices_keep_a_constant_map_constant(scales):
    config = tiny_config(patch_nums=scales)
    for scale, side in enumerate(scales):
        up, down = up_matrix(config, scale), down_matrix(config, scale)
        assert up.shape == (config.latent_size**2, side * side)
        assert down.shape == (side * side, config.latent_size**2)
        for matrix in (up, down):
            assert matrix.dtype == torch.float32
            assert matrix.is_contiguous()
            torch.testing.assert_close(matrix.sum(1), torch.ones(len(matrix)))


def test_area_reduction_is_the_mean_over_each_cell():
    """The cells of `interpolate(mode="area")` overlap where the sides do not divide: 8 to 5."""
    config = tiny_config(patch_nums=(5, 8))
    rows = np.zeros((5, 8))
    for i in range(5):
        start, stop = math.floor(i * 8 / 5), math.ceil((i + 1) * 8 / 5)
        rows[i, start:stop] = 1 / (stop - start)
    np.testing.assert_allclose(down_matrix(config, 0).numpy(), np.kron(rows, rows), atol=1e-7)


def test_the_last_scale_is_left_as_it_is():
    config = tiny_config(patch_nums=(1, 4))
    assert torch.equal(up_matrix(config, 1), torch.eye(16))
    assert torch.equal(down_matrix(config, 1), torch.eye(16))
