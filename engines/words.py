"""How figures and foreign text read on a terminal and in messages. Imports next to nothing, so that `--help` may."""

import re
import reprlib

LINE_LENGTH = 2000
# Control characters, line separators, characters that turn the direction of what follows, and lone surrogates, which
# stand for bytes of a file name that are no UTF-8 and cannot be encoded.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60


def printable(text: str) -> str:
    """`text` with Python's escapes for what a terminal would obey or cannot show."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def is_printable(text: str) -> bool:
    """Whether `printable` leaves it as it is."""
    return _UNPRINTABLE.search(text) is None


def one_line(message: object) -> str:
    """A message on one printable line; of one beyond `LINE_LENGTH` characters, its beginning and its end."""
    line = printable(" ".join(str(message).split()))
    if len(line) <= LINE_LENGTH:
        return line
    return f"{line[: LINE_LENGTH * 2 // 3]} ... {line[-LINE_LENGTH // 3 :]}"


def quoted(value: object) -> str:
    """A foreign value for a message, as Python writes it, and short: it may be a number of a million digits."""
    try:
        return _SHORT.repr(value)
    except (ValueError, RecursionError):
        return f"a {type(value).__name__} too large to show"


def mebibytes(size: int) -> str:
    """A size in bytes: `12.3 MiB`, `1.25 GiB`."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def duration(seconds: float) -> str:
    """A duration in two or three digits: `0.12 s`, `45 s`, `3 min`, `2.5 h`."""
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 9.5 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def counted(count: int, what: str, many: str | None = None) -> str:
    """`1 image`, `4 images`; `many` is the plural where an s does not make it."""
    return f"{count:,} {what if count == 1 else many or what + 's'}"


def guidance(cfg: float) -> str:
    """The strength of guidance, 0 being none: `guidance 1.5`, `no guidance`."""
    return f"guidance {cfg:g}" if cfg else "no guidance"
