"""What an expression of our code can be."""

from __future__ import annotations

from dataclasses import dataclass

from tests.bindings.source import Scope


@dataclass(frozen=True)
class Vendor:
    """The vendor's module, or a class, object or function of it."""

    kind: str
    name: str
    owner: str = ""
    bound: bool = False


@dataclass(frozen=True)
class Ours:
    """A module, class, object or function of this repository."""

    kind: str
    scope: Scope
    bound: bool = False


@dataclass(frozen=True)
class Box:
    """A list, a dictionary or the like; `keys` of a dictionary."""

    elements: frozenset
    keys: frozenset | None = None


@dataclass(frozen=True)
class Row:
    """A tuple, place by place."""

    items: tuple[frozenset, ...]


@dataclass(frozen=True)
class Maker:
    """A callable of which only the result is known."""

    result: frozenset


UNKNOWN, FOREIGN = "unknown", "foreign"  # FOREIGN: of the other vendor module, which is not being checked
PLAIN = frozenset()
_QUIET = {"append", "appendleft", "add", "update", "discard", "remove", "extend", "clear", "index", "count", "sort"}
_QUIET |= {"insert", "join", "issubset", "reverse"}


def box_attribute(box, name):
    """A method of a list, set or dictionary."""
    if name == "items":
        return frozenset({Maker(frozenset({Box(frozenset({Row((box.keys or PLAIN, box.elements))}))}))})
    if name == "keys":
        return frozenset({Maker(frozenset({Box(box.keys or PLAIN)}))})
    if name in ("values", "copy", "union", "difference", "intersection"):
        keep = box if name == "copy" else Box(box.elements)
        return frozenset({Maker(frozenset({keep}))})
    if name in ("get", "pop", "popleft", "popitem", "setdefault"):
        return frozenset({Maker(box.elements)})
    return frozenset({Maker(PLAIN if name in _QUIET else frozenset({UNKNOWN}))})


def elements(items):
    """What one gets by iterating."""
    result = PLAIN
    for item in items:
        if isinstance(item, Box):
            result |= item.elements if item.keys is None else item.keys
        elif isinstance(item, Row):
            result |= union(item.items)
        else:
            result |= {FOREIGN if item == FOREIGN else UNKNOWN}
    return result


def unpacked(items, place):
    """What a target at that place of a tuple gets; -1 - n: a starred one, from place n on."""
    result = PLAIN
    for item in items:
        if isinstance(item, Row):
            if place < 0:
                result |= {Box(union(item.items[-1 - place :]))}
            else:
                result |= item.items[place] if place < len(item.items) else {UNKNOWN}
        elif isinstance(item, Box):
            result |= {Box(item.elements)} if place < 0 else item.elements
        else:
            result |= {FOREIGN if item == FOREIGN else UNKNOWN}
    return result


def has_vendor(items):
    """Whether something of the vendor's may be among them, or in a container among them."""
    return any(
        item == UNKNOWN
        or isinstance(item, Vendor)
        or (isinstance(item, Box) and has_vendor(item.elements))
        or (isinstance(item, Row) and any(map(has_vendor, item.items)))
        for item in items
    )


def union(parts):
    return frozenset().union(*parts)


def every(parts):
    """The union of sets, or None where one of them is None or there are none."""
    found = list(parts)
    return set().union(*found) if found and all(part is not None for part in found) else None
