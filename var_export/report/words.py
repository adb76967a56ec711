"""Figures in words, as a page says them."""

from __future__ import annotations

import math

from engines.words import mebibytes

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
NOTHING = "–"
_GAP = "\N{NO-BREAK SPACE}"  # a number and its unit stay on one line


def number(value: float, digits: int = 3) -> str:
    """With some significant digits, no more: `0.0124`, `1,240`, `3.56 × 10⁻⁸`."""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite" if value > 0 else "-infinite"
    if value == 0:
        return "0"
    value = float(f"{value:.{digits - 1}e}")
    exponent = int(f"{value:e}".partition("e")[2])
    if -4 < exponent < 6:
        return f"{value:,.{max(digits - 1 - exponent, 0)}f}"
    return f"{float(f'{value:e}'.partition('e')[0]):.{digits - 1}f}{_GAP}×{_GAP}{power(exponent)}"


def power(exponent: int) -> str:
    """A power of ten: `10⁻⁶`."""
    return "10" + str(exponent).translate(_SUPERSCRIPTS)


def rounded(value: float) -> str:
    """A round number: `0.02`, `10⁻⁶`."""
    return f"{value:g}" if value == 0 or 1e-4 <= abs(value) < 1e5 else scientific(value)


def scientific(value: float) -> str:
    """A round number that is not 0: `10⁻²`, `5 × 10⁻⁶`."""
    mantissa, _, exponent = f"{value:e}".partition("e")
    times = "" if float(mantissa) == 1 else f"{float(mantissa):g}{_GAP}×{_GAP}"
    return f"{times}{power(int(exponent))}"


def percent(share: float) -> str:
    """A share in percent; never rounded up to all of them."""
    if math.isnan(share):
        return NOTHING
    text = f"{100 * share:.2f}"
    return f"{'99.99' if text == '100.00' and share < 1 else text}{_GAP}%"


def percent_of(share: float) -> str:
    """A round share: `99.9 %`."""
    return f"{100 * share:g}{_GAP}%"


def similarity(ssim: float) -> str:
    """An SSIM with four digits; never rounded up to sameness."""
    text = f"{ssim:.4f}"
    return "0.9999" if text == "1.0000" and ssim < 1 else text


def decibels(value: float) -> str:
    """A PSNR with its unit, or what equal images are."""
    if math.isinf(value):
        return "identical pixels"
    return NOTHING if math.isnan(value) else f"{value:.1f}{_GAP}dB"


def milliseconds(seconds: float) -> str:
    """Seconds as milliseconds without the unit, for columns."""
    ms = 1e3 * seconds
    return f"{ms:,.0f}" if abs(ms) >= 99.95 else f"{ms:.1f}" if abs(ms) >= 9.995 else f"{ms:.2f}"


def duration(seconds: float) -> str:
    """Seconds with their unit: `1.25 s`, `13.1 ms`."""
    return f"{seconds:.2f}{_GAP}s" if seconds >= 1 else f"{milliseconds(seconds)}{_GAP}ms"


def size(count: int) -> str:
    """A number of bytes: `5.9 KiB`, `1.0 MiB`."""
    return (mebibytes(count) if count >= 2**20 else f"{count / 2**10:.1f} KiB").replace(" ", _GAP)


def listed(words: list[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
