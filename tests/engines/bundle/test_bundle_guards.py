"""What stands between a damaged, foreign or half-written folder and a user."""

import contextlib
import copy
import dataclasses
import itertools
import json
import math
import os
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from support import copy_bundle, reseal, write_manifest

from engines.bundle.bundle import DEMO_BUNDLE, Bundle, default_bundle
from engines.bundle.manifest import is_bundle
from engines.draw.pipeline import Pipeline
from engines.errors import BundleError, VarExportError
from engines.spec import contract
from engines.spec.choices import TARGETS
from tests.bundles import shared_bundle

FILES = (*(f"{graph}.onnx" for graph in contract.graphs_of("both")), "weights.bin", "golden.npz")


@pytest.fixture(scope="module")
def original():
    return shared_bundle("tiny-fp32")


@pytest.fixture
def folder(original, tmp_path):
    return copy_bundle(original, tmp_path / "bundle")


def edit(folder, change):
    """Apply `change` to the manifest in place."""
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    write_manifest(folder, manifest)


def refused(path, *words, **options):
    """The message with which `path` is refused; it is one line and names what is wrong."""
    with pytest.raises(BundleError) as caught:
        Bundle.open(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


def test_a_whole_bundle_opens(folder):
    bundle = Bundle.open(folder)
    assert well_formed(bundle)
    assert set(bundle.files) == set(FILES)
    assert bundle.forms == ("stepwise", "fused")


# --- files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_one_flipped_bit_is_found(name, where, folder):
    data = bytearray((folder / name).read_bytes())
    data[{"first": 0, "middle": len(data) // 2, "last": -1}[where]] ^= 1
    (folder / name).write_bytes(data)
    refused(folder, name, "SHA-256", "copy it again")


@pytest.mark.parametrize("name", FILES)
def test_another_size_is_found_without_hashing(name, folder):
    data = (folder / name).read_bytes()
    for changed in (data[:-1], b"", data + b"\0"):
        (folder / name).write_bytes(changed)
        refused(folder, name, f"{len(changed)} bytes instead of {len(data)}", verify=False)


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_missing_file_is_named(name, folder):
    (folder / name).unlink()
    refused(folder, name)


@pytest.mark.parametrize("name", FILES)
def test_a_folder_or_a_dead_link_is_no_file(name, folder):
    (folder / name).unlink()
    (folder / name).mkdir()
    refused(folder, name)
    (folder / name).rmdir()
    (folder / name).symlink_to(folder / "nowhere")
    refused(folder, name)


def test_exchanged_files_are_found(folder):
    for a, b in itertools.pairwise(FILES):
        (folder / a).rename(folder / "aside")
        (folder / b).rename(folder / a)
        (folder / "aside").rename(folder / b)
        refused(folder)
        (folder / a).rename(folder / "aside")
        (folder / b).rename(folder / a)
        (folder / "aside").rename(folder / b)
    assert Bundle.open(folder)


def test_weights_of_another_model_are_found(folder):
    """Of the same architecture, so that the size fits."""
    size = (folder / "weights.bin").stat().st_size
    (folder / "weights.bin").write_bytes(np.random.RandomState(0).bytes(size))
    refused(folder, "weights.bin", "SHA-256")


def test_further_files_do_no_harm(folder):
    (folder / "notes.txt").write_text("mine")
    assert Bundle.open(folder)


# --- folders that are no bundle -------------------------------------------------------------------------------------


def test_what_is_no_bundle_says_so(tmp_path, folder):
    refused(tmp_path / "nothing", "there is no bundle", "var-export build")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "is not a bundle", "manifest.json")
    refused(folder / "weights.bin", "is not a bundle")
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").mkdir()
    refused(folder, "is not a bundle")


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{", b"null", b"3", b'"text"', b"[]", b"{}", b"\xff\xfe", b"\0" * 100, b"[" * 100_000,
        b'{"name": "My Web App", "icons": [], "manifest_version": 3}',
    ],
    ids=lambda text: repr(text[:12]),
)  # fmt: skip
def test_a_manifest_that_is_none_is_refused(text, folder):
    (folder / "manifest.json").write_bytes(text)
    refused(folder, "manifest.json")


def test_a_truncated_manifest_is_refused(folder):
    data = (folder / "manifest.json").read_bytes()
    for length in np.linspace(1, len(data) - 3, 40, dtype=int):
        (folder / "manifest.json").write_bytes(data[:length])
        refused(folder, "manifest.json")


@pytest.mark.parametrize("key", ["schema", "contract"])
@pytest.mark.parametrize("value", [0, 3, "1", None, [1], -1, 10**30])
def test_another_version_is_refused(key, value, folder):
    edit(folder, lambda manifest: manifest.update({key: value}))
    refused(folder, "schema", "build it again")


@pytest.mark.parametrize("key", ["schema", "contract"])
def test_a_missing_version_is_refused(key, folder):
    edit(folder, lambda manifest: manifest.pop(key))
    refused(folder)


@pytest.mark.parametrize(
    "name", ["../outside.bin", "/etc/hostname", "sub/inside.bin", "..", ".", "", "a\0b", "x" * 5000]
)
def test_a_file_outside_of_the_bundle_is_refused(name, folder):
    (folder.parent / "outside.bin").write_bytes(b"secret")
    (folder / "sub").mkdir()
    (folder / "sub" / "inside.bin").write_bytes(b"secret")
    edit(folder, lambda manifest: manifest["files"].update({name: {"size": 6, "sha256": "0" * 64}}))
    refused(folder)


# --- values of the manifest -----------------------------------------------------------------------------------------


def set_at(manifest, path, value):
    for key in path[:-1]:
        manifest = manifest[key]
    manifest[path[-1]] = value


NONSENSE = [
    (("precision",), "fp8"), (("precision",), None), (("precision",), ["fp32"]),
    (("form",), "sideways"), (("form",), None), (("form",), {}),
    (("target",), "abacus"), (("target",), 3),
    (("name",), 3), (("name",), None),
    (("max_top_k",), 0), (("max_top_k",), -1), (("max_top_k",), 10**9), (("max_top_k",), 2.5), (("max_top_k",), "ten"),
    (("max_top_k",), math.inf), (("max_top_k",), math.nan), (("max_top_k",), None), (("max_top_k",), True),
    (("sampling", "cfg"), "strong"), (("sampling", "cfg"), -1.0), (("sampling", "cfg"), math.nan),
    (("sampling", "top_k"), -1), (("sampling", "top_k"), 1.5), (("sampling", "top_p"), 2.0),
    (("sampling", "temperature"), 0), (("sampling", "temperature"), [1]), (("sampling", "heat"), 1),
    (("sampling",), None), (("sampling",), []),
    (("labels",), "abcde"), (("labels",), [1, 2, 3, 4, 5]), (("labels",), ["too", "few"]), (("labels",), {}),
    (("labels",), 7), (("smooth",), "yes"), (("smooth",), 1), (("smooth",), None),
    (("model",), None), (("model", "patch_nums"), []), (("model", "patch_nums"), [3, 2, 1]),
    (("model", "patch_nums"), [1, 2, math.inf]), (("model", "patch_nums"), 4),
    (("model", "patch_nums"), [1, 2, 3, 4.5]), (("model", "patch_nums"), [1, 2, 3, 10**6]),
    (("model", "transformer", "depth"), 0), (("model", "transformer", "depth"), 2.5),
    (("model", "transformer", "width"), "64"),
    (("model", "transformer", "heads"), 3), (("model", "transformer", "attn_l2_norm"), "yes"),
    (("model", "transformer", "norm_eps"), None), (("model", "vae", "ch_mult"), []),
    (("model", "vae", "quant_resi"), math.nan), (("model", "vae", "share_quant_resi"), None),
    (("model", "vae", "surprise"), 1),
    (("files",), None), (("files",), []), (("files", "weights.bin"), None), (("files", "weights.bin", "size"), "big"),
    (("files", "weights.bin", "sha256"), 5),
    (("constants",), None), (("constants",), {}), (("constants", "up_0", "offset"), -4096),
    (("constants", "up_0", "offset"), 10**12), (("constants", "up_0", "offset"), math.inf),
    (("constants", "up_0", "shape"), [16, 2]), (("constants", "up_0", "shape"), [-16, -1]),
    (("constants", "up_0", "dtype"), "object"), (("constants", "up_0", "dtype"), "float99"),
    (("constants", "up_0", "dtype"), "int32"), (("constants", "up_0"), "up"),
    (("build_key",), None), (("golden_key",), 5),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value"), NONSENSE, ids=lambda part: str(part).replace(" ", ""))
def test_nonsense_in_the_manifest_is_refused(path, value, folder):
    edit(folder, lambda manifest: set_at(manifest, path, value))
    refused(folder)


REQUIRED = (
    "name", "model", "precision", "form", "target", "max_top_k", "sampling", "labels", "build_key", "golden_key",
    "files", "constants",
)  # fmt: skip


@pytest.mark.parametrize("key", REQUIRED)
def test_a_missing_value_is_refused(key, folder):
    edit(folder, lambda manifest: manifest.pop(key))
    refused(folder, "manifest.json", key)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["fp16", "fp32", "fused", "stepwise", "onnxruntime", 0, 1, -1, 10**20]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)  # fmt: skip
FREE = {"provenance", "graphs"}  # for people


def paths(value, prefix=()):
    yield from [prefix] if prefix else []
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from paths(child, (*prefix, key))


@pytest.fixture(scope="module")
def scratch(original, tmp_path_factory):
    """A copy whose manifest hypothesis overwrites; the other files stay."""
    return copy_bundle(original, tmp_path_factory.mktemp("scratch") / "bundle")


@pytest.mark.slow
@given(data=st.data())
@hypothesis_settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_change_of_the_manifest_is_refused_or_harmless(data, original, scratch):
    manifest = json.loads((original / "manifest.json").read_text())
    manifest = {key: value for key, value in manifest.items() if key not in FREE} | {"provenance": {}, "graphs": {}}
    path = data.draw(st.sampled_from(list(paths(manifest))), label="path")
    changed = copy.deepcopy(manifest)
    if data.draw(st.booleans(), label="delete"):
        parent = changed
        for key in path[:-1]:
            parent = parent[key]
        del parent[path[-1]]
    else:
        set_at(changed, path, data.draw(JSON, label="value"))
    write_manifest(scratch, changed)
    try:
        bundle = Bundle.open(scratch, verify=False)
    except BundleError:
        return
    assert well_formed(bundle)


def well_formed(bundle):
    """Whether every value of an opened bundle is one that the runtime can use."""
    config, V = bundle.config, bundle.config.vae.vocab_size
    for part in (config.vae, config.transformer, bundle.sampling):
        for field in dataclasses.fields(part):
            value, kind = getattr(part, field.name), field.type
            if kind == "int":
                assert type(value) is int, field.name
            elif kind == "float":
                assert type(value) in (int, float), field.name
                assert math.isfinite(value), field.name
            elif kind == "bool":
                assert type(value) is bool, field.name
    assert all(type(side) is int for side in config.patch_nums)
    assert bundle.precision in contract.CACHE_DTYPES
    assert bundle.form in ("stepwise", "fused", "both")
    assert bundle.target in TARGETS
    assert type(bundle.max_top_k) is int
    assert 1 <= bundle.max_top_k <= V
    sampling = bundle.sampling
    assert sampling.cfg >= 0
    assert sampling.top_k >= 0
    assert 0 <= sampling.top_p <= 1
    assert sampling.temperature > 0
    assert isinstance(bundle.name, str)
    assert isinstance(bundle.build_key, str)
    assert isinstance(bundle.golden_key, str)
    if bundle.labels is not None:
        assert len(bundle.labels) == config.transformer.num_classes
        assert all(isinstance(label, str) for label in bundle.labels)
    for scale, (side, length) in enumerate(zip(config.patch_nums, config.scale_lengths, strict=True)):
        assert length == side**2
        assert bundle.constant(f"up_{scale}").shape == (config.latent_size**2, length)
        assert bundle.constant(f"down_{scale}").shape == (length, config.latent_size**2)
        assert bundle.constant(f"pos_{scale}").shape == (1, length, config.transformer.width)
    return True


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("depth",), 3),
        (("depth",), 1),
        (("width",), 128),
        (("heads",), 4),
        (("mlp_hidden",), 64),
        (("num_classes",), 6),
    ],
)
def test_sizes_that_the_graphs_do_not_have_end_in_an_error_of_ours(path, value, folder):
    """Nobody can see from the manifest alone that they are wrong; the engines can, or the sizes play no part."""
    edit(folder, lambda manifest: set_at(manifest, ("model", "transformer", *path), value))
    with contextlib.suppress(VarExportError), Pipeline.load(folder, threads=1) as pipeline:
        pipeline.generate([0, 1])


