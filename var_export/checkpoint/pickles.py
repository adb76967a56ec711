"""How large what a pickle describes is, before anything of it is made: a hundred bytes can ask for years of work.

A tuple that holds another one twice, forty deep, is small on disk and in memory, but whoever walks through it - hashing
it as the key of a dict, say - meets 2^40 entries. `torch.load` with `weights_only` takes such a file and does not end.
"""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path
from typing import IO

MOST_ENTRIES = 10_000_000
"""A checkpoint with the state of its optimizer has some hundred thousand."""
MOST_INSTRUCTIONS = 1_000_000
"""Of one pickle: a compressed one may hold more of them than its file has bytes."""
_STREAMS = 5  # pickles in the older plain form: a magic number, version, system, what was saved, names of storages
_RECORD = "/data.pkl"
_TAKE_IN = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")  # what lies deepest takes in the others
_Node = list[int]  # the entries of one object, which grows where it is a list or a dict


def unfolds_too_far(path: Path, *, is_zip: bool) -> bool:
    """Whether a file of `torch.save` holds more than `MOST_ENTRIES`, counted as often as they are reached.

    So does one with more than `MOST_INSTRUCTIONS`.

    False where its pickles cannot be followed: loading says what is wrong with them.
    """
    try:
        if not is_zip:
            with path.open("rb") as stream:
                return any(_entries(stream) > MOST_ENTRIES for _ in range(_STREAMS))
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith(_RECORD):
                    with archive.open(name) as record:
                        if _entries(record) > MOST_ENTRIES:
                            return True
    except Exception:  # whatever a damaged file leads to
        return False
    return False


def _entries(stream: IO[bytes]) -> int:
    """The entries of the next pickle of a stream, or some of those that are more than `MOST_ENTRIES`; else 0."""
    stack: list[_Node | None] = []  # None is a mark
    memo: dict[int, _Node] = {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if count >= MOST_INSTRUCTIONS:
            return MOST_ENTRIES + 1
        name = opcode.name
        if name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if argument is None else int(argument)] = stack[-1] or [1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[int(argument or 0)])
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "MARK":
            stack.append(None)
        else:
            taken = _taken(stack, opcode)
            size = min(1 + sum(node[0] for node in taken), MOST_ENTRIES + 1)
            if name in _TAKE_IN:
                taken[0][0] = size - 1
                stack.append(taken[0])
            elif opcode.stack_after:
                stack.append([size])
            if size > MOST_ENTRIES:
                return size
    return 0


def _taken(stack: list[_Node | None], opcode: pickletools.OpcodeInfo) -> list[_Node]:
    """What an instruction takes from the stack, the deepest first."""
    before = list(opcode.stack_before)
    taken: list[_Node] = []
    if pickletools.markobject in before:
        while (node := stack.pop()) is not None:
            taken.append(node)
        before = before[: before.index(pickletools.markobject)]
    taken += [node for node in (stack.pop() for _ in before) if node is not None]
    return taken[::-1]
