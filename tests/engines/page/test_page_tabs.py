"""The page of a server in a real browser: what it shows is what a pipeline draws, and nothing leaves this machine."""

import json
import os
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from seeing import pixels

from engines.draw.pipeline import Pipeline
from engines.files.again import settings_of
from engines.pictures.images import load_picture
from tests.serving import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
WATCH = """() => {
    window.said = [];
    const note = () => said.push(document.querySelector("#draw-status").innerText);
    new MutationObserver(note).observe(document.body, {subtree: true, childList: true, characterData: true});
}"""
ROWS = "all => all.map(row => row.innerText.split('\\t'))"
TABS = ("Draw", "Edit", "Compare", "Explore")


@pytest.fixture(scope="module")
def pipeline(bundles):
    with Pipeline.load(bundles[0], check="never", threads=1) as found:
        yield found


@pytest.fixture
def picture(tmp_path, pipeline):
    """A picture that is no square, and its file."""
    drawn = np.asarray(Image.fromarray(pipeline.generate(10, seeds=3).images[0]).resize((120, 80)))
    file = tmp_path / "wide.png"
    Image.fromarray(drawn).save(file)
    return drawn, file


def test_images_come_scale_by_scale_and_are_those_of_a_pipeline(looking, server, pipeline, tmp_path):
    with looking(server) as look:
        passed = "window.said = []; new MutationObserver(() => said.push(document.querySelector('#draw-status')"
        look.page.evaluate(
            f"{passed}.innerText)).observe(document.body, {{subtree: true, childList: true, characterData: true}})"
        )
        look.page.get_by_label("Seed").fill("7")
        look.press("draw", "draw-status", "Done: 1 image.")
        said = set(look.page.evaluate("said"))
        assert sum("Scale" in line for line in said) >= 2
        (address,) = look.images("drawn")
        np.testing.assert_array_equal(pixels(address), pipeline.generate(88, seeds=7).images[0])
        file = tmp_path / "saved.png"
        file.write_bytes(httpx.get(address).content)
        assert settings_of(file)["seed"] == "7"
        command = look.page.locator("text=var-run --class").first.inner_text()
        words = shlex.split(command.replace("BUNDLE", str(pipeline.bundle.path)))
        subprocess.run(
            [sys.executable, "-c", "import sys; from engines.cli.run import main; sys.exit(main())", *words[1:],
             "-o", "again.png", "--check", "never"],
            cwd=tmp_path, check=True, env=os.environ | {"PYTHONPATH": str(Path.cwd())},
        )  # fmt: skip
        np.testing.assert_array_equal(load_picture(tmp_path / "again.png"), load_picture(file))
        assert look.complaints == []
        assert [url for url in look.requests if not url.startswith((server, "data:", "blob:"))] == []


def test_several_images_and_the_same_again(looking, server, pipeline):
    with looking(server) as look:
        look.page.get_by_label("number input for Images").fill("3")
        look.press("draw", "draw-status", "Done: 3 images.")
        wanted = pipeline.generate(88, seeds=[0, 1, 2]).images
        for address, image in zip(look.images("drawn"), wanted, strict=True):
            np.testing.assert_array_equal(pixels(address), image)
        look.page.get_by_role("button", name="New seed").click()
        eventually(lambda: look.page.get_by_label("Seed").input_value() != "0")
        look.page.locator("#drawn button.thumbnail-item").nth(2).click()
        look.page.wait_for_function("document.body.innerText.includes('--seed 2')")
        look.page.get_by_role("button", name="Same again").click()
        eventually(lambda: look.page.get_by_label("Seed").input_value() == "2")
        assert look.page.get_by_label("number input for Images").input_value() == "1"


def test_classes_are_found_by_their_pictures(looking, server):
    with looking(server) as look:
        look.page.get_by_role("button", name="Find a class by its picture").click()
        look.page.get_by_label("A part of its name").fill("PIZZ")
        look.page.keyboard.press("Enter")
        look.page.locator("button.thumbnail-item").first.click()
        eventually(lambda: look.page.get_by_label("Class", exact=True).input_value() == "pizza")
        look.page.get_by_label("A part of its name").fill("<b>nothing</b>")
        look.page.keyboard.press("Enter")
        look.page.get_by_text("no class is called so: <b>nothing</b>").wait_for()


def upload(look, file):
    zoom = "document.querySelector('#editor')?.innerText.match(/\\d+%/)?.[0]"
    look.page.wait_for_function(zoom)
    before = look.page.evaluate(zoom)
    look.page.set_input_files("#editor input[type=file]", file)
    look.page.wait_for_function(f"{zoom} != '{before}'")  # it is small, and shown larger


