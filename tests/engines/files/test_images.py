import os

import numpy as np
import pytest
from PIL import Image

from engines.errors import UsageError
from engines.files import images
from engines.files.images import (
    PADDING,
    check_grid,
    grid,
    grid_shape,
    is_cut_short,
    load_picture,
    load_square,
    read_png_text,
    save_png,
    strip,
)

RED, GREEN, BLUE, WHITE, BLACK = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0))


def plain(colour, size=4):
    return np.full((size, size, 3), colour, np.uint8)


def test_a_saved_picture_has_its_pixels_and_its_settings(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    path = tmp_path / "new" / "folder" / "a.png"
    save_png(path, picture, {"class": "88", "label": "größe 日本", "cfg": "4.0"})
    assert np.array_equal(load_picture(path), picture)
    assert read_png_text(path) == {"class": "88", "label": "größe 日本", "cfg": "4.0"}
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask  # as any other new file


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    save_png(path, plain(RED), {})
    before = path.read_bytes()

    def half(image, file, **options):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(KeyboardInterrupt):
        save_png(path, plain(RED), {})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot write .*file/a.png"):
        save_png(tmp_path / "file" / "a.png", plain(RED), {})


def test_a_file_cut_short_is_not_a_picture(tmp_path):
    path = tmp_path / "a.png"
    save_png(path, plain(RED, 64), {"key": "k"})
    whole = path.read_bytes()
    assert not is_cut_short(path)
    for length in (0, 8, 60, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert is_cut_short(path)
        assert read_png_text(path) is None
    path.write_bytes(b"no picture")
    assert not is_cut_short(path)
    assert read_png_text(path) is None
    assert read_png_text(tmp_path / "absent.png") is None


@pytest.mark.parametrize(
    ("count", "shape"), [(1, (1, 1)), (2, (1, 2)), (3, (2, 2)), (5, (2, 3)), (9, (3, 3)), (10, (3, 4))]
)
def test_grids_are_near_square(count, shape):
    assert grid_shape(count) == shape


def test_grid_pixels():
    picture = grid(iter([plain(RED), plain(GREEN), plain(BLUE)]), 3)
    assert picture.shape == (2 * (4 + PADDING) + PADDING, 2 * (4 + PADDING) + PADDING, 3)
    assert picture.dtype == np.uint8
    for (top, left), colour in {(2, 2): RED, (2, 8): GREEN, (8, 2): BLUE, (8, 8): WHITE}.items():
        assert (picture[top : top + 4, left : left + 4] == colour).all()
    for line in (0, 1, 6, 7, 12, 13):
        assert (picture[line] == 255).all()
        assert (picture[:, line] == 255).all()


def test_a_strip_is_one_row():
    picture = strip([plain(RED), plain(GREEN), plain(BLUE)], 3)
    assert picture.shape == (8, 20, 3)
    assert [tuple(picture[4, x]) for x in (3, 9, 15)] == [RED, GREEN, BLUE]


def test_a_grid_that_no_program_opens_is_refused():
    check_grid(1000, 256)
    with pytest.raises(UsageError, match=r"a grid of 50000 images.*up to"):
        check_grid(50_000, 256)


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
    save_png(cut, np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), {})
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


def test_a_picture_bomb_is_one_line(tmp_path, monkeypatch):
    path = saved(tmp_path, Image.new("RGB", (64, 64)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UsageError, match="cannot read"):
        load_square(path, 8)


def test_module_import_needs_no_pillow():
    assert not hasattr(images, "Image")
