"""What a user may write for a class, and what a class is called in file names.

A specification is an index (`88`), a label (`parrot`, in any case, with spaces, underscores or
hyphens), a range (`0-9`), `all`, `none` (the unconditional class), or several of these with commas.
`all` and `none` are reserved words: a class of that name is reached by its index.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property

from engines.errors import UsageError
from engines.words import quoted

ALL = "all"
NONE = "none"

_SEPARATORS = re.compile(r"[\s_\-\u2010-\u2015]+")
_INDEX = re.compile(r"[+-]?[0-9]{1,18}")
_RANGE = re.compile(r"([0-9]{1,18})\s*-\s*([0-9]{1,18})")
_MAX_SLUG = 48  # four bytes a character at most, and a file name holds 255
_MAX_CLASSES = 5_000_000  # as many as a job has images
_MAX_WORD = 100  # characters of a name for which similar ones are looked for
_SUGGESTIONS = 8
_LEAST_PART = 3  # characters that are looked for inside of words


def normalise(label: str) -> str:
    """`label` in the form that is compared: one case, one kind of space between words."""
    return _SEPARATORS.sub(" ", unicodedata.normalize("NFKC", label).casefold()).strip()


class ClassNames:
    """The classes of one model: index to label and back.

    Args:
        num_classes: classes of the model, without the unconditional one, whose index is `num_classes`.
        labels: one label per class, or None. A label may hold synonyms with commas between them, as
            ImageNet's do: each of them names the class.
    """

    def __init__(self, num_classes: int, labels: Sequence[str] | None = None) -> None:
        self.num_classes = num_classes
        self.labels = None if labels is None else tuple(labels[:num_classes])

    @property
    def unconditional(self) -> int:
        """The index of the class `none`."""
        return self.num_classes

    def label(self, index: int) -> str:
        """What class `index` is called; the index itself where the model has no labels."""
        if index == self.unconditional:
            return NONE
        if self.labels is None or index >= len(self.labels):
            return str(index)
        return self.labels[index] or str(index)

    def short_label(self, index: int) -> str:
        """What class `index` is called where there is little room: the first of its alternatives."""
        return next(filter(None, map(str.strip, self.label(index).split(","))), str(index))

    def slug(self, index: int) -> str:
        """The name of class `index` in file names: no two classes share one."""
        return NONE if index == self.unconditional else self._slugs[index]

    def holding(self, text: str) -> list[int]:
        """Indexes of the classes whose labels hold `text`, in any case; of all, where it is empty."""
        wanted = text.strip().casefold()
        return [index for index in range(self.num_classes) if wanted in self.label(index).casefold()]

    def parse(self, specifications: str | Iterable[str]) -> tuple[int, ...]:
        """Indexes that `specifications` name, in the order written; a class named twice comes twice.

        Raises:
            UsageError: an unknown or ambiguous label, an index out of range, an empty specification.
        """
        if isinstance(specifications, str):
            specifications = (specifications,)
        return tuple(index for specification in specifications for index in self._parse_one(specification))

    def index(self, specification: int | str) -> int:
        """The one class that `specification` names: an index, a label or `none`.

        Raises:
            UsageError: as `parse`, and for a specification of several classes.
        """
        if not isinstance(specification, str):
            number = int(specification)
            return number if number == self.unconditional else self._in_range(number)
        found = self._parse_one(specification)
        if len(found) != 1:
            raise UsageError(f"{quoted(specification)} names {len(found)} classes where one is needed")
        return found[0]

    def _parse_one(self, specification: str) -> list[int]:
        whole = self._parse_part(specification)
        if whole is not None:
            return whole
        found: list[int] = []
        for part in specification.split(","):  # after the whole: a label may hold commas itself
            indexes = self._parse_part(part)
            if indexes is None:
                raise self._unknown(part)
            found += indexes
            if len(found) > _MAX_CLASSES:
                raise UsageError(f"{quoted(specification)} names more than {_MAX_CLASSES} classes")
        return found

    def _parse_part(self, part: str) -> list[int] | None:
        """Indexes of one specification without commas, or None where it names nothing."""
        text = part.strip()
        if not text:
            raise UsageError("a class is empty: give an index, a label, a range such as 0-9, all or none")
        if _INDEX.fullmatch(text):
            return [self._in_range(int(text))]
        name = normalise(text)
        if name == ALL:
            return list(range(self.num_classes))
        if name == NONE:
            return [self.unconditional]
        # Labels come before ranges: a label may look like one.
        for names in (self._by_label, self._by_synonym):
            if name in names:
                return [self._only(text, names[name])]
        bounds = _RANGE.fullmatch(text)
        if bounds is None:
            return None
        first, last = self._in_range(int(bounds[1])), self._in_range(int(bounds[2]))
        if first > last:
            raise UsageError(f"the range {text} runs backwards: write {last}-{first}")
        return list(range(first, last + 1))

    def _in_range(self, index: int) -> int:
        if not 0 <= index < self.num_classes:
            hint = " (the unconditional class is called none)" if index == self.unconditional else ""
            raise UsageError(
                f"class {quoted(index)} is out of range: this model has the classes 0 to {self.num_classes - 1}{hint}"
            )
        return index

    def _only(self, text: str, indexes: Sequence[int]) -> int:
        if len(indexes) > 1:
            listed = " and ".join([", ".join(map(str, indexes[:-1])), str(indexes[-1])])
            raise UsageError(f"the label {quoted(text)} names the classes {listed}: give the index of the one you mean")
        return indexes[0]

    def _unknown(self, part: str) -> UsageError:
        text = part.strip()
        if self.labels is None:
            return UsageError(
                f"{quoted(text)} is no index, and this model has no labels: give 0 to {self.num_classes - 1} or none"
            )
        close = self._close_to(normalise(text)) if len(text) <= _MAX_WORD else []
        more = f" and {len(close) - _SUGGESTIONS} more" if len(close) > _SUGGESTIONS else ""
        hint = f"did you mean {', '.join(close[:_SUGGESTIONS])}{more}? " if close else ""
        return UsageError(f"no class is called {quoted(text)}: {hint}`var-run classes` shows all of them")

    def _close_to(self, name: str) -> list[str]:
        """Labels as they are written that hold `name`, as words before parts of words; else similar ones."""
        import difflib

        ranked: list[tuple[int, int, str]] = []
        for known, (index, written) in self._alternatives.items():
            if f" {name} " in f" {known} ":  # "shark" of "great white shark"
                ranked.append((0, index, written))
            elif len(name) >= _LEAST_PART and name in known:
                at_edge = f" {name}" in f" {known}" or f"{name} " in f"{known} "  # "car" of "streetcar", not of "scarf"
                ranked.append((1 if at_edge else 2, index, written))
        if not ranked:
            similar = difflib.get_close_matches(name, self._alternatives, n=_SUGGESTIONS)
            ranked = [(0, *self._alternatives[known]) for known in similar]
        shown: dict[int, str] = {}  # of each class the first of its alternatives that fits best
        for _, index, written in sorted(ranked, key=lambda found: found[0]):
            shown.setdefault(index, written)
        return list(shown.values())

    @cached_property
    def _by_label(self) -> dict[str, list[int]]:
        names: dict[str, list[int]] = {}
        for index, label in enumerate(self.labels or ()):
            if normalise(label):
                names.setdefault(normalise(label), []).append(index)
        return names

    @cached_property
    def _alternatives(self) -> dict[str, tuple[int, str]]:
        """What a class may be called, normalised -> the index of the first class of that name, and the written form."""
        names: dict[str, tuple[int, str]] = {}
        for index, label in enumerate(self.labels or ()):
            for written in label.split(","):
                names.setdefault(normalise(written), (index, written.strip()))
        names.pop("", None)
        return names

    @cached_property
    def _by_synonym(self) -> dict[str, list[int]]:
        names: dict[str, list[int]] = {}
        for index, label in enumerate(self.labels or ()):
            for name in {normalise(synonym) for synonym in label.split(",")} - {""}:
                names.setdefault(name, []).append(index)
        return names

    @cached_property
    def _slugs(self) -> tuple[str, ...]:
        if self.labels is None:
            return tuple(map(str, range(self.num_classes)))
        bases = [slugify(self.label(index)) or str(index) for index in range(self.num_classes)]
        count = Counter([*bases, NONE])
        taken = set(count)
        slugs = []
        for index, slug in enumerate(bases):
            if count[slug] > 1:  # shared with another class: its index tells them apart
                while slug in taken:
                    slug = f"{slug}-{index}"
                taken.add(slug)
            slugs.append(slug)
        return tuple(slugs)


def slugify(label: str) -> str:
    """The first name of a label as a part of a file name: lower case, hyphens between words; it may be empty."""
    first = unicodedata.normalize("NFKC", label).casefold().split(",")[0]
    return re.sub(r"\W+", "-", first).strip("-_")[:_MAX_SLUG].strip("-_")
