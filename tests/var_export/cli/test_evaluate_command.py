"""`var-export evaluate --between`: the order of what differs more, and what is printed of it."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from support import copy_bundle

from engines.bundle.manifest import MANIFEST, sealed
from engines.cli.run import main as var_run
from engines.draw.pipeline import Pipeline
from engines.evaluation.between import between, describe, pooled
from engines.evaluation.samples import Samples
from tests.bundles import demo_checkpoint, shared_bundle

IMAGES, FAST = 64, ("--threads", 1)


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> Path:
    """The demo in FP32 whose codebook has its entries in another order: tokens mean other things than it learnt."""
    codebook = demo_checkpoint().vae_state["quantize.embedding.weight"].float().numpy()
    folder = copy_bundle(shared_bundle("demo-fp32"), tmp_path_factory.mktemp("broken") / "bundle")
    weights, book = (folder / "weights.bin").read_bytes(), codebook.tobytes()
    assert weights.count(book) == 1
    changed = weights.replace(book, np.random.default_rng(0).permutation(codebook).tobytes())
    (folder / "weights.bin").write_bytes(changed)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"]["weights.bin"]["sha256"] = hashlib.sha256(changed).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(sealed(manifest)))
    return folder


@pytest.fixture(scope="module")
def drawn(tmp_path_factory, broken):
    """Images of several bundles, and their tokens, by name; `other` has other seeds."""
    folder = tmp_path_factory.mktemp("drawn")
    fp32 = shared_bundle("demo-fp32")
    bundles = {"fp32": fp32, "other": fp32, "int8": shared_bundle("demo-int8"), "broken": broken}
    for name, bundle in bundles.items():
        seed = 1000 if name == "other" else 0
        code = var_run(
            ["--class", f"0-{IMAGES - 1}", "--seed", str(seed), "--npz", str(folder / f"{name}.npz"), "--threads", "1",
             "--save-tokens", str(folder / f"{name}.tokens.npz"), "--bundle", str(bundle), "--check", "never"]
        )  # fmt: skip
        assert code == 0
    return folder


@pytest.mark.slow
def test_what_differs_more_is_further_apart(drawn):
    """Other seeds are noise alone; INT8 is closer to FP32 than a broken bundle, which is far beyond noise."""
    with Pipeline.load(shared_bundle("demo-fp32"), check="never", threads=1) as pipeline:
        described = {
            name: describe(Samples.find(drawn / f"{name}.npz"), pipeline, drawn / f"{name}.tokens.npz")
            for name in ("fp32", "other", "int8", "broken")
        }
        config = pipeline.config
    found = {name: between(described["fp32"], described[name], config) for name in ("fp32", "other", "int8", "broken")}
    for name, each in found.items():
        print(name, *each.rows()[:2])
    for figure in ("features", "tokens"):
        apart = {name: getattr(each, figure) for name, each in found.items()}
        assert abs(apart["fp32"].excess) < 1e-6 * apart["fp32"].noise, "the same images"
        assert not apart["fp32"].beyond_noise
        assert not apart["other"].beyond_noise
        assert apart["broken"].excess > 3 * max(abs(apart["int8"].excess), abs(apart["other"].excess))
    # So few images tell it by tokens alone, of which each has 155.
    assert found["broken"].tokens.beyond_noise
    assert found["broken"].tokens.low > max(found["int8"].tokens.high, found["other"].tokens.high)
    assert len(found["int8"].scales) == config.num_scales
    assert found["broken"].scales[0].excess == 0, "the first token follows from class and seed alone"


@pytest.mark.slow
def test_the_command(call, drawn, tmp_path):
    pytest.importorskip("jinja2", reason="the extra report is not installed")
    pytest.importorskip("matplotlib", reason="the extra report is not installed")
    pair = drawn / "fp32.npz", drawn / "broken.npz"
    tokens = ("--tokens", drawn / "fp32.tokens.npz", drawn / "broken.tokens.npz")
    page = tmp_path / "page.html"
    bundle = ("--bundle", shared_bundle("demo-fp32"))
    code, out, err = call("evaluate", "--between", *pair, *tokens, *bundle, *FAST, "--html", page)
    assert code == 0, err
    assert re.search(r"^features of the VQ-VAE  .* (apart|within noise)$", out, re.M)
    assert re.search(r"^tokens, all scales .* apart$", out, re.M)
    assert re.search(r"^tokens, scale 0 .* within noise$", out, re.M)
    assert f"({IMAGES} images)" in out
    text = page.read_text()
    assert "features of the VQ-VAE" in text
    assert "tokens, scale 6" in text
    assert "<svg" in text
    code, out, err = call("evaluate", "--between", *tokens[1:], *bundle, *FAST, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert [each["kind"] for each in document["sets"]] == ["tokens", "tokens"]
    names = [each["name"] for each in document["figures"]]
    assert names == ["features of the VQ-VAE", "tokens, all scales", *(f"tokens, scale {k}" for k in range(7))]
    assert all(each["excess"] == each["distance"] - each["noise"] for each in document["figures"])


def test_pooled_features():
    maps = np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype(np.float32)
    found = pooled(maps)
    assert (found.shape, found.dtype) == ((2, 6), np.float32)
    np.testing.assert_allclose(found[1, 2], maps[1, 2].mean(), rtol=1e-5)
    np.testing.assert_allclose(found[1, 5], maps[1, 2].std(), rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("--between A B",)),
        (("--between", "images.npz", "missing.npz"), ("missing.npz", "var-run --npz")),
        (("--between", "images.npz", "tokens.npz"), ("--tokens",)),
        (("--between", "images.npz", "large.npz"), ("8 pixels", "16", "sets of one size")),
        (("--between", "tokens.npz", "tokens.npz"), ("needs (images, 155)",)),
        (("--between", "images.npz", "images.npz", "--tokens", "few.npz", "few.npz"), ("3 images", "one job")),
        (("--between", "few.npz", "few.npz"), ("3 images", "draw more")),
    ],
)
def test_mistakes_are_one_line(call, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    np.savez("images.npz", arr_0=np.zeros((20, 8, 8, 3), np.uint8))
    np.savez("large.npz", arr_0=np.zeros((20, 16, 16, 3), np.uint8))
    np.savez("tokens.npz", tokens=np.zeros((20, 14), np.int64))
    np.savez("few.npz", tokens=np.zeros((3, 155), np.int64))
    code, out, err = call("evaluate", *arguments, "--bundle", shared_bundle("demo-fp32"), *FAST)
    assert (code, out) == (2, "")
    last = err.splitlines()[-1]
    assert last.startswith("Error: ")
    assert all(word in last for word in words)
