"""Command lines with something wrong: odd values of options, and odd files that they name."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from pathlib import Path

import click
import numpy as np
from PIL import Image

from engines.bundle.bundle import DEMO_BUNDLE
from engines.cli.run import main as var_run
from engines.cli.run import run
from tests.bundles import shared_bundle
from tests.fuzz import odd
from var_export.cli.main import group
from var_export.cli.main import main as var_export

# Honest starts, so that what is odd behind them is reached. Builds never get a checkpoint that goes through.
STARTS = (
    (var_run, run.commands["draw"], ["--class", "1", "--bundle", "tiny"]),
    (var_run, run.commands["draw"], ["--class", "0-2", "--bundle", "tiny", "--out", "many", "--grid"]),
    (var_run, run.commands["decode"], ["decode", "tokens.npz", "--bundle", "tiny"]),
    (var_run, run.commands["reconstruct"], ["reconstruct", "picture.png", "--bundle", "tiny"]),
    (var_run, run.commands["edit"], ["edit", "picture.png", "--bundle", "tiny", "--boxes", "boxes.json"]),
    (var_run, run.commands["edit"], ["edit", "picture.png", "--bundle", "tiny", "--box", "0,0,1,.5"]),
    (var_run, run.commands["classes"], ["classes", "--bundle", "tiny"]),
    (var_run, run.commands["draw"], []),
    (var_export, group.commands["inspect"], ["inspect", "tiny"]),
    (var_export, group.commands["verify"], ["verify", "tiny"]),
    (var_export, group.commands["estimate"], ["estimate", "--model", "tiny"]),
    (var_export, group.commands["estimate"], ["estimate", "--model", "d16"]),
    (var_export, group.commands["triton"], ["triton", "tiny", "--repository", "models"]),
    (var_export, group.commands["build"], ["build", "odd.pth"]),
    (var_export, group.commands["sensitivity"], ["sensitivity", "odd"]),
    (var_export, group.commands["doctor"], ["doctor", "--no-run"]),
    (var_export, group, []),
)
NEVER = ("help", "version", "runs", "warmup", "count", "url")  # those end well, or take their time as they should


class Commands:
    """The class of cases about command lines."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        os.chdir(folder)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        shutil.copytree(shared_bundle("tiny-fp32"), folder / "tiny")  # some commands write where they are told to
        self.files = {
            "picture.png": _picture(),
            "tokens.npz": _tokens(),
            "boxes.json": odd.json_bytes([{"image_id": 1, "category_id": 2, "bbox": [0, 0, 8, 8], "score": 0.5}]),
            "odd.pth": b"odd",
            "labels.txt": b"a\nb\n",
            "config.json": b"{}",
            "builder.toml": b"[tensorrt]\n",
        }
        self.files |= {"manifest.json": (DEMO_BUNDLE / "manifest.json").read_bytes()}
        for name, data in self.files.items():
            (folder / name).write_bytes(data)
        for main, _, args in STARTS[:4]:
            assert self._called(main, args) == 0, args

    def run(self, rng: np.random.Generator) -> tuple[str, str]:
        """One case, see `tests.fuzz.bundles`."""
        main, command, start = odd.pick(rng, STARTS)
        args = list(start)
        damaged = odd.pick(rng, sorted(self.files))
        (self.folder / damaged).write_bytes(odd.damaged(rng, self.files[damaged]))
        (self.folder / "odd").mkdir(exist_ok=True)
        (self.folder / "odd" / "manifest.json").write_bytes(odd.damaged(rng, self.files["manifest.json"]))
        options = [param for param in command.params if isinstance(param, click.Option) and param.name not in NEVER]
        for _ in range(int(rng.integers(0, 4)) if options else 0):
            param = odd.pick(rng, options)
            args.append(odd.pick(rng, param.opts))
            if not param.is_flag:
                args.append(self._value(rng, param))
        if rng.random() < 0.1:
            args.insert(int(rng.integers(len(args) + 1)), odd.pick(rng, odd.TEXTS)[:1000])
        if args[:1] == ["build"] and "odd.pth" not in args[1:2]:
            args = ["build", "odd.pth", *args[1:]]
        try:
            code = self._called(main, args)
        finally:
            (self.folder / damaged).write_bytes(self.files[damaged])
        assert code in (0, 1, 2), (code, args)
        return command.name or "", ("went through", "failed its check", "refused")[code]

    def _value(self, rng, param):
        known = list(param.type.choices) if isinstance(param.type, click.Choice) else []
        text = odd.pick(
            rng,
            [
                *known,
                *known,
                *sorted(self.files),
                "tiny",
                "odd",
                "missing",
                "/dev/null",
                "/dev/full",
                "1",
                "2",
                "0.5",
                "new.png",
                "new",
                "new.npz",
                "new/{seed}.png",
                str(odd.value(rng))[:2000],
                odd.pick(rng, odd.TEXTS)[:2000],
            ],
        )
        return text.replace("\0", "") if rng.random() < 0.9 else text

    def _called(self, main, args):
        out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(args)
        told = err.buffer.getvalue().decode()
        if code == 2:
            last = told.rstrip("\n").split("\n")[-1]
            assert last.startswith("Error: ") and len(last) < 2200, told[-3000:]
        assert "Traceback" not in told, told[-3000:]
        assert not any(c in told for c in "\x1b\x00\u202e"), told[:3000]
        return code


def _picture():
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def _tokens():
    stream = io.BytesIO()
    tokens = json.loads((shared_bundle("tiny-fp32") / "manifest.json").read_text())["model"]["patch_nums"]
    np.savez(stream, tokens=np.zeros((2, sum(side * side for side in tokens)), np.int64), classes=np.array([1, 2]))
    return stream.getvalue()
