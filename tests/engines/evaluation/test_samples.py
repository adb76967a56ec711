"""Sets of images on the disk: read in pieces; what is none is one line."""

import numpy as np
import pytest
from PIL import Image
from support import refused, tiny_config

from engines.errors import UsageError
from engines.evaluation.samples import Samples, read_tokens


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)


def test_an_archive_is_read_in_pieces(tmp_path, images):
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", arr_0=images)
        found = Samples.find(tmp_path / "a.npz")
        assert (found.kind, found.count, found.side) == ("arr_0", 5, 8)
        parts = list(found.images(2))
        assert [len(part) for part in parts] == [2, 2, 1]
        np.testing.assert_array_equal(np.concatenate(parts), images)


def test_a_folder_of_pictures(tmp_path, images):
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    found = Samples.find(tmp_path)
    assert (found.kind, found.count) == ("pictures", 5)
    np.testing.assert_array_equal(np.concatenate(list(found.images(3))), images)
    assert next(found.images(3, 4)).shape == (3, 4, 4, 3)


def test_tokens(tmp_path):
    config = tiny_config()
    tokens = np.arange(2 * config.num_tokens).reshape(2, -1) % 64
    np.savez(tmp_path / "t.npz", tokens=tokens, seeds=np.zeros(2, np.uint64))
    found = Samples.find(tmp_path / "t.npz")
    assert (found.kind, found.count) == ("tokens", 2)
    np.testing.assert_array_equal(read_tokens(tmp_path / "t.npz", config), tokens)
    refused(lambda: next(found.images(1)), "has tokens and no images", "--npz", kind=UsageError)
    for wrong, word in ((tokens[:, 1:], "needs (images,"), (tokens + 64, "must lie in"), (tokens / 2, "integers")):
        np.savez(tmp_path / "w.npz", tokens=wrong)
        refused(lambda: read_tokens(tmp_path / "w.npz", config), word, kind=UsageError)


def test_what_is_no_set_is_one_line(tmp_path, images):
    (tmp_path / "text.npz").write_text("no")
    np.savez(tmp_path / "other.npz", a=images)
    np.savez(tmp_path / "float.npz", arr_0=images / 255)
    np.savez(tmp_path / "flat.npz", arr_0=images[0])
    (tmp_path / "empty").mkdir()
    for name, word in (
        ("missing.npz", "there is no"),
        ("text.npz", "no .npz file"),
        ("other.npz", "neither arr_0 nor tokens"),
        ("float.npz", "must be uint8"),
        ("flat.npz", "must be uint8"),
        ("empty", "has no pictures"),
    ):
        refused(lambda name=name: Samples.find(tmp_path / name), word, kind=UsageError)


def test_an_archive_that_ends_too_early(tmp_path, images):
    """As a copy that was interrupted, whose header still says how many there are."""
    from engines.files.npz import npy_header, write_archive

    with (tmp_path / "a.npz").open("wb") as file:
        header = npy_header(images.shape, images.dtype)
        write_archive(file, ["arr_0"], lambda _: iter([header, images[:3].tobytes()]), {})
    refused(lambda: list(Samples.find(tmp_path / "a.npz").images(2)), "ends too early", kind=UsageError)
