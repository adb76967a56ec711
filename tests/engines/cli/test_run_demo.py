"""The embedded demo bundle, for real."""

import json
from pathlib import Path

import numpy as np
import pytest

from engines.bundle.bundle import DEMO_BUNDLE
from engines.cli.run import main
from engines.pictures.images import load_picture

demo = pytest.mark.skipif(
    not (DEMO_BUNDLE / "manifest.json").exists(), reason=f"no demo bundle in {DEMO_BUNDLE}: build it with var-export"
)


@pytest.mark.slow
@demo
def test_demo_image_is_the_same_alone_and_in_a_job(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--class", "88", "--seed", "3", "--out", "alone.png"]) == 0
    assert main(["--class", "87-88", "--count", "2", "--seed", "2", "--out", "job", "--batch", "3"]) == 0
    capsys.readouterr()
    image = load_picture(Path("alone.png"))
    assert image.shape == (64, 64, 3)
    assert image.std() > 1
    (same,) = Path("job").glob("00001-*-3.png")
    assert np.array_equal(load_picture(same), image)


@pytest.mark.slow
@demo
def test_demo_tokens_decode_to_the_same_image(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--class", "rose", "--save-tokens", "t.npz", "--preview"]) == 0
    assert main(["decode", "t.npz"]) == 0
    drawn, decoded = (load_picture(Path(name)).astype(int) for name in ("var-rose-0.png", "t-decoded.png"))
    assert np.abs(drawn - decoded).max() <= 1
    capsys.readouterr()


@pytest.mark.slow
@demo
def test_demo_reports_and_reconstructs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--class", "ghost", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["timings"]["scales_s"]) == 7
    assert document["timings"]["total_s"] >= sum(document["timings"]["scales_s"])
    assert document["runtime"]["provider"]
    assert main(["reconstruct", "var-ghost-0.png", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["psnr_db"] > 15
