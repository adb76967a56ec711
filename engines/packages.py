"""How this package is installed with more of its extras, from wherever it came: a clone, an archive, or an index."""

from __future__ import annotations

import functools
from pathlib import Path

from engines.storage import ROOT

NAME = "var-export"


def install_command(*extras: str) -> str:
    """A command of pip's that adds these extras, and works here: `pip install "/path/to/clone[cpu]"`."""
    place, editable, archive = _origin()
    wanted = f"[{','.join(extras)}]"
    if archive:
        return f'pip install "{NAME}{wanted} @ {place}"'
    return f'pip install {"-e " if editable else ""}"{place}{wanted}"'


@functools.cache
def _origin() -> tuple[str, bool, bool]:
    """What pip was given to install this: its name, a folder or an address; whether it is editable, or an archive."""
    from importlib import metadata  # not at the top, as what follows: `--help` must not wait for them
    from urllib.parse import unquote, urlsplit

    from engines.foreign import parse_json

    clone = str(ROOT) if (ROOT / "pyproject.toml").is_file() else None
    try:  # a checkout may hold metadata of its own, which says nothing of how it was installed
        texts = (each.read_text("direct_url.json") for each in metadata.distributions(name=NAME))
        record = parse_json(next(filter(None, texts), "{}"))
        url, folder = str(record.get("url", "")), record.get("dir_info")
    except (ValueError, AttributeError):
        return clone or NAME, False, False
    local = Path(unquote(urlsplit(url).path)) if urlsplit(url).scheme == "file" else None
    if isinstance(folder, dict) and local is not None and local.is_dir():
        return str(local), bool(folder.get("editable")), False
    if url and folder is None and (local is None or local.is_file()):
        return url, False, True
    return clone or NAME, False, False
