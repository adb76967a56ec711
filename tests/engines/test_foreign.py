"""What others wrote is read in one place, within limits, and what is wrong with it is one line."""

import ast
import io
import json
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engines import foreign
from engines.errors import BundleError, UsageError
from engines.foreign import open_picture, parse_json, parse_python, read_arrays, read_json
from engines.pictures.images import load_picture
from engines.storage import write_json

ROOT = Path(__file__).parents[2]


def anything(name, dtype, shape):
    pass


def arrays_of(file, *names, accept=anything, **more):
    return read_arrays(file, names, accept, what="file of arrays", **more)


# --- JSON -------------------------------------------------------------------------------------------------------------


def test_json_comes_back(tmp_path):
    document = {"b": [1, 2.5, None], "a": "×"}
    for indent in (1, None):
        write_json(tmp_path / "a.json", document, indent=indent)
        assert read_json(tmp_path / "a.json") == document
    assert (tmp_path / "a.json").read_bytes() == b'{"b":[1,2.5,null],"a":"\\u00d7"}\n'
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf[1]")  # as editors on Windows write it
    assert read_json(tmp_path / "a.json") == [1]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b"1" * 10_000],
    ids=["empty", "cut", "binary", "deep", "long"],
)
def test_what_is_no_json_is_one_line(content, tmp_path):
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(UsageError, match="it is no JSON file") as caught:
        read_json(file)
    assert str(file) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_json_file_that_cannot_be_read(tmp_path):
    with pytest.raises(UsageError, match=r"cannot read .*a.json: No such file or directory"):
        read_json(tmp_path / "a.json")
    with pytest.raises(UsageError, match=r"cannot read .*: Is a directory"):
        read_json(tmp_path)


def test_json_nests_as_deep_as_documents_do():
    depth = foreign.MAX_DEPTH
    assert [parse_json(text) for text in ("1", "1.5", '"a"', "null", "true", "[1]")] == [1, 1.5, "a", None, True, [1]]
    assert parse_json("[" * depth + "]" * depth)
    for text in ("[" * (depth + 1) + "]" * (depth + 1), '{"a":' * 500 + "1" + "}" * 500, "[" * 10**6):
        with pytest.raises(ValueError, match="nests"):
            parse_json(text)


@pytest.mark.parametrize("text", [r'{"a": "\ud800"}', r'{"\uDFFF": 1}', b'{"a": "\xed\xa0\x80"}'])
def test_text_that_is_no_unicode(text):
    with pytest.raises(ValueError, match="utf-8"):
        parse_json(text)


def test_pairs_of_surrogates_are_text():
    assert parse_json(r'["\ud83d\ude00"]') == ["\N{GRINNING FACE}"]


def test_json_within_limits(tmp_path, monkeypatch):
    monkeypatch.setattr(foreign, "MAX_CONTAINERS", 3)
    assert parse_json("[[],[]]") == [[], []]
    with pytest.raises(ValueError, match="more than 3 lists"):
        parse_json("[[],[],[]]")
    (tmp_path / "large.json").write_bytes(b" " * (foreign.TEXT_BYTES + 1))
    with pytest.raises(BundleError, match=r"large\.json: it is no JSON file \(it has more than 64 MiB\); build again"):
        read_json(tmp_path / "large.json", error=BundleError, remedy="build again")


# --- arrays -----------------------------------------------------------------------------------------------------------


def test_arrays_come_back(tmp_path):
    made = {"a": np.arange(6.0).reshape(2, 3), "b": np.array([True]), "c": np.asfortranarray(np.eye(3, dtype="f2"))}
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **made)
        found = arrays_of(tmp_path / "a.npz", *made)
        assert all((found[name] == made[name]).all() and found[name].dtype == made[name].dtype for name in made)
    assert list(arrays_of(tmp_path / "a.npz", "b", "missing", optional=True)) == ["b"]
    with pytest.raises(UsageError, match=r"a\.npz: it is no file of arrays \(it has no array missing\)"):
        arrays_of(tmp_path / "a.npz", "missing")