def test_a_picture_is_edited_as_by_a_pipeline(looking, server, pipeline, picture):
    drawn, file = picture
    area = np.zeros(drawn.shape[:2], bool)
    area[20:60, 30:90] = True
    wanted = pipeline.edit(drawn, area, 88, seeds=0, composite=True).images[0]
    with looking(server) as look:
        look.tab("Edit")
        look.press("redraw", "edit-status", "Upload a picture")
        look.page.get_by_text("upload a picture first").wait_for()
        upload(look, file)
        look.page.get_by_label("Boxes").fill("1,2")
        look.page.click("#redraw")
        look.page.get_by_text("is not four numbers").wait_for()
        look.page.get_by_label("Boxes").fill("30,20,90,60")
        look.press("redraw", "edit-status", "Done: 1 image.")
        np.testing.assert_array_equal(pixels(look.images("redrawn")[0]), wanted)
        look.page.locator("text=var-run edit PICTURE --box 30,20,90,60").first.wait_for()
        look.page.get_by_label("Outpaint").check()
        before = look.images("redrawn")[0]
        look.page.click("#redraw")
        other = "before => document.querySelector('#redrawn img')?.src != before"
        look.page.wait_for_function(other, arg=before, timeout=60_000)
        look.says("edit-status", "Done: 1 image.")
        kept = pixels(look.images("redrawn")[0])
        np.testing.assert_array_equal(kept[30:50, 45:75], drawn[30:50, 45:75])
        assert (kept != drawn).any()


def test_what_is_painted_over_is_redrawn(looking, server, picture):
    drawn, file = picture
    with looking(server) as look:
        look.tab("Edit")
        upload(look, file)
        look.page.locator("#editor [aria-label*=Brush]").first.click()
        box = look.page.locator("#editor canvas").first.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        mouse = look.page.mouse
        mouse.move(x - 40, y - 30)
        mouse.down()
        for to in ((x + 40, y - 30), (x + 40, y + 30), (x - 40, y + 30), (x, y)):
            mouse.move(*to, steps=8)
        mouse.up()
        look.press("redraw", "edit-status", "Done: 1 image.")
        made = pixels(look.images("redrawn")[0])
        assert (made[30:50, 50:70] != drawn[30:50, 50:70]).any()
        np.testing.assert_array_equal(made[:3], drawn[:3])
        np.testing.assert_array_equal(made[-3:], drawn[-3:])
        np.testing.assert_array_equal(made[:, :22], drawn[:, :22])
        look.page.locator("text=--mask MASK").first.wait_for()


def test_two_models_are_compared(looking, server, bundles):
    with looking(server) as look:
        look.tab("Compare")
        look.page.get_by_label("number input for Images").fill("2")
        look.press("compare", "compare-status", "Each image was drawn alone")
        rows = look.page.eval_on_selector_all(
            "#compare-table tbody tr", "all => all.map(row => row.innerText.split('\\t'))"
        )
        one, other = (Pipeline.load(bundle, check="never", threads=1) for bundle in bundles)
        with one, other:
            tokens = [each.generate(88, seeds=[0, 1]).tokens for each in (one, other)]
        alike = [f"{100 * share:.1f} %" for share in (tokens[0] == tokens[1]).mean(1)]
        assert [row[2].strip() for row in rows] == alike
        look.page.get_by_label("seed 1").check()
        look.page.get_by_label("The other model").click()
        look.page.get_by_role("option", name="demo-fp32").click()
        look.page.click("#compare")
        look.page.get_by_text("choose another model").wait_for()


def test_settings_and_scales_are_explored(looking, server, pipeline):
    with looking(server) as look:
        look.tab("Explore")
        look.page.get_by_label("Guidance").first.fill("0, 3")
        look.page.get_by_label("Top-p").first.fill("0.9")
        look.press("draw-grid", "grid-status", "Done: 2 images")
        shown = pixels(look.images("grid")[0])
        wanted = pipeline.generate(88, seeds=[0, 0], cfg=[0.0, 3.0], top_p=[0.9, 0.9]).images
        large = np.concatenate([image.repeat(2, 0).repeat(2, 1) for image in wanted], 1)
        left = shown.shape[1] - 2 * 130 - 2
        np.testing.assert_array_equal(shown[-130:-2, left + 2 : left + 130], large[:, :128])
        np.testing.assert_array_equal(shown[-130:-2, left + 132 : left + 260], large[:, 128:])
        look.page.get_by_label("Guidance").first.fill("1, x")
        look.page.click("#draw-grid")
        look.page.get_by_text("guidance must be numbers with commas").wait_for()
        look.press("draw-scales", "scales-status", "Done: 155 tokens in 7 scales")
        scales = pixels(look.images("scales")[0])
        assert scales.shape[1] == 7 * 130 + 2
        final = pipeline.generate(88, seeds=0).images[0].repeat(2, 0).repeat(2, 1)
        np.testing.assert_array_equal(scales[-260:-132, -130:-2], final)


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_reads_well_everywhere(looking, server, width, scheme):
    from axe_playwright_python.sync_playwright import Axe

    with looking(server, width, scheme) as look:
        look.page.get_by_role("button", name="How to draw").click()
        look.press("draw", "draw-status", "Done")
        for tab in TABS:
            look.tab(tab)
            look.page.wait_for_timeout(400)  # a tab fades in, and its colours with it
            assert look.page.evaluate("document.documentElement.scrollWidth") <= width, tab
            found = Axe().run(look.page, options={"runOnly": RULES})
            assert found.violations_count == 0, f"{tab}: {found.generate_report()}"
        background = look.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(255, 255, 255)") is (scheme == "light")


