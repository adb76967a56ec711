import os

import numpy as np
import pytest
from PIL import Image

from engines import foreign
from engines.errors import UsageError
from engines.pictures import images
from engines.pictures.images import (
    is_cut_short,
    load_picture,
    load_square,
    picture_format,
    picture_of,
    read_picture_text,
    save_animation,
    save_picture,
)

RED, GREEN, BLUE, WHITE, BLACK = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0))


def plain(colour, size=4):
    return np.full((size, size, 3), colour, np.uint8)


ENDINGS = ("png", "webp", "jpg", "JPEG")


def noise(size=16, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_saved_picture_has_its_pixels_and_its_settings(tmp_path, ending):
    picture = noise() if ending in ("png", "webp") else plain(RED, 16)
    path = tmp_path / "new" / "folder" / f"a.{ending}"
    text = {"class": "88", "label": "größe 日本", "cfg": "4.0"}
    save_picture(path, picture, text)
    with Image.open(path) as image:
        assert image.format == ("JPEG" if ending in ("jpg", "JPEG") else ending.upper())
    assert np.abs(load_picture(path).astype(int) - picture).max() <= (2 if ending in ("jpg", "JPEG") else 0)
    assert read_picture_text(path) == text
    save_picture(path, picture, {})
    assert read_picture_text(path) == {}
    assert [p.name for p in path.parent.iterdir()] == [f"a.{ending}"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask  # as any other new file


def test_what_is_too_long_for_a_jpeg_is_left_out_and_its_key_stays(tmp_path):
    text = {"classes": "1, " * 40_000, "seeds": "2, " * 1000, "key": "k"}
    for ending in ("png", "webp", "jpg"):
        save_picture(tmp_path / f"a.{ending}", plain(RED), text)
        read = read_picture_text(tmp_path / f"a.{ending}")
        assert read == (text if ending != "jpg" else {"seeds": text["seeds"], "key": "k"})


def test_a_jpeg_keeps_fine_colours(tmp_path):
    """Colours at half the resolution, as JPEG has by default, turn these lines into brown."""
    picture = plain(RED, 32)
    picture[:, ::2] = BLUE
    save_picture(tmp_path / "a.jpg", picture, {})
    assert np.abs(load_picture(tmp_path / "a.jpg").astype(int) - picture).max() < 20


def test_a_name_or_size_that_no_format_has_is_one_line(tmp_path):
    for name in ("a", "a.bmp", "a.png.part"):
        with pytest.raises(UsageError, match=r"one of \.png, \.jpg, \.jpeg, \.webp$"):
            save_picture(tmp_path / name, plain(RED), {})
    wide = np.zeros((1, 16_384, 3), np.uint8)
    with pytest.raises(UsageError, match=r"16384 x 1 pixels, and WEBP has up to 16383 a side: write a \.png file"):
        save_picture(tmp_path / "a.webp", wide, {})
    with pytest.raises(UsageError, match="up to 65500"):
        picture_format(tmp_path / "a.jpg", 3, 65_501)
    save_picture(tmp_path / "a.webp", wide[:, :-1], {})
    save_picture(tmp_path / "a.jpg", np.zeros((1, 65_500, 3), np.uint8), {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jpg", "a.webp"]


@pytest.mark.parametrize("ending", ["webp", "gif"])
def test_an_animation_has_its_frames_their_times_and_its_settings(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    frames = [plain(colour, 8) for colour in (RED, RED, GREEN, BLUE)]
    save_animation(path, frames, {"label": "größe", "key": "k"}, frame_ms=200, last_ms=1000)
    assert read_picture_text(path) == {"label": "größe", "key": "k"}
    with Image.open(path) as image:
        assert image.info["loop"] == 0
        shown = []
        for number in range(image.n_frames):
            image.seek(number)
            shown += [tuple(np.asarray(image.convert("RGB"))[4, 4])] * (image.info["duration"] // 200)
    assert shown == [RED, RED, GREEN] + [BLUE] * 5
    save_animation(path, frames[:1], {})
    assert (load_picture(path) == frames[0]).all()


def test_an_animated_webp_keeps_every_pixel(tmp_path):
    frames = [noise(32, seed) for seed in range(3)]
    save_animation(tmp_path / "a.webp", frames, {})
    with Image.open(tmp_path / "a.webp") as image:
        for number, frame in enumerate(frames):
            image.seek(number)
            assert np.array_equal(np.asarray(image.convert("RGB")), frame)


def test_an_animation_of_another_ending_is_one_line(tmp_path):
    with pytest.raises(UsageError, match=r"animations are \.webp or \.gif files"):
        save_animation(tmp_path / "a.png", [plain(RED)], {})


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    save_picture(path, plain(RED), {})
    before = path.read_bytes()

    def half(image, file, **options):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(KeyboardInterrupt):
        save_picture(path, plain(RED), {})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot write .*file/a.png"):
        save_picture(tmp_path / "file" / "a.png", plain(RED), {})


@pytest.mark.parametrize("ending", ["png", "webp", "jpg", "gif"])
def test_a_file_cut_short_is_not_a_picture(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    if ending == "gif":
        save_animation(path, [noise(64)], {"key": "k"})
    else:
        save_picture(path, noise(64), {"key": "k"})
    whole = path.read_bytes()
    assert not is_cut_short(path)
    for length in (0, 12, 60, 2000, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert is_cut_short(path)
        assert read_picture_text(path) is None


def test_what_is_no_picture_has_no_text(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"no picture")
    assert not is_cut_short(path)
    assert read_picture_text(path) is None
    assert read_picture_text(tmp_path / "absent.png") is None


@pytest.mark.parametrize(
    "comment",
    [b"", b"ASCII\0\0\0", b"UNICODE\0{}", b"ASCII\0\0\0{", b"ASCII\0\0\0[1]", b'ASCII\0\0\0{"a": 1}', b"\xff" * 9],
)
def test_what_others_wrote_into_a_picture_is_no_text_of_ours(tmp_path, comment):
    exif = Image.Exif()
    exif[0x8769] = {0x9286: comment}
    Image.fromarray(plain(RED)).save(tmp_path / "a.jpg", exif=exif)
    Image.fromarray(plain(RED)).save(tmp_path / "a.webp", exif=b"Exif\0\0broken")
    Image.fromarray(plain(RED)).save(tmp_path / "a.gif", comment=comment)
    for name in ("a.jpg", "a.webp", "a.gif"):
        assert read_picture_text(tmp_path / name) == {}


def saved(tmp_path, image, name="in.png", **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


def test_a_picture_is_cropped_to_the_centre_and_resized(tmp_path):
    wide = Image.new("RGB", (300, 100), RED)
    wide.paste(GREEN, (100, 0, 200, 100))
    square = load_square(saved(tmp_path, wide), 32)
    assert square.shape == (32, 32, 3)
    assert square.dtype == np.uint8
    assert (square == GREEN).all()
    assert (load_square(saved(tmp_path, Image.new("RGB", (1, 1), BLUE)), 8) == BLUE).all()


def test_a_picture_of_the_right_size_is_untouched(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    assert np.array_equal(load_square(saved(tmp_path, Image.fromarray(pixels)), 16), pixels)


def test_exif_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (16, 16), BLACK)
    image.paste(WHITE, (0, 0, 16, 8))  # white above
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to show
    square = load_square(saved(tmp_path, image, "in.jpg", exif=exif, quality=95), 16)
    assert square[:, 12:].min() > 240  # white on the right
    assert square[:, :4].max() < 15


@pytest.mark.parametrize(
    ("image", "colour"),
    [
        (Image.new("RGBA", (8, 8), (255, 0, 0, 0)), WHITE),
        (Image.new("RGBA", (8, 8), (255, 0, 0, 255)), RED),
        (Image.new("LA", (8, 8), (0, 0)), WHITE),
        (Image.new("L", (8, 8), 7), (7, 7, 7)),
        (Image.new("1", (8, 8), 1), WHITE),
        (Image.new("P", (8, 8), 0), BLACK),
        (Image.fromarray(np.full((8, 8), 65535, np.uint16)), WHITE),
        (Image.fromarray(np.full((8, 8), 257 * 90, np.uint16)), (90, 90, 90)),
    ],
    ids=lambda value: getattr(value, "mode", ""),
)
def test_every_kind_of_png_becomes_rgb(tmp_path, image, colour):
    assert (load_square(saved(tmp_path, image), 8) == colour).all()


def test_other_kinds_become_rgb(tmp_path):
    palette = Image.new("P", (8, 8), 0)
    assert (load_square(saved(tmp_path, palette, transparency=0), 8) == WHITE).all()
    assert load_square(saved(tmp_path, Image.new("CMYK", (8, 8)), "in.jpg"), 8).min() > 250
    floats = Image.fromarray(np.full((8, 8), 0.5, np.float32))
    assert (load_square(saved(tmp_path, floats, "in.tif"), 8) == 128).all()
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    assert (load_square(saved(tmp_path, frames[0], "in.gif", save_all=True, append_images=frames[1:]), 8) == RED).all()


def test_what_is_no_picture_is_one_line(tmp_path):
    text = tmp_path / "text.png"
    text.write_text("hello")
    cut = tmp_path / "cut.png"
    save_picture(cut, np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), {})
    cut.write_bytes(cut.read_bytes()[:2000])
    for path, says in [
        (text, "not a picture"),
        (cut, "cut.png"),
        (tmp_path / "absent", "no such file"),
        (tmp_path, "folder"),
    ]:
        with pytest.raises(UsageError, match=says) as caught:
            load_square(path, 8)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("whose", [(Image, "MAX_IMAGE_PIXELS"), (foreign, "MAX_PIXELS")])
def test_a_picture_bomb_is_one_line_with_the_remedy(tmp_path, monkeypatch, whose):
    path = saved(tmp_path, Image.new("RGB", (64, 64)))
    monkeypatch.setattr(*whose, 1000)
    with pytest.raises(UsageError, match=r"^cannot read .*in\.png: it has more than \d+ million .*; save a smaller"):
        load_square(path, 8)


@pytest.mark.parametrize(
    ("dtype", "values", "seen"),
    [
        (np.int32, (0, 100, 255), (0, 100, 255)),
        (np.int32, (0, 257 * 90, 65535), (0, 90, 255)),
        (np.int32, (0, 0, 1), (0, 0, 255)),
        (np.int32, (0, 0, 0), (0, 0, 0)),
        (np.int32, (0, 2**30, 2**31 - 1), (0, 128, 255)),
        (np.float32, (0, 0.5, 1.002), (0, 128, 255)),
        (np.float32, (-0.004, np.nan, 0.25), (0, 0, 64)),
        (np.float32, (0, 100, 255), (0, 100, 255)),
        (np.float32, (0, 257 * 90, 65535), (0, 90, 255)),
    ],
)
def test_tiffs_of_32_bits_are_scaled(tmp_path, dtype, values, seen):
    path = saved(tmp_path, Image.fromarray(np.tile(np.array(values, dtype), (4, 1))), "in.tif")
    assert load_picture(path)[0, :, 0].tolist() == list(seen)


def test_a_tiff_that_pillow_opened_is_scaled_alike(tmp_path):
    values = np.full((4, 4), 128, np.int32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2400])
    with Image.open(tmp_path / "a.tif") as image:
        np.testing.assert_array_equal(picture_of(image), load_picture(tmp_path / "a.tif"))
        assert image.mode == "I"  # the caller's, and as it was
    with Image.open(tmp_path / "cut.png") as image, pytest.raises(UsageError, match="cannot read the picture"):
        picture_of(image)


def test_a_tiff_of_unsigned_integers_is_scaled(tmp_path):
    image = Image.fromarray(np.array([[0, 2**31 - 2**32, -1]], np.int32))
    path = saved(tmp_path, image, "in.tif")
    signed, unsigned = (b"\x53\x01\x03\x00\x01\x00\x00\x00" + bytes([kind]) for kind in (2, 1))  # the tag SampleFormat
    assert path.read_bytes().count(signed) == 1
    path.write_bytes(path.read_bytes().replace(signed, unsigned))
    assert load_picture(path)[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        (np.int32, (0, 1, 5)),
        (np.int32, (0, 4000, 4000)),
        (np.int32, (-5, 0, 255)),
        (np.float32, (0, 1, 9)),
        (np.float32, (0, 0.01, 0.05)),
        (np.float32, (0, 1, 1e6)),
        (np.float32, (0, 1, np.inf)),
        (np.float32, (np.nan, np.nan, np.nan)),
    ],
)
def test_tiffs_of_which_no_value_is_surely_white_are_refused(tmp_path, dtype, values):
    path = saved(tmp_path, Image.fromarray(np.array([values], dtype)), "in.tif")
    with pytest.raises(UsageError, match=r"in\.tif: its values run from .*; save it with 8 or 16 bits$"):
        load_picture(path)


def test_a_picture_of_several_frames_and_a_turned_one_are_read_whole(tmp_path):
    """The file is closed by the time that the pixels are used."""
    exif = Image.Exif()
    exif[0x0112] = 3
    frames = [Image.fromarray(noise(16, seed)) for seed in range(2)]
    path = saved(tmp_path, frames[0], "in.tif", save_all=True, append_images=frames[1:])
    assert np.array_equal(load_picture(path), noise(16, 0))
    path = saved(tmp_path, frames[0], "in.webp", lossless=True, exif=exif)
    assert np.array_equal(load_picture(path), noise(16, 0)[::-1, ::-1])
    assert load_picture(path).flags.c_contiguous


def test_module_import_needs_no_pillow():
    assert not hasattr(images, "Image")
