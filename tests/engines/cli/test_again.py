"""A picture says which command makes it again, and that one does."""

import shlex
from pathlib import Path

import numpy as np
import pytest
import var_run_fake as fake
from PIL import Image

from engines.bundle.bundle import DEMO_BUNDLE
from engines.cli.run import main
from engines.errors import UsageError
from engines.files.again import command_of, settings_of
from engines.pictures.images import load_picture


def again(call, picture, *more):
    """Run what the picture says, to another place; its text and command."""
    text = settings_of(Path(picture))
    program, *words = shlex.split(command_of(text))
    assert program == "var-run"
    assert call(*words, *more)[0] == 0
    return text, words


@pytest.mark.parametrize(
    "args",
    [
        "parrot",
        "none --seed 18446744073709551615",
        "1,t-shirt --seed 7",
        "--class 5 --cfg 0.1 --top-k 0 --top-p 0.123456789 --temperature 0.7 --form fused",
        "parrot --cfg 1,2.5 --provider cuda",
        "parrot --backend openvino",
        "parrot --backend openvino --device GPU.1",
        "parrot --cfg-scales 2",
        "0-1 --cfg-scales 0,1,2",
        "parrot --cfg-scales 3 --form fused",
    ],
)
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_the_command_in_a_picture_makes_it_again(call, args, suffix):
    assert call(*args.split(), "-o", "{index}." + suffix)[0] == 0
    last = sorted(Path().glob(f"?.{suffix}"))[-1]
    text, words = again(call, last, "-o", f"again.{suffix}")
    assert np.array_equal(load_picture(Path(f"again.{suffix}")), load_picture(last))
    assert settings_of(Path(f"again.{suffix}"))["key"] == text["key"]
    assert "BUNDLE" in words  # the fake's lies nowhere


def test_what_no_bundle_recommends_is_said_where_it_was_asked_for(call):
    for args, said in (("parrot", False), ("parrot --cfg-scales 2 --seed 1", True)):
        assert call(*args.split(), "-o", "one.png", "--overwrite")[0] == 0
        text = settings_of(Path("one.png"))
        assert text["cfg_scales"] == "02"[said]
        assert ("--cfg-scales 2" in command_of(text), "--cfg-scales" in command_of(text)) == (said, said)


def test_a_grid_too(call):
    assert call("0,none", "-n", 2, "--cfg", "1,4", "--cfg-scales", "0,2", "-o", "job")[0] == 0
    text, words = again(call, "job/grid.png", "-o", "again")
    assert words[words.index("--cfg-scales") + 1] == "0,2"
    assert np.array_equal(load_picture(Path("again/grid.png")), load_picture(Path("job/grid.png")))
    assert text["images"] == "16"


def test_decoded_and_reconstructed_pictures_too(call):
    Image.fromarray(fake.image_of(0, 0)).save("it's.png")
    call("parrot", "--save-tokens", "t.npz")
    call("decode", "t.npz")
    call("reconstruct", "it's.png")
    for name in ("t-decoded.png", "it's-reconstructed.png"):
        again(call, name, "-o", f"again-{name}")
        assert np.array_equal(load_picture(Path(f"again-{name}")), load_picture(Path(name)))


def test_what_is_no_picture_of_ours_is_one_line(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "photo.png")
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(UsageError, match="holds no settings of var-run"):
        settings_of(tmp_path / "photo.png")
    with pytest.raises(UsageError, match=r"text\.png is no whole picture, and .* is not a bundle"):
        settings_of(tmp_path / "text.png")


def test_what_a_picture_says_is_quoted():
    text = {"key": "0", "class": "1; rm -rf ~", "seed": "$(reboot)", "cfg": "`x`", "provider": "sm89"}
    words = shlex.split(command_of(text))
    assert words[:7] == ["var-run", "--class", "1; rm -rf ~", "--seed", "$(reboot)", "--cfg", "`x`"]
    assert words[7:] == ["--bundle", "BUNDLE"]  # plans are taken where they fit: no provider is called so
    assert command_of({"key": "0", "provider": "triton", "class": "1"}).endswith("--url triton://HOST:8001")


@pytest.mark.slow
@pytest.mark.skipif(not (DEMO_BUNDLE / "manifest.json").exists(), reason="no demo bundle: build it with var-export")
def test_an_edit_of_the_demo_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.arange(80 * 120 * 3, dtype=np.uint8).reshape(80, 120, 3)).save("wide.png")
    edit = "edit wide.png --box 40,40,80,80 --box 0,0,20,20 --outpaint --fit pad --class fox --seed 3"
    assert main([*edit.split(), "-o", "first.png"]) == 0
    words = shlex.split(command_of(settings_of(Path("first.png"))))
    assert Path(words[-1]) == DEMO_BUNDLE
    assert main([*words[1:], "-o", "second.png"]) == 0
    assert Path("second.png").read_bytes() == Path("first.png").read_bytes()
    capsys.readouterr()
