"""Images as data URIs within a budget, and what differs between two of them."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from tests.var_export.report.reading import noise
from var_export.report.pictures import amplification, amplified, difference, encode


def decoded(source):
    head, data = source.split(",", 1)
    assert head == "data:image/webp;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_without_loss_where_it_fits():
    images = noise(2, 32)
    sources, note = encode(images)
    assert note == ""
    for image, source in zip(images, sources, strict=True):
        assert np.array_equal(decoded(source), image)


def test_compressed_where_it_does_not(monkeypatch):
    x, y = np.meshgrid(*[np.linspace(0, 6, 256)] * 2)
    smooth = np.stack([128 + 100 * np.sin(x * k) * np.cos(y) for k in (1, 2, 3)], -1)
    images = [np.clip(smooth + noise(1, 256)[0] % 16, 0, 255).astype(np.uint8)]
    sources, note = encode(images, budget=60_000)
    assert "compressed; every figure was taken from the originals" in note
    assert decoded(sources[0]).shape == (256, 256, 3)
    assert np.abs(decoded(sources[0]).astype(int) - images[0]).mean() < 8


@pytest.mark.slow
def test_smaller_where_even_that_is_too_much():
    sources, note = encode(noise(1, 512), budget=60_000)
    assert "reduced from 512 to" in note
    assert decoded(sources[0]).shape[0] in (128, 256)
    assert len(sources[0]) <= 60_000


def test_too_many_are_refused():
    assert encode(noise(4, 128), budget=2000) is None


def test_what_differs():
    a, b = np.array([[[0, 10, 255]]], np.uint8), np.array([[[255, 7, 254]]], np.uint8)
    assert difference(a, b).tolist() == [[[255, 3, 1]]] == difference(b, a).tolist()


@pytest.mark.parametrize(("value", "factor"), [(0, 1), (1, 128), (2, 64), (34, 4), (128, 1), (255, 1)])
def test_amplified_as_far_as_it_can_be_seen(value, factor):
    assert amplification([np.full((8, 8, 3), value, np.uint8)]) == factor
    assert amplified(np.full((2, 2, 3), value, np.uint8), factor).max() == value * factor


def test_a_few_pixels_do_not_hide_the_others():
    values = np.full((100, 100, 3), 2, np.uint8)
    values[0, 0] = 250
    assert amplification([values]) == 64
    assert amplified(values, 64)[0, 0].tolist() == [255, 255, 255]