def test_what_is_not_accepted_is_not_read(tmp_path):
    def refuse(name, dtype, shape):
        raise ValueError(f"{name} {dtype} {shape}")

    np.savez(tmp_path / "a.npz", a=np.zeros((2, 3), np.int8))
    with pytest.raises(UsageError, match=r"a int8 \(2, 3\)"):
        arrays_of(tmp_path / "a.npz", "a", accept=refuse)


def npz(path, header, *, data=b"", version=b"\x01\x00", compression=zipfile.ZIP_DEFLATED):
    text = header.encode()
    length = struct.pack("<H", len(text)) if version[0] == 1 else struct.pack("<I", len(text))
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a.npy", b"\x93NUMPY" + version + length + text + data)


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,)}", "8000000000000 bytes, and has 0"),
        ("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}", "shape"),
        ("{'descr': '|O', 'fortran_order': False, 'shape': ()}", "type object"),
        ("{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': ()}", "type"),
        ("{'descr': '|V8', 'fortran_order': False, 'shape': ()}", "type"),
        ("(" * 3000, ""),
        ("{'descr': '<f8'}", ""),
        ("[]", ""),
    ],
)
def test_a_header_that_says_what_is_not_there(header, says, tmp_path):
    for version in (b"\x01\x00", b"\x02\x00"):
        npz(tmp_path / "a.npz", header, version=version)
        with pytest.raises(UsageError, match=says) as caught:
            arrays_of(tmp_path / "a.npz", "a")
        assert str(caught.value).startswith(f"cannot read {tmp_path / 'a.npz'}: it is no file of arrays (")


def test_an_array_that_grows_out_of_nothing(tmp_path):
    count = foreign.ARRAYS_BYTES + 1
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({count},)}}"
    npz(tmp_path / "a.npz", header, data=bytes(100), compression=zipfile.ZIP_STORED)
    raw = bytearray((tmp_path / "a.npz").read_bytes())
    declared = struct.pack("<I", 10 + len(header) + count)
    for start in (raw.index(b"PK\x03\x04") + 22, raw.index(b"PK\x01\x02") + 24):
        raw[start : start + 4] = declared
    (tmp_path / "a.npz").write_bytes(raw)
    with pytest.raises(UsageError, match="its arrays are too large"):
        arrays_of(tmp_path / "a.npz", "a")


@pytest.mark.timeout(120)
def test_damaged_archives_are_one_line(tmp_path):
    """Cut anywhere, flipped anywhere: BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError, ..."""
    np.savez_compressed(tmp_path / "good.npz", a=np.arange(300), b=np.ones((3, 4)))
    good, rng, refused = (tmp_path / "good.npz").read_bytes(), np.random.default_rng(0), 0
    wanted = arrays_of(tmp_path / "good.npz", "a", "b")
    for case in range(400):
        raw = bytearray(good)
        for _ in range(rng.integers(1, 4)):
            raw[rng.integers(len(raw))] ^= 1 << rng.integers(8)
        if case % 3 == 0:
            del raw[rng.integers(len(raw)) :]
        (tmp_path / "bad.npz").write_bytes(raw)
        try:
            found = arrays_of(tmp_path / "bad.npz", "a", "b")
        except UsageError:
            refused += 1
        else:  # where the flip does not count
            assert all((found[name] == wanted[name]).all() for name in wanted)
    assert refused > 300


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_pictures_that_are_too_large_are_not_decoded(tmp_path):
    stream = io.BytesIO()
    Image.new("L", (1, 1)).save(stream, "PNG")
    raw = bytearray(stream.getvalue())
    raw[16:24] = struct.pack(">II", 20000, 20000)
    raw[29:33] = struct.pack(">I", zlib.crc32(raw[12:29]))
    (tmp_path / "a.png").write_bytes(raw)
    with pytest.raises(UsageError, match=r"a\.png.*pixels"):
        load_picture(tmp_path / "a.png")


