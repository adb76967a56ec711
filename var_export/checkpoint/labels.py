"""Names of a model's classes: where they come from, and the forms of files that people keep them in.

    lines            tench                                   a line may hold alternatives: tench, Tinca tinca
    numbered lines   0: tench       0,tench       0 tench
    WordNet lines    n01440764 tench                         in the order of the ids
    CSV, TSV         index,label                             with or without a header, in any order of columns
    JSON             ["tench", ...]    {"0": "tench"}    {"0": ["n01440764", "tench"]}    {"tench": 0}
    Python           the same as Python prints it: {0: 'tench, Tinca tinca', ...}

What has none of these forms is refused: a wrong name is worse than none.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from engines.errors import CheckpointError
from engines.foreign import parse_json, parse_python
from engines.sizing import models
from engines.spec.config import ModelConfig
from engines.words import is_printable, quoted
from var_export.checkpoint.settings import ConfigFile
from var_export.checkpoint.sources import LABELS_FILE, OFFICIAL_VAE, NamedFile, locate_file

NONE = "none"
IMAGENET = "imagenet"
IMAGENET_CLASSES = 1000

_IMAGENET_FILE = Path(__file__).parents[1] / "data" / "imagenet_labels.txt"
_FORMS = "write one label per line, CSV, or a JSON list or map of indexes"
_ODD_STARTS, _ODD_ENDS = tuple("{[(<\"'-"), ("{", "}", "[", "]", "',", '",')  # of a form that is none of ours
_WORDNET = re.compile(r"n\d{8}")
_NUMBERED = re.compile(r"(\d{1,7})(?:\s*[:,;]\s*|\s+)(.+)")
_WITH_ID = re.compile(r"(n\d{8})(?:\s*[:,;]\s*|\s+)(.+)")
_HEADERS = {"label", "labels", "name", "names", "class", "classes", "class_name", "classname", "title"}
_INDEX_HEADERS = {"index", "idx", "id", "class_id", "class_index", "class_idx", "label_id", "target"}

Labels = tuple[str, ...]


def labels_of(
    wanted: str | Path | None, described: ConfigFile, files: tuple[NamedFile, NamedFile], config: ModelConfig
) -> Labels | None:
    """One label per class, empty where a class has none; None where nothing says what the classes are called.

    Args:
        wanted: what the user asks for: `NONE`, `IMAGENET`, or a file.
        described: what the config.json says, which may name a file.
        files: the transformer's file, beside which labels.txt may lie, and the VQ-VAE's.
        config: the model's; where nothing is asked for, the published models have the names of ImageNet.

    Raises `CheckpointError` where a file cannot be read, has no known form, or names more classes than there are.
    """
    count = config.transformer.num_classes
    if wanted == NONE:
        return None
    if wanted == IMAGENET:
        if count != IMAGENET_CLASSES:
            raise CheckpointError(f"ImageNet has {IMAGENET_CLASSES} classes, this model {count}: pass --labels FILE")
        return _read(locate_file(_IMAGENET_FILE), count)
    file = _file(wanted, described, files[0])
    if file is None and is_official(files, config):
        file = locate_file(_IMAGENET_FILE)
    return None if file is None else _read(file, count)


def is_official(files: tuple[NamedFile, NamedFile], config: ModelConfig) -> bool:
    """Whether files and architecture are those of a published model: `var_d16.pth` of depth 16, and its VQ-VAE.

    The training code makes every model 1000-way, whatever it is trained on, under other names of files.
    """
    model, vae = files
    name = f"d{config.transformer.depth}"
    if name not in models.NAMES or dataclasses.replace(config, name=name) != models.official(name):
        return False
    return Path(model.whole_name).stem == f"var_{name}" and Path(vae.whole_name).stem == Path(OFFICIAL_VAE).stem


def _file(wanted: str | Path | None, described: ConfigFile, model: NamedFile) -> NamedFile | None:
    """The file of labels that the user, the config.json or a place beside `model` offers, in this order."""
    if wanted is not None:
        return locate_file(wanted)
    if described.file is None or described.labels is None:
        return model.beside(LABELS_FILE, unreachable_ok=True)
    if found := described.file.beside(described.labels):
        return found
    raise CheckpointError(
        f"{described.file.shown} names the labels {described.labels}, which is not beside it: add it, or pass another "
        "file with --labels"
    )


def _read(file: NamedFile, count: int) -> Labels:
    try:
        text = file.read_text()
    except ValueError as error:
        raise CheckpointError(f"{file.shown} is not UTF-8 text: {_FORMS}") from error
    try:
        found = _parsed(text, is_table=Path(file.file_name).suffix.lower() in (".csv", ".tsv"))
    except (ValueError, csv.Error) as error:
        raise CheckpointError(f"{file.shown}: {error}; {_FORMS}") from error
    last = max(found, default=-1)
    if last == count and 0 not in found:
        raise CheckpointError(f"{file.shown} counts its classes from 1: the first class has the index 0")
    if last >= count:
        raise CheckpointError(
            f"{file.shown} has {last + 1} labels, but the model has {count} classes: correct it, or pass another file "
            "with --labels"
        )
    if not any(found.values()):
        raise CheckpointError(f"{file.shown} holds no labels: {_FORMS}, or pass --labels {NONE}")
    labels = tuple(found.get(index, "") for index in range(count))
    if odd := next((index for index, label in enumerate(labels) if not is_printable(label)), None):
        raise CheckpointError(f"{file.shown}: the label of class {odd} holds a control character: correct it")
    return labels


def _parsed(text: str, *, is_table: bool) -> dict[int, str]:
    """Index -> label. Raises `ValueError` or `csv.Error` where the form is not known."""
    text = text.rstrip()
    if not text.strip():
        return {}
    if text.lstrip()[:1] in ("{", "["):
        return _of_document(_document(text.strip()))
    # Not `splitlines`, which also splits at rarer characters that a label may hold.
    lines = [line.strip() for line in text.split("\n")]
    header = {cell.strip().lower() for cell in re.split(r"[,;\t]", lines[0])}
    if is_table or (len(header) > 1 and header <= _HEADERS | _INDEX_HEADERS):
        return _of_table(lines)
    for form in (_NUMBERED, _WITH_ID):
        matches = {number: form.fullmatch(line) for number, line in enumerate(lines, 1) if line}
        fitting = [match for match in matches.values() if match]
        if 2 * len(fitting) <= len(matches):
            continue
        if odd := next((number for number, match in matches.items() if not match), None):
            raise ValueError(f"line {odd}, {quoted(lines[odd - 1])}, is not like most of its lines")
        keys, names = [match[1] for match in fitting], [match[2] for match in fitting]
        return _indexed(map(int, keys), names) if form is _NUMBERED else _ordered(keys, names)
    for number, line in enumerate(lines, 1):
        if line.startswith(_ODD_STARTS) or line.endswith(_ODD_ENDS):
            raise ValueError(f"line {number}, {quoted(line)}, is no name of a class")
    return dict(enumerate(lines))


def _of_table(lines: list[str]) -> dict[int, str]:
    """Labels of CSV or TSV."""
    first = next(line for line in lines if line)
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=max(",;\t", key=first.count)) if row]
    header = [cell.lower() for cell in rows[0]] if _has_header(rows) else []
    rows = rows[1:] if header else rows
    if len(set(map(len, rows))) > 1:  # commas between alternatives, without quotes
        numbered = all(row[0].isdecimal() for row in rows)
        rows = [[row[0], ", ".join(row[1:])] if numbered else [", ".join(row)] for row in rows]
        header = []
    columns = list(map(list, zip(*rows, strict=True)))
    indexes = [
        column
        for k, column in enumerate(columns)
        if all(map(str.isdecimal, column)) and len(set(column)) == len(column) and _counts(column, header[k : k + 1])
    ]
    ids = [column for column in columns if all(map(_WORDNET.fullmatch, column))]
    texts = [k for k, column in enumerate(columns) if column not in indexes and column not in ids]
    if len(texts) > 1:
        texts = [k for k in texts if len(header) == len(columns) and header[k] in _HEADERS]
    if len(texts) != 1:
        raise ValueError(f"{len(columns)} columns do not say which one holds the labels")
    labels = columns[texts[0]]
    if indexes:
        return _indexed(map(int, indexes[0]), labels)
    return _ordered(ids[0], labels) if ids else dict(enumerate(labels))


def _counts(column: list[str], header: list[str]) -> bool:
    """Whether a column of different numbers is that of the classes: its header says so, or it counts from 0."""
    return not header or header[0] in _INDEX_HEADERS or sorted(map(int, column)) == list(range(len(column)))


def _has_header(rows: list[list[str]]) -> bool:
    """Whether the first row of a table names its columns: by words that we know, or over a column of numbers."""
    header, body = {cell.lower() for cell in rows[0]}, rows[1:]
    if header & (_HEADERS | _INDEX_HEADERS):
        return True
    texts = (k for k, cell in enumerate(rows[0]) if not cell.isdecimal())
    return bool(body) and any(all(row[k : k + 1] and row[k].isdecimal() for row in body) for k in texts)


def _document(text: str) -> Any:
    """JSON, or what Python prints of lists and dicts."""
    try:
        return parse_json(text)
    except ValueError:
        pass
    try:
        return parse_python(text)
    except ValueError as error:
        kind = type(error.__cause__ or error).__name__
        raise ValueError(f"it begins as JSON or Python does, and is neither ({kind})") from error


def _of_document(document: Any) -> dict[int, str]:
    if isinstance(document, dict) and isinstance(document.get("id2label"), dict):  # the config.json of a classifier
        document = document["id2label"]
    if isinstance(document, list):
        return dict(enumerate(map(_name, document)))
    if isinstance(document, Mapping):
        keys, values = list(document), list(document.values())
        if all(str(key).isdecimal() for key in keys):
            return _indexed((int(key) for key in keys), map(_name, values))
        if all(type(value) is int for value in values):  # `class_to_idx` of a folder of images
            return _indexed(values, map(_name, keys))
    raise ValueError("it is neither a list of labels nor a map between indexes and labels")


def _name(value: Any) -> str:
    """The label in an item of a document: a text, or the last of a pair such as ["n01440764", "tench"]."""
    if isinstance(value, list | tuple) and len(value) == 2 and _WORDNET.fullmatch(str(value[0])):
        value = value[1]
    if not isinstance(value, str):
        raise ValueError(f"{quoted(value)} is no label")
    return value.strip()


def _indexed(indexes: Iterable[int], names: Iterable[str]) -> dict[int, str]:
    """Labels by their indexes, each of them once; WordNet's ids and quotes around a label are left out."""
    found: dict[int, str] = {}
    for index, name in zip(indexes, names, strict=True):
        if index in found or index < 0:
            raise ValueError(f"the index {index} is there twice" if index in found else f"the index {index} is below 0")
        with_id = _WITH_ID.fullmatch(name)
        found[index] = re.sub(r"""^(["'])(.*)\1,?$""", r"\2", with_id[2] if with_id else name)
    return found


def _ordered(ids: list[str], names: list[str]) -> dict[int, str]:
    """Labels in the order of their lines, which must be that of WordNet's ids, as folders of classes are numbered."""
    if any(first >= second for first, second in itertools.pairwise(ids)):
        raise ValueError("its WordNet ids are not in ascending order, which is that of the classes: sort the lines")
    return dict(enumerate(names))
