"""What the classes are called: forms of files, and when ImageNet's names are taken."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
import torch
from checkpoint_samples import TINY, error_of, save_pair, tiny, var_state
from hypothesis import given
from hypothesis import strategies as st

from engines.bundle.labels import ClassNames
from engines.errors import CheckpointError, UsageError
from engines.sizing import models
from var_export.checkpoint.labels import labels_of
from var_export.checkpoint.load import load_checkpoint
from var_export.checkpoint.settings import ConfigFile
from var_export.checkpoint.sources import NamedFile

NAMES = ("tench, Tinca tinca", "goldfish", "great white shark", "crane", "stingray")
IDS = ("n01440764", "n01443537", "n01484850", "n01491361", "n01494475")
PYTHON = str(dict(enumerate(NAMES)))

FORMS = {
    "lines": "\n".join(NAMES),
    "lines of another system": "\ufeff" + "\r\n".join(NAMES) + "\r\n\r\n",
    "colons": "".join(f"{k}: {name}\n" for k, name in enumerate(NAMES)),
    "colons and quotes": "".join(f"{k}: '{name}',\n" for k, name in enumerate(NAMES)),
    "any order": "".join(f"{k}: {name}\n" for k, name in reversed(list(enumerate(NAMES)))),
    "commas": "".join(f"{k},{name}\n" for k, name in enumerate(NAMES)),
    "tabs": "".join(f"{k}\t{name}\n" for k, name in enumerate(NAMES)),
    "blanks": "".join(f"{k} {name}\n" for k, name in enumerate(NAMES)),
    "ids": "".join(f"{i} {name}\n" for i, name in zip(IDS, NAMES, strict=True)),
    "ids with indexes": "".join(f"{k} {i} {name}\n" for k, (i, name) in enumerate(zip(IDS, NAMES, strict=True))),
    "header": "index,label\n" + "".join(f'{k},"{name}"\n' for k, name in enumerate(NAMES)),
    "json list": json.dumps(NAMES),
    "json map": json.dumps(dict(enumerate(NAMES))),
    "json map of pairs": json.dumps(dict(enumerate(zip(IDS, NAMES, strict=True)))),
    "json list of pairs": json.dumps(list(zip(IDS, NAMES, strict=True))),
    "json map to indexes": json.dumps({name: k for k, name in enumerate(NAMES)}, indent=1),
    "config of a classifier": json.dumps({"architectures": ["x"], "id2label": dict(enumerate(NAMES))}),
    "python": PYTHON,
    "python in lines": PYTHON.replace(", ", ",\n ").replace("tench,\n", "tench,"),
    "python list": str(list(NAMES)),
}
TABLES = {
    "plain": "".join(f'{k},"{name}"\n' for k, name in enumerate(NAMES)),
    "without quotes": "".join(f"{k},{name}\n" for k, name in enumerate(NAMES)),
    "with a header": "id,wnid,name\n" + "".join(f'{k},{IDS[k]},"{name}"\n' for k, name in enumerate(NAMES)),
    "of other columns": "name;folder;class_id\n" + "".join(f"{name};{IDS[k]};{k}\n" for k, name in enumerate(NAMES)),
    "an unknown header": 'what,number\n"' + "".join(f'{name}",{k}\n"' for k, name in enumerate(NAMES))[:-1],
    "one column": "label\n" + "".join(f'"{name}"\n' for name in NAMES),
    "ids and names": "".join(f'{i},"{name}"\n' for i, name in zip(IDS, NAMES, strict=True)),
    "other numbers": "name,count\n" + "".join(f'"{name}",{10 + 3 * k}\n' for k, name in enumerate(NAMES)),
    "ids and other numbers": "wnid,label,count\n"
    + "".join(f'{IDS[k]},"{name}",{99 - k}\n' for k, name in enumerate(NAMES)),
    "more text": "label,note\n" + "".join(f'"{name}","x{k}"\n' for k, name in enumerate(NAMES)),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return save_pair(tmp_path / "pair")


class TestForms:
    @pytest.mark.parametrize("form", FORMS)
    def test_text(self, path: Path, tmp_path: Path, form: str) -> None:
        (tmp_path / "names.txt").write_text(FORMS[form], encoding="utf-8", newline="")
        assert load_checkpoint(path, labels=tmp_path / "names.txt").labels == NAMES

    @pytest.mark.parametrize("form", TABLES)
    def test_csv(self, path: Path, tmp_path: Path, form: str) -> None:
        (tmp_path / "names.csv").write_text(TABLES[form])
        assert load_checkpoint(path, labels=tmp_path / "names.csv").labels == NAMES

    @pytest.mark.parametrize(
        ("text", "labels"),
        [
            ("cat\ndog\n", ("cat", "dog", "", "", "")),
            ("cat\n\ndog\n", ("cat", "", "dog", "", "")),
            ("3: cat\n1: dog\n", ("", "dog", "", "cat", "")),
            ('{"4": "cat"}', ("", "", "", "", "cat")),
            ("100 metres\nmarathon\nrelay", ("100 metres", "marathon", "relay", "", "")),
        ],
    )
    def test_fewer_than_classes(self, path: Path, tmp_path: Path, text: str, labels: tuple[str, ...]) -> None:
        (tmp_path / "few.txt").write_text(text)
        assert load_checkpoint(path, labels=tmp_path / "few.txt").labels == labels

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("{0: 'tench', 1: goldfish}", "it begins as JSON or Python does, and is neither (ValueError)"),
            ("{0: 'tench',", "it begins as JSON or Python does, and is neither (SyntaxError)"),
            ("names = {\n 0: 'tench'}", "line 1, 'names = {', is no name of a class"),
            ("names:\n  0: tench\n  1: goldfish\n", "line 1, 'names:', is not like most of its lines"),
            ("- tench\n- goldfish", "line 1, '- tench', is no name of a class"),
            ("<html>", "line 1, '<html>', is no name of a class"),
            ("0: tench\n1: goldfish\nshark", "line 3, 'shark', is not like most of its lines"),
            ("0: tench\n0: goldfish", "the index 0 is there twice"),
            ("1: a\n2: b\n3: c\n4: d\n5: e", "counts its classes from 1: the first class has the index 0"),
            ("n02119789 fox\nn01440764 tench", "WordNet ids are not in ascending order"),
            ("a\nb\nc\nd\ne\nf", "has 6 labels, but the model has 5 classes"),
            ("9: x", "has 10 labels, but the model has 5 classes"),
            ("\n \n", "holds no labels"),
            ("[]", "holds no labels"),
            ("[1, 2]", "1 is no label"),
            ('{"a": "b"}', "neither a list of labels nor a map between indexes and labels"),
            ('{"a": 0, "b": 0}', "the index 0 is there twice"),
            ('{"a": -1}', "the index -1 is below 0"),
            ("[" * 5000, "it begins as JSON or Python does, and is neither"),
            ("a\nb\x1b[2J", "the label of class 1 holds a control character"),
            ("a,b,c\nx,y,z\n", ""),
            ("index,label\n,,\n", ""),
        ],
    )
    def test_not_understood(self, path: Path, tmp_path: Path, text: str, problem: str) -> None:
        name = "names.csv" if not problem else "names.txt"
        (tmp_path / name).write_text(text)
        message = error_of(path, labels=tmp_path / name)
        assert str(tmp_path / name) in message
        assert (problem or "3 columns do not say which one holds the labels") in message


PIECES = st.text("{}[]()'\":,;\t\n 0123n4ab-<=\x00é", max_size=60)
STARTS = st.sampled_from(["", "{", "[", "index,label\n", "n01440764 a\n", "0: a\n"])


@given(st.builds(str.__add__, STARTS, PIECES), st.booleans())
def test_any_text_is_labels_or_one_error(text: str, is_table: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"names.{'csv' if is_table else 'txt'}"
        path.write_text(text, encoding="utf-8")
        try:
            labels = labels_of(path, ConfigFile(), (NamedFile(path, ""), NamedFile(path, "")), TINY)
        except CheckpointError:
            return
    assert labels is not None
    assert len(labels) == 5
    assert any(labels)


class TestImageNet:
    """The training code makes every model 1000-way: the number of classes says nothing of their names."""

    @pytest.fixture
    def official(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A small stand-in of a published pair, under the published names."""
        config = tiny(name="d2", var={"num_classes": 1000})
        monkeypatch.setattr(models, "NAMES", ("d2",))
        monkeypatch.setattr(models, "official", lambda name: config)
        save_pair(tmp_path, config).rename(tmp_path / "var_d2.pth")
        (tmp_path / "vae_tiny.pth").rename(tmp_path / "vae_ch160v4096z32.pth")
        return tmp_path / "var_d2.pth"

    def test_of_the_published_models(self, official: Path) -> None:
        labels = load_checkpoint(official).labels
        assert labels is not None
        assert len(labels) == 1000
        names = ClassNames(1000, labels)
        assert [names.short_label(k) for k in (0, 88, 207, 999)] == [
            "tench",
            "macaw",
            "golden retriever",
            "toilet tissue",
        ]
        assert names.parse(["tench", "Tinca tinca", "orca", "taxi", "station wagon"]) == (0, 0, 148, 468, 436)
        with pytest.raises(UsageError, match="names the classes 387 and 388"):
            names.parse("panda")

    @pytest.mark.parametrize("name", ["ar-ckpt-best.pth", "var_d3.pth", "my_var_d2.pth"])
    def test_not_under_another_name(self, official: Path, name: str) -> None:
        assert load_checkpoint(official.rename(official.with_name(name))).labels is None

    def test_not_with_another_architecture(self, official: Path) -> None:
        torch.save(var_state(TINY), official)
        assert load_checkpoint(official).labels is None

    def test_not_with_another_vae(self, official: Path) -> None:
        (official.parent / "vae_ch160v4096z32.pth").rename(official.parent / "vae_mine.pth")
        assert load_checkpoint(official).labels is None

    def test_as_the_user_says(self, official: Path) -> None:
        assert load_checkpoint(official, labels="none").labels is None
        other = official.rename(official.with_name("mine.pth"))
        labels = load_checkpoint(other, labels="imagenet").labels
        assert labels is not None
        assert labels[1] == "goldfish, Carassius auratus"

    def test_none_beats_the_file_beside(self, path: Path) -> None:
        (path.parent / "labels.txt").write_text("a\nb\n")
        assert load_checkpoint(path, labels="none").labels is None

    def test_of_a_model_with_other_classes(self, path: Path) -> None:
        assert "ImageNet has 1000 classes, this model 5: pass --labels FILE" in error_of(path, labels="imagenet")

    def test_the_published_models_are_known(self) -> None:
        assert {models.official(name).transformer.num_classes for name in models.NAMES if name != "demo"} == {1000}