def test_graphs_that_are_no_onnx_end_in_an_error_of_ours(folder):
    (folder / "step.onnx").write_bytes(b"not a graph")
    reseal(folder)
    with pytest.raises(VarExportError, match="step"):
        Pipeline.load(folder)


def test_a_golden_run_that_is_none_ends_in_an_error_of_ours(folder):
    for content in (b"not an archive", b""):
        (folder / "golden.npz").write_bytes(content)
        reseal(folder)
        with pytest.raises(VarExportError, match=r"golden\.npz"):
            _ = Bundle.open(folder).golden
    np.savez(folder / "golden.npz", tokens=np.array([{"a": 1}], dtype=object))
    reseal(folder)
    with pytest.raises(VarExportError, match=r"golden\.npz"):
        _ = Bundle.open(folder).golden


@pytest.mark.parametrize("name", ["a" * 1000, "a\0b", "a\ud800b"])
def test_a_path_that_no_file_can_have(name, tmp_path):
    for run in (lambda: Bundle.open(tmp_path / name), lambda: Pipeline.load(tmp_path / name)):
        with pytest.raises(BundleError) as caught:
            run()
        assert str(caught.value).isprintable()
    assert not is_bundle(tmp_path / name)


# --- which bundle, where none is named ------------------------------------------------------------------------------


def test_the_newest_finished_bundle_is_the_default(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert default_bundle() == (DEMO_BUNDLE, "the embedded demo bundle")
    (tmp_path / "bundles" / "unfinished").mkdir(parents=True)
    assert default_bundle()[0] == DEMO_BUNDLE
    for age, name in enumerate(("new", "old", ".hidden.partial")):
        made = copy_bundle(folder, tmp_path / "bundles" / name)
        os.utime(made / "manifest.json", (1e9 - age, 1e9 - age))
    os.utime(tmp_path / "bundles" / ".hidden.partial" / "manifest.json", (2e9, 2e9))
    path, says = default_bundle()
    assert path.name == "new"
    assert "bundles/new" in says
    shutil.rmtree(tmp_path / "bundles" / "new")
    assert default_bundle()[0].name == "old"
