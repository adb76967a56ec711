import contextlib
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import write_manifest

from calib.keys import code_digest
from engines.bundle.manifest import MANIFEST
from engines.storage import sha256_of
from tests.kept import made_once
from var_export.cli.main import main


@pytest.fixture
def call(capsys):
    """Run `var-export`; returns exit code, stdout, stderr."""

    def run(*args):
        code = main([str(arg) for arg in args])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """A model of 8x8 pixels with random weights, as a folder."""
    from safetensors.torch import save_file

    from engines.spec.config import ModelConfig, TransformerConfig, VaeConfig
    from var_export.model.reference import Reference

    config = ModelConfig(
        name="tiny",
        patch_nums=(1, 2, 4),
        vae=VaeConfig(vocab_size=64, z_channels=8, ch=32, ch_mult=(1, 1), num_res_blocks=1),
        transformer=TransformerConfig(depth=1, width=64, heads=1, mlp_hidden=256, num_classes=5),
    )
    folder = tmp_path_factory.mktemp("tiny")
    reference = Reference.random(config)
    for file, module in (("var.safetensors", reference.var), ("vae.safetensors", reference.vae)):
        save_file({name: value.contiguous() for name, value in module.state_dict().items()}, folder / file)
    sampling = {"cfg": 2.0, "top_k": 8, "top_p": 0.9}
    (folder / "config.json").write_text(json.dumps({"model": "tiny", "patch_nums": [1, 2, 4], "sampling": sampling}))
    return folder


@dataclass(frozen=True)
class Built:
    """A build by the command, and what it printed."""

    path: Path
    args: tuple[str, ...]
    out: str
    err: str


@pytest.fixture(scope="session")
def tiny_build(tiny_checkpoint) -> Built:
    """The tiny model in FP32, in both forms. Shared: copy it before changing a file."""

    def arguments(folder: Path) -> tuple[str, ...]:
        options = ("--precision", "fp32", "--form", "both", "--threads", "1", "--out", str(folder / "tiny"))
        return ("build", str(tiny_checkpoint), *options)

    def make(folder: Path) -> None:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            assert main(list(arguments(folder))) == 0, err.getvalue()
        (folder / "out").write_text(out.getvalue())
        (folder / "err").write_text(err.getvalue())

    folder = made_once("built-by-command", code_digest(()), make)
    return Built(folder / "tiny", arguments(folder), (folder / "out").read_text(), (folder / "err").read_text())


@pytest.fixture
def altered(tiny_build, tmp_path) -> Callable[..., Path]:
    """A copy of the tiny bundle with another file or manifest, and hashes that fit it."""

    def alter(change: Callable[[Path], None] = lambda path: None, **manifest: object) -> Path:
        path = tmp_path / "altered"
        shutil.copytree(tiny_build.path, path)
        change(path)
        document = json.loads((path / MANIFEST).read_text()) | manifest
        for name, entry in document["files"].items():
            entry |= {"size": (path / name).stat().st_size, "sha256": sha256_of(path / name)}
        write_manifest(path, document)
        return path

    return alter
