"""Charts by matplotlib, as SVG for a page or as a file."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from engines.storage import atomic_write
from var_export.report.inline import inline
from var_export.report.palette import LIGHT, SERIES
from var_export.report.words import scientific

WIDTH, HEIGHT = 372, 250  # of a chart that fills a telephone: its units are then about CSS pixels
UNITS_PER_INCH = 72
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", ":", "-.")
STYLE: dict[Any, Any] = {
    "font.size": 10.5,
    "font.family": "sans-serif",  # its widths are those of DejaVu Sans, wider than what a browser will take
    "svg.fonttype": "none",
    "text.color": LIGHT["text"],
    "axes.labelcolor": LIGHT["muted"],
    "axes.edgecolor": LIGHT["line"],
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": LIGHT["grid"],
    "grid.linewidth": 0.8,
    "xtick.color": LIGHT["line"],
    "xtick.labelcolor": LIGHT["muted"],
    "ytick.color": LIGHT["line"],
    "ytick.labelcolor": LIGHT["muted"],
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
}
_NO_METADATA = {"Creator": None, "Date": None, "Format": None, "Type": None}

Plot = Callable[[Figure, Any], None]
"""Draws on a figure and its axes."""


def drawn(name: str, alternative: str, plot: Plot, *, width: float = WIDTH, height: float = HEIGHT) -> Markup:
    """What `plot` draws, as an element of a page; `name` is one of its kind there, `alternative` says what it shows."""
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=(width / UNITS_PER_INCH, height / UNITS_PER_INCH), layout="constrained")
        plot(figure, figure.subplots())
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata=_NO_METADATA)
    return inline(file.getvalue(), name, alternative)


def save(file: Path, make: Callable[[], Figure]) -> None:
    """Write the figure that `make` gives, as the suffix says. Raises `UsageError` where it cannot be written."""
    with matplotlib.rc_context(STYLE | {"font.size": 8}), atomic_write(file) as opened:
        make().savefig(opened, format=file.suffix[1:].lower(), dpi=130, facecolor=LIGHT["page"])


def curves(
    categories: Sequence[str],
    lines: Mapping[str, Sequence[float]],
    *,
    x: str,
    y: str,
    log: bool = False,
    from_zero: bool = False,
    limit: tuple[str, float] | None = None,
) -> Plot:
    """Lines with marks, by label, with a value per category; on a logarithmic scale or from 0 up if asked.

    `limit`: label and value of a line that they are held against.
    """

    def plot(figure: Figure, axes: Any) -> None:
        for number, (label, values) in enumerate(lines.items()):
            axes.plot(
                range(len(categories)),
                values,
                color=SERIES[number % len(SERIES)],
                linestyle=LINES[number % len(LINES)],
                marker=MARKERS[number % len(MARKERS)],
                label=label,
                clip_on=False,
                zorder=3,
            )
        axes.set_xticks(range(len(categories)), categories)
        axes.grid(axis="x", visible=False)
        axes.margins(x=0.04)
        axes.set_xlabel(x)
        axes.set_title(y, color=LIGHT["muted"], fontsize=10)
        if limit is not None:
            axes.axhline(limit[1], color=LIGHT["bad"], linestyle=(0, (5, 3)), linewidth=1.4, label=limit[0])
        if log:
            log_axis(axes, axes.yaxis)
        if from_zero:
            axes.set_ylim(bottom=0)
        entries = len(lines) + (limit is not None)
        if entries > 1:
            figure.legend(loc="outside lower center", ncols=1 if entries > 3 else entries, columnspacing=1.2)

    return plot


def near_the_top(axes: Any, lowest: float) -> None:
    """Shares in percent, from a bit below the lowest one to 100, and no finer than tenths."""
    span = max(100 - lowest, 1.0)
    axes.set_ylim(max(100 - 1.15 * span, -2), 100 + 0.04 * span)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g} %"))


def bars(names: Sequence[str], values: Sequence[float], labels: Sequence[str], *, x: str, ends: Any = None) -> Plot:
    """A bar to the right for each name, the first on top, with its label; `ends`: (2, n) whiskers below and above."""

    def plot(figure: Figure, axes: Any) -> None:
        places = range(len(names))
        axes.barh(places, values, color=SERIES[0], height=0.62)
        far = list(values)
        if ends is not None:
            axes.errorbar(values, places, xerr=ends, fmt="none", ecolor=LIGHT["text"], elinewidth=1.2, capsize=3)
            far = [value + above for value, above in zip(values, ends[1], strict=True)]
        for place, end, label in zip(places, far, labels, strict=True):
            axes.annotate(label, (end, place), (5, 0), textcoords="offset points", va="center", color=LIGHT["text"])
        axes.set_yticks(places, names)
        axes.tick_params(axis="y", length=0, labelcolor=LIGHT["text"])
        axes.spines["left"].set_visible(False)
        axes.grid(axis="y", visible=False)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlim(0, max([*far, 1e-9]) * 1.2)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(x)

    return plot


def bars_height(count: int) -> float:
    """Height of a drawing with this many bars, in its own units."""
    return 62 + 21 * count


def log_axis(axes: Any, axis: Any) -> None:
    """Powers of ten along an axis on which all is drawn; between them too, where there are hardly any."""
    axes.set(**{f"{axis.axis_name}scale": "log"})
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(10, subs=(1, 2, 5) if high < 50 * low else (1,), numticks=6))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: scientific(float(f"{value:.3g}"))))
