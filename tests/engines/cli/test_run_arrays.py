"""Arrays, tokens, reconstruction."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import var_run_fake as fake
from PIL import Image
from var_run_fake import error_of, names

from engines.pictures.images import load_picture, read_picture_text
from engines.spec.uniforms import uniforms


def test_npz(call):
    assert call("--class", "0-1", "--count", 3, "--npz", "a.npz", "--batch", 4)[1] == "a.npz\n"
    assert names() == ["a.npz"]
    with np.load("a.npz") as saved:
        assert saved.files == ["arr_0"]
        expected = np.stack([fake.image_of(k % 2, k) for k in range(6)])
        assert np.array_equal(saved["arr_0"], expected)


def test_saved_tokens_hold_what_decided_them(call):
    assert call("--class", "2,5", "--seed", 2**63, "--save-tokens", "t.npz")[0] == 0
    with np.load("t.npz") as saved:
        types = {name: (saved[name].dtype.name, saved[name].shape) for name in saved.files}
        assert types == {
            "tokens": ("int64", (2, 21)),
            "uniforms": ("float32", (2, 21)),
            "seeds": ("uint64", (2,)),
            "classes": ("int64", (2,)),
        }
        assert saved["seeds"].tolist() == [2**63, 2**63 + 1]
        assert saved["classes"].tolist() == [2, 5]
        assert np.array_equal(saved["tokens"][1], fake.tokens_of(5, 2**63 + 1))
        assert np.array_equal(saved["uniforms"], uniforms([2**63, 2**63 + 1], 21))


def test_tokens_become_images_again(call):
    call("--class", "2,5", "--save-tokens", "t.npz")
    assert call("decode", "t.npz")[1] == "decoded/00000-t-shirt-0.png\ndecoded/00001-7-up-1.png\n"
    assert (load_picture(Path("decoded/00001-7-up-1.png")) == fake.tokens_of(5, 1)[0]).all()
    assert call("decode", "t.npz", "--npz", "images.npz", "--json")[0] == 0
    with np.load("images.npz") as saved:
        assert saved["arr_0"].shape == (2, 8, 8, 3)


def test_tokens_alone_are_enough(call):
    np.savez("t.npz", tokens=np.full((1, 21), 7, np.int16))
    assert call("decode", "t.npz")[1] == "t-decoded.png\n"
    np.savez("t{2}.npz", tokens=np.array([np.full(21, 1), np.full(21, 2)]))
    assert call("decode", "t{2}.npz")[1] == "decoded/00000.png\ndecoded/00001.png\n"


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"images": np.zeros(3)}, "no array called tokens"),
        ({"tokens": np.zeros((2, 20), np.int64)}, "(images, 21)"),
        ({"tokens": np.zeros((0, 21), np.int64)}, "(images, 21)"),
        ({"tokens": np.zeros(21, np.int64)}, "(images, 21)"),
        ({"tokens": np.zeros((2, 21))}, "integers"),
        ({"tokens": np.full((2, 21), 64)}, "0 to 63"),
        ({"tokens": np.zeros((2, 21), np.int64), "classes": np.zeros(3, np.int64)}, "classes must be one integer"),
        ({"tokens": np.array([{}])}, "no .npz file of tokens"),
    ],
)
def test_tokens_that_do_not_fit_are_one_line(call, arrays, says):
    np.savez("t.npz", **arrays)
    assert says in error_of(call("decode", "t.npz"))


def test_a_token_file_that_is_none_is_one_line(call):
    Path("t.npz").write_text("text")
    np.save("t.npy", np.zeros((2, 21), np.int64))
    for name in ("t.npz", "t.npy", "absent.npz", "."):
        assert "cannot read" in error_of(call("decode", name))


def test_reconstruct(call):
    Image.new("RGB", (40, 20), (100, 150, 200)).save("photo.jpg", quality=100)
    code, out, err = call("reconstruct", "photo.jpg")
    assert (code, out) == (0, "photo-reconstructed.png\n")
    assert "PSNR" in err
    assert load_picture(Path("photo-reconstructed.png")).shape == (8, 8, 3)
    assert json.loads(call("reconstruct", "photo.jpg", "--json", "--out", "x.png")[1])["psnr_db"] > 0
    assert "cannot read absent.png" in error_of(call("reconstruct", "absent.png"))


def test_a_file_whose_name_is_no_unicode(call):
    """Names of files are bytes; what is shown and stored of them is text."""
    name = os.fsdecode(b"caf\xe9.png")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(name)
    code, out, err = call("reconstruct", name)
    assert (code, out) == (0, "caf\\udce9-reconstructed.png\n"), err
    made = os.fsdecode(b"caf\xe9-reconstructed.png")
    assert read_picture_text(Path(made))["image"] == "caf\\udce9.png"
    document = json.loads(call("reconstruct", name, "--json", "--out", os.fsdecode(b"\xff.png"))[1])
    assert document["files"] == [os.fsdecode(b"\xff.png")]
    assert "cannot read \\udcff" in error_of(call("reconstruct", os.fsdecode(b"\xff.jpg")))