def test_no_format_starts_another_program(tmp_path):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    with pytest.raises(UsageError, match="not a picture in a known format"), open_picture(tmp_path / "a.png"):
        pass
    assert "EPS" not in foreign.FORMATS


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "TGA"])
def test_damaged_pictures_are_one_line(kind, tmp_path):
    rng = np.random.default_rng(0)
    stream = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)).save(stream, kind)
    file, refused = tmp_path / "a.picture", 0
    for case in range(60):
        raw = bytearray(stream.getvalue())
        for _ in range(3):
            raw[rng.integers(min(len(raw), 100))] ^= 1 << rng.integers(8)
        if case % 2:
            del raw[rng.integers(len(raw)) :]
        file.write_bytes(raw)
        try:
            load_picture(file)
        except UsageError:
            refused += 1
    assert refused > 10


@pytest.mark.parametrize(
    ("text", "value"), [(" {0: 'tench', 1: \"it's\"} ", {0: "tench", 1: "it's"}), ("[640, 640]", [640, 640]), ("2", 2)]
)
def test_a_python_literal(text, value):
    assert parse_python(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{0: 'a'",
        "{0: print(1)}",
        "__import__('os')",
        "{[]: 1}",
        "\0",
        "[" * 5000,
        "-" * 100_000 + "1",
        "(" + "1," * 2**20,
    ],
    ids=range(9),
)
def test_what_is_no_python_literal_is_a_value_error(text):
    with pytest.raises(ValueError):  # noqa: PT011
        parse_python(text)


# --- nothing else reads -----------------------------------------------------------------------------------------------

READERS = {
    **dict.fromkeys(("np.load", "np.fromfile", "np.genfromtxt", "np.loadtxt"), "arrays"),
    **dict.fromkeys(("json.load", "json.loads", "tomllib.load", "tomllib.loads", "ast.literal_eval"), "documents"),
    **dict.fromkeys(("zipfile.ZipFile", "tarfile.open", "Image.open"), "archives and pictures"),
    **dict.fromkeys(("pickle.load", "pickle.loads", "marshal.load", "marshal.loads", "shelve.open"), "code"),
    **dict.fromkeys(("torch.load", "load_file", "safe_open"), "checkpoints"),
    **dict.fromkeys(("onnx.load", "onnx.load_model", "ir.load"), "graphs"),
}
# Where else one of them stands, and why.
ELSEWHERE = {
    ("var_export/checkpoint/files.py", "torch.load"): "needs PyTorch",
    ("var_export/checkpoint/files.py", "load_file"): "needs PyTorch",
    ("var_export/checkpoint/pickles.py", "zipfile.ZipFile"): "looks before torch.load does, and leaves faults to that",
    ("calib/graphs/layers.py", "ir.load"): "needs onnx-ir; in `reading`",
    ("engines/backends/tensorrt/options.py", "tomllib.loads"): "the only TOML; in `reading`",
    ("engines/files/npz.py", "zipfile.ZipFile"): "writes",
    ("engines/triton/serving/adapter.py", "json.loads"): "labels that it wrote itself, as keys",
    ("engines/bundle/plans.py", "json.loads"): "what it dumped itself, to have plain types",
    ("engines/spec/config.py", "json.loads"): "what it dumped itself, to have plain types",
    ("var_export/gpu_check/cases.py", "json.loads"): "from its own parent process",
    ("var_export/gpu_check/isolation.py", "json.loads"): "from its own child process",
}


def calls_in(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


def test_nothing_else_reads_what_others_wrote():
    found = set()
    for package in ("engines", "calib", "var_export"):
        for file in sorted((ROOT / package).rglob("*.py")):
            place = file.relative_to(ROOT).as_posix()
            if place != "engines/foreign.py":
                found |= {(place, name) for name in calls_in(file) if name in READERS}
    assert found == set(ELSEWHERE)


def test_the_rule_finds_what_breaks_it():
    assert {"json.loads", "zipfile.ZipFile", "Image.open"} <= set(calls_in(ROOT / "engines" / "foreign.py"))
    assert json.loads("[]") == []
