"""Values and bytes with something wrong, drawn from a generator of numpy."""

from __future__ import annotations

import copy
import json

import numpy as np

HUGE = (10**12, 2**31, 2**63, 2**64, -(2**63), 10**30, -1, 0, 1, 2, 3, 5, 7, 64, 255, 4096)
WORDS = (
    *("fp32", "fp16", "bf16", "int8", "stepwise", "fused", "both", "onnxruntime", "tensorrt", "float16", "float32"),
    *("weights.bin", "golden.npz", "step.onnx", "decode.onnx", "0" * 64, "up_0", "../weights.bin"),
)
REALS = (float("nan"), float("inf"), -float("inf"), 1e308, -1e308, 1e-320, -0.0, 0.5, 1.5, -1.5, 1e30)
TEXTS = (
    "",
    " ",
    "x",
    "0",
    "-1",
    "none",
    "all",
    "0-9",
    "nan",
    "1e999",
    "\x00",
    "a\x1b[2J",
    "\u202eabc",
    "\ud800",
    "\udcff",
    "a" * 100_000,
    "ä" * 300,
    "../..",
    "/",
    "a/b",
    "\n\n",
    "9" * 5000,
    "1,2,3",
    ",",
    "{class}",
    "%s%n",
    "\N{GRINNING FACE}",
    "triton://",
    "hf://",
    "step",
    "fp32",
    "stepwise",
    "float32",
)


def pick(rng, values):
    return values[int(rng.integers(len(values)))]


def deep(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def value(rng, *, surrogates=True):
    """Plain JSON types, mostly of the wrong kind."""
    text = pick(rng, TEXTS if surrogates else [t for t in TEXTS if not any("\ud800" <= c <= "\udfff" for c in t)])
    return pick(
        rng,
        [
            pick(rng, HUGE),
            pick(rng, HUGE),
            pick(rng, REALS),
            text,
            text,
            True,
            False,
            None,
            [],
            {},
            [1, 2],
            [[1], [2, 3]],
            {"a": 1},
            {"k" * 100_000: 1},
            deep(90),
            deep(50),
            list(range(200)),
            [text],
            {text: text},
            [None] * 3,
            10**400,
        ],
    )


def near(rng, number):
    """Another number that could stand in its place."""
    return pick(rng, [number + 1, number - 1, number * 2, number * 4, number // 2, number * 64, 0, 1, 2])


def flipped(rng, data, most=3):
    raw = bytearray(data)
    for _ in range(int(rng.integers(1, most + 1)) if raw else 0):
        raw[int(rng.integers(len(raw)))] ^= 1 << int(rng.integers(8))
    return bytes(raw)


def damaged(rng, data):
    """Bytes flipped, cut, doubled, with a piece overwritten or taken out, or nothing like them."""
    at, length = (int(rng.integers(max(1, len(data)))) for _ in range(2))
    length %= 64
    how = int(rng.integers(8))
    if how < 3:
        return flipped(rng, data)
    if how == 3:
        return data[:at]
    if how == 4:
        return data + data[:at]
    if how == 5:
        return data[:at] + bytes(rng.integers(0, 256, length, np.uint8)) + data[at + length :]
    if how == 6:
        return data[:at] + data[at + length :]
    return pick(
        rng, [b"", b"\0" * 100, b"[" * 10**5, b"PK\x03\x04", b"\x80\x04", bytes(rng.integers(0, 256, 300, np.uint8))]
    )


def places(document, path=()):
    """The path of every value in a JSON document, the document itself left out."""
    found = []
    pairs = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, inner in pairs:
        found += [(*path, key), *places(inner, (*path, key))]
    return found


def edited(rng, document, *, surrogates=True):
    """A document with one to three values replaced, removed, scaled, added or exchanged."""
    changed = copy.deepcopy(document)
    for _ in range(int(rng.integers(1, 4))):
        known = places(changed)
        if not known:
            break
        # Of many alike (constants, labels) as often as of the few others.
        heads = {}
        for path in known:
            heads.setdefault(path[:1], []).append(path)
        path = pick(rng, pick(rng, list(heads.values())))
        parent = changed
        for key in path[:-1]:
            parent = parent[key]
        now, how = parent[path[-1]], int(rng.integers(6))
        number = isinstance(now, int | float) and not isinstance(now, bool)
        if number and rng.random() < 0.4:
            parent[path[-1]] = near(rng, now)
            continue
        if isinstance(now, str) and rng.random() < 0.3:
            parent[path[-1]] = pick(rng, WORDS)
            continue
        if how == 0:
            del parent[path[-1]]
        elif how == 1 and number:
            parent[path[-1]] = pick(rng, [-now, now * 10**9, float(now), str(now)])
        elif how == 2 and isinstance(parent, dict):
            parent[pick(rng, [*TEXTS[:5], "extra"])] = value(rng, surrogates=surrogates)
        elif how == 3:
            other = changed
            for key in pick(rng, known):
                if not isinstance(other, dict | list) or (isinstance(other, dict) and key not in other):
                    break
                if isinstance(other, list) and (not isinstance(key, int) or key >= len(other)):
                    break
                other = other[key]
            parent[path[-1]] = copy.deepcopy(other)
        else:
            parent[path[-1]] = value(rng, surrogates=surrogates)
    return changed


def json_bytes(document):
    """As a hostile writer would: NaN, lone surrogates and numbers of any length included."""
    return json.dumps(document).encode()


def array(rng, arrays):
    """One of some arrays with another shape, type or content: its name and what takes its place."""
    name = pick(rng, sorted(arrays))
    now = arrays[name]
    how = int(rng.integers(9))
    if how == 0:
        return name, None
    if how == 1:
        return name, now.astype(
            pick(rng, ["int8", "int32", "int64", "uint64", "float16", "float32", "float64", "bool", "U4"])
        )
    if how == 2:
        return name, now.reshape(-1)
    if how == 3:
        return name, now[:0]
    if how == 4:
        return name, now[..., : now.shape[-1] // 2] if now.ndim else now[None]
    if how == 5:
        return name, np.array([{"a": 1}], object)
    if how == 6:
        return name, np.concatenate([now, now]) if now.ndim else now
    changed = now.copy().reshape(-1)
    if changed.size:
        kind = [float("nan"), float("inf"), 1e30, -1.0] if changed.dtype.kind == "f" else [-1, 2**40, 10**6, 1]
        with np.errstate(all="ignore"):
            changed[int(rng.integers(changed.size))] = np.array(pick(rng, kind)).astype(changed.dtype)
    return name, changed.reshape(now.shape)
