"""One version of a vendor's module: its classes, names and signatures."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

TITLES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX", "cuda": "cuda-bindings"}
PAIRS = {"(": ")", "[": "]", "{": "}", "<": ">"}


@dataclass(frozen=True)
class Parameter:
    name: str
    type: str
    required: bool
    by_name: bool
    by_position: bool


@dataclass(frozen=True)
class Signature:
    text: str
    parameters: tuple[Parameter, ...]
    returns: str

    def without_first(self) -> Signature:
        return Signature(self.text, self.parameters[1:], self.returns)

    def assign(self, positional: int, keywords: list[str]) -> dict[int | str, Parameter] | None:
        """Which parameter takes each argument; None where the call does not fit."""
        places = [p for p in self.parameters if p.by_position]
        names = {p.name: p for p in self.parameters if p.by_name}
        if positional > len(places) or not set(keywords) <= set(names):
            return None
        taken: dict[int | str, Parameter] = dict(enumerate(places[:positional]))
        if any(names[keyword] in taken.values() for keyword in keywords):
            return None
        taken |= {keyword: names[keyword] for keyword in keywords}
        if any(p.required and p not in taken.values() for p in self.parameters):
            return None
        return taken


class Api:
    """`owner` is a class by its path in the module, as ILogger.Severity, or "" for the module itself."""

    def __init__(self, product, dumped):
        self.product, self.version = product, dumped["version"]
        self.title = f"{TITLES[product]} {self.version}"
        self.names, self.classes = dumped["names"], dumped["classes"]

    def entry(self, owner, name):
        """What `owner` has by that name, or None."""
        return (self.classes[owner]["names"] if owner else self.names).get(name)

    def members(self, owner):
        """Names and numbers of an enum; None where it is no enum."""
        return self.classes[owner]["enum"]

    def is_a(self, owner, base):
        return base in self.classes[owner]["bases"]

    def signatures(self, owner, name):
        """All overloads, without the `self` of a method that is looked up on an object."""
        return [parsed for parsed in map(parse, self.entry(owner, name)["signatures"]) if parsed is not None]


@cache
def parse(text):
    """`name(self: a.B, flags: int = 0) -> a.C` as a `Signature`; None where it is none."""
    opening = text.find("(")
    closing = _closing(text, opening)
    if opening < 0 or closing < 0:
        return None
    parameters, by_name, by_position = [], True, True
    for part in _split(text[opening + 1 : closing], ","):
        if part == "/":  # all before it have no name
            parameters = [Parameter(p.name, p.type, p.required, False, True) for p in parameters]
        elif part.startswith("*"):
            if len(part) > 1:
                return None  # it says nothing of what it takes
            by_position = False
        else:
            declared, *default = _split(part, "=")
            name, *kind = _split(declared, ":")
            *c_type, name = name.split()  # Cython writes C types in front
            unnamed = re.fullmatch(r"arg\d+", name) is not None
            kind = kind[0].strip("'\"") if kind else " ".join(c_type)
            parameters.append(Parameter(name, kind, not default, by_name and not unnamed, by_position))
    return Signature(text, tuple(parameters), text[closing + 1 :].partition("->")[2].strip())


def _closing(text, opening):
    """Where the bracket at `opening` closes, or -1."""
    waiting = []
    for index in range(max(opening, 0), len(text)):
        if text[index] in PAIRS:
            waiting.append(PAIRS[text[index]])
        elif waiting and text[index] == waiting[-1]:
            waiting.pop()
            if not waiting:
                return index
    return -1


def _split(text, separator):
    """Split outside of brackets."""
    parts, index, start = [], 0, 0
    while index < len(text):
        if text[index] in PAIRS:
            end = _closing(text, index)
            index = end if end > 0 else index
        elif text[index] == separator:
            parts.append(text[start:index])
            start = index + 1
        index += 1
    return [part.strip() for part in (*parts, text[start:]) if part.strip()]