def test_by_keyboard_alone(looking, server):
    with looking(server) as look:
        focused = "document.activeElement?.innerText?.trim() ?? ''"
        for _ in range(40):
            look.page.keyboard.press("Tab")
            if look.page.evaluate(focused) == "Draw":
                break
        else:
            raise AssertionError("no tab stop is the button that draws")
        look.page.keyboard.press("Tab")
        for _ in range(40):
            if look.page.evaluate("document.activeElement?.id") == "draw":
                break
            look.page.keyboard.press("Tab")
        look.page.keyboard.press("Enter")
        look.says("draw-status", "Done: 1 image.")


def draw_ten(address):
    httpx.post(f"{address}/v1/images/generations", json={"prompt": "1", "n": 10}, timeout=60).raise_for_status()


def cancelled(address):
    page = httpx.get(f"{address}/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in page if 'result="cancelled"' in line)


@pytest.mark.parametrize("how", ["stop", "leave"])
def test_who_stops_or_leaves_is_not_drawn_for(looking, server, how):
    before = cancelled(server)
    others = [threading.Thread(target=draw_ten, args=(server,)) for _ in range(3)]
    with looking(server) as look:
        look.page.get_by_label("number input for Images").fill("10")
        for other in others:  # which are drawn first
            other.start()
        look.press("draw", "draw-status", "Drawing")
        if how == "stop":
            look.page.get_by_role("button", name="Stop").first.click()
            look.says("draw-status", "Stopped.")
        else:
            look.page.close()
        eventually(lambda: cancelled(server) > before, seconds=30)
    for other in others:
        other.join()
    assert httpx.get(f"{server}/healthz").json() == {"status": "ok"}


def test_a_file_of_detections_need_not_know_what_the_picture_is_called(looking, server, picture, tmp_path):
    drawn, file = picture
    found = tmp_path / "found.json"
    found.write_text(json.dumps({
        "images": [{"id": 5, "file_name": "elsewhere.jpg", "width": 120, "height": 80}],
        "annotations": [{"image_id": 5, "category_id": 1, "bbox": [40, 20, 40, 40]}],
        "categories": [{"id": 1, "name": "dog"}],
    }))  # fmt: skip
    with looking(server) as look:
        look.tab("Edit")
        upload(look, file)
        look.page.get_by_role("button", name="What a detector found").click()
        look.page.set_input_files("input[type=file] >> nth=-1", found)
        look.page.wait_for_selector(".file-preview")
        look.press("redraw", "edit-status", "Done: 1 image.")
        made = pixels(look.images("redrawn")[0])
        assert (made[30:50, 50:70] != drawn[30:50, 50:70]).any()
        np.testing.assert_array_equal(made[:3], drawn[:3])
        look.page.locator("text=--boxes DETECTIONS").first.wait_for()


def test_the_same_again_is_what_is_shown(looking, server):
    """After another drawing, and of another model: the image that is chosen, not one of before."""
    with looking(server) as look:
        look.page.get_by_label("number input for Images").fill("2")
        look.press("draw", "draw-status", "Done: 2 images.")
        look.page.locator("#drawn button.thumbnail-item").nth(1).click()
        look.page.wait_for_function("document.body.innerText.includes('--seed 1')")
        look.page.get_by_label("Close").first.click()
        look.page.get_by_label("Seed").fill("20")
        look.page.click("#draw")
        look.page.wait_for_function("document.body.innerText.includes('--seed 20')")
        look.page.get_by_label("Model").click()
        look.page.get_by_role("option", name="demo-int8").click()
        look.page.get_by_role("button", name="Same again").click()
        eventually(lambda: look.page.get_by_label("number input for Images").input_value() == "1")
        assert look.page.get_by_label("Seed").input_value() == "20"
        assert look.page.get_by_label("Model").input_value() == "demo-fp32"
        assert look.page.get_by_label("Class", exact=True).input_value() == "parrot"


def test_what_fails_is_not_under_way(looking, server):
    with looking(server) as look:
        look.page.get_by_role("button", name="How to draw").click()
        look.page.get_by_label("number input for Top-k").fill("0")
        look.page.keyboard.press("Tab")
        look.press("draw", "draw-status", "Not done.")
