"""What `var-run` was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engines.cli.common import Runtime


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of `var-run`, parsed; None where the user left the choice to the bundle."""

    classes: tuple[str, ...]
    seed: int
    count: int
    cfg: float | None
    top_k: int | None
    top_p: float | None
    temperature: float | None
    smooth: bool
    engine: Path | None
    url: str | None
    form: str | None
    batch: int
    out: str | None
    grid: bool
    preview: bool
    npz: Path | None
    save_tokens: Path | None
    tokens: Path | None
    reconstruct: Path | None
    edit: Path | None
    box: tuple[str, ...]
    mask: Path | None
    boxes: Path | None
    box_class: tuple[str, ...]
    box_score: float | None
    outpaint: bool
    fit: str
    composite: bool
    list_classes: bool
    runtime: Runtime
    as_json: bool
    overwrite: bool
