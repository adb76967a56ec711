"""`var-export list`: the bundles that are here."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from engines.cli.common import json_option, json_out, print_table, show
from engines.words import mebibytes


@click.command("list")
@json_option
def list_bundles(as_json: bool) -> None:
    """Show the bundles under bundles/, the newest first, which commands take by default, and the embedded demo."""
    from engines.bundle.bundle import DEMO_BUNDLE, standing_bundles

    rows = [_row(bundle) for bundle in standing_bundles()]
    if (DEMO_BUNDLE / "manifest.json").exists():
        rows.append(_row(DEMO_BUNDLE) | {"bundle": "the embedded demo"})
    if as_json:
        json_out({"bundles": rows})
        return
    headers = ("", "bundle", "precision", "form", "pixels", "classes", "plans", "size", "built")
    cells = [
        (
            "*" if not number else "",
            row["bundle"],
            *(row.get(name, "-") for name in ("precision", "form", "pixels", "classes", "plans")),
            mebibytes(row["bytes"]) if "bytes" in row else row["problem"],
            row["built"],
        )
        for number, row in enumerate(rows)
    ]
    print_table(cells, headers)
    show("(* is taken where none is named)")


def _row(bundle: Path) -> dict[str, Any]:
    """What the manifest of a bundle says, or what is wrong with it."""
    from engines.bundle.bundle import place_of
    from engines.bundle.manifest import MANIFEST, Manifest
    from engines.errors import UsageError

    file = place_of(bundle) / MANIFEST
    row: dict[str, Any] = {
        "bundle": str(bundle),
        "path": str(file.parent),
        "built": time.strftime("%Y-%m-%d %H:%M", time.localtime(file.stat().st_mtime)),
    }
    try:
        manifest = Manifest.read(file.parent)
    except UsageError as error:
        return row | {"problem": str(error)}
    return row | {
        "precision": manifest.precision,
        "form": manifest.form,
        "target": manifest.target,
        "pixels": manifest.config.image_size,
        "classes": manifest.config.transformer.num_classes,
        "plans": ", ".join(plans.name for plans in manifest.plans) or "-",
        "bytes": manifest.total_bytes,
    }
