"""A small picture and, beside it, the same four times as large.

python enlarge.py var-parrot-0.png      # writes var-parrot-0-x4.png beside it, unless that is there, and says where
"""

import sys
from pathlib import Path

from PIL import Image

TIMES = 4


def beside(small):
    """Both on one white canvas, a margin of a quarter of the small one around each."""
    margin = small.width // TIMES
    large = small.resize((small.width * TIMES, small.height * TIMES), Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (small.width + large.width + 3 * margin, large.height + 2 * margin), "white")
    canvas.paste(small, (margin, margin))
    canvas.paste(large, (small.width + 2 * margin, margin))
    return canvas


if __name__ == "__main__":
    picture = Path(sys.argv[1]).absolute()
    target = picture.with_name(f"{picture.stem}-x{TIMES}.png")
    if not target.exists():
        with Image.open(picture) as opened:
            beside(opened.convert("RGB")).save(target)
    print(target)
