"""Pages: a template with its data, as one file that needs nothing but a browser."""

from __future__ import annotations

import re
from datetime import datetime
from functools import cache
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
    """Write a page, whole or not at all; its size in bytes.

    Args:
        file: where; folders that lack are made, a page that is there is replaced.
        template: its name, without the suffix.
        data: what it shows. All text is escaped.

    Raises:
        UsageError: it cannot be written, or would be larger than `MAX_BYTES`.

    """
    page = (
        _environment()
        .get_template(f"{template}.html")
        .render(light=LIGHT, dark=DARK, version=version(), made=datetime.now().astimezone(), **data)
    )
    content = _SURROGATES.sub("\N{REPLACEMENT CHARACTER}", page).encode()
    if len(content) > MAX_BYTES:
        raise UsageError(f"{file} would have {len(content):,} bytes, more than {MAX_BYTES:,}: it was not written")
    with atomic_write(file) as opened:
        opened.write(content)
    return len(content)


def _breakable(text: str) -> Markup:
    """A path, name or hash that may go on in the next line at some places."""
    return Markup(_PLACES.sub(r"\g<0><wbr>", str(escape(text))))


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("var_export.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = _breakable
    return environment
