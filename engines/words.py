"""How figures read in plain text, on a terminal and on a page alike. Imports nothing, so that `--help` may."""


def mebibytes(size: int) -> str:
    """A size in bytes: `12.3 MiB`, `1.25 GiB`."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def counted(count: int, what: str, many: str | None = None) -> str:
    """`1 image`, `4 images`; `many` is the plural where an s does not make it."""
    return f"{count:,} {what if count == 1 else many or what + 's'}"


def guidance(cfg: float) -> str:
    """The strength of guidance, 0 being none: `guidance 1.5`, `no guidance`."""
    return f"guidance {cfg:g}" if cfg else "no guidance"
