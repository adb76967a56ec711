"""Pages: a template with its data, as one file that needs nothing but a browser."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from engines.cli.common import version
from engines.errors import UsageError
from engines.storage import atomic_write
from var_export.report.palette import DARK, LIGHT

MAX_BYTES = 3_000_000
_SURROGATES = re.compile("[\ud800-\udfff]")  # of names that are no text
_PLACES = re.compile(r"[/_](?=\w)|(?<!\d)\.(?=\w)|\.(?=[^\W\d])|[0-9a-f]{16}(?=[0-9a-f]{8})")


def write_page(file: Path, template: str, **data: Any) -> int:
    """Write a page, whole or not at all, from a template by its name without the suffix; its size in bytes.

    Folders that lack are made, a page that is there is replaced, and all text of `data` is escaped. Raises `UsageError`
    where it cannot be written, or would be larger than `MAX_BYTES`.
    """
    made = datetime.now().astimezone()
    found = _ENVIRONMENT.get_template(f"{template}.html")
    page = found.render(light=LIGHT, dark=DARK, version=version(), made=made, **data)
    content = _SURROGATES.sub("\N{REPLACEMENT CHARACTER}", page).encode()
    if len(content) > MAX_BYTES:
        raise UsageError(f"{file} would have {len(content):,} bytes, more than {MAX_BYTES:,}: it was not written")
    with atomic_write(file) as opened:
        opened.write(content)
    return len(content)


def _breakable(text: str) -> Markup:
    """A path, name or hash that may go on in the next line at some places."""
    return Markup(_PLACES.sub(r"\g<0><wbr>", str(escape(text))))


_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("var_export.report"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters["breakable"] = _breakable
