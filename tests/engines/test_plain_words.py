"""How figures read."""

import pytest

from engines.progress import silent
from engines.words import counted, guidance, mebibytes


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (mebibytes(1 << 19), "0.5 MiB"),
        (mebibytes((1 << 30) - 1), "1024.0 MiB"),
        (mebibytes(3 << 29), "1.50 GiB"),
        (counted(1, "image"), "1 image"),
        (counted(1200, "image"), "1,200 images"),
        (counted(2, "class", "classes"), "2 classes"),
        (guidance(0), "no guidance"),
        (guidance(1.50), "guidance 1.5"),
    ],
)
def test_words(said, text):
    assert said == text


def test_silence():
    assert silent("anything", 0.5) is None
