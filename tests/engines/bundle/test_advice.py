"""What is said to who names something else than a bundle."""

import pytest
from support import refused

from engines.bundle.bundle import Bundle
from engines.bundle.manifest import MANIFEST
from engines.errors import BundleError


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("FoundationVision/var", "hf://FoundationVision/var/FILE"),
        ("bundles", "bundles is a folder of bundles: name one of them, such as bundles/var-d16-256-fp16, bundles/x"),
        ("bundles/var-d16-256-fp61", "did you mean bundles/var-d16-256-fp16?"),
        ("var_d61.pth", "there is no file var_d61.pth: did you mean var_d16.pth?"),
        ("nothing-like-it.pth", "there is no file nothing-like-it.pth; bundles are made of checkpoints: var-export"),
        ("var_d16.pth", "var_d16.pth is a checkpoint: var-export build var_d16.pth makes a bundle of it"),
        ("model", "model is a folder with a checkpoint, not a bundle: var-export build model makes one of it"),
        ("empty", "empty is not a bundle: a bundle is a folder with a manifest.json"),
        ("notes.txt", "notes.txt is not a bundle: a bundle is a folder"),
        ("bundles/nowhere", "there is no bundle at bundles/nowhere; var-export list shows those that are here"),
        ("nowhere", "there is no bundle at nowhere; var-export list"),
        ("/no/where", "there is no bundle at /no/where; var-export list"),
    ],
)
def test_the_remedy_follows_from_what_is_there(tmp_path, monkeypatch, path, says):
    monkeypatch.chdir(tmp_path)
    for name in (f"bundles/var-d16-256-fp16/{MANIFEST}", f"bundles/x/{MANIFEST}", "model/var.ckpt", "empty/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    for name in ("var_d16.pth", "notes.txt"):
        (tmp_path / name).write_text("x")
    refused(lambda: Bundle.open(path), says, kind=BundleError)
