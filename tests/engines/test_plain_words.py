"""How figures read."""

import pytest

from engines.errors import UsageError
from engines.progress import silent
from engines.words import LINE_LENGTH, counted, guidance, is_printable, mebibytes, one_line, printable, quoted


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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain \N{GRINNING FACE} caf\xe9", "plain \N{GRINNING FACE} caf\xe9"),
        ("\N{MAN}\N{ZERO WIDTH JOINER}\N{WOMAN}", "\N{MAN}\N{ZERO WIDTH JOINER}\N{WOMAN}"),
        ("a\x1b[2J\x00\r\n\t\x7f\x9b", r"a\x1b[2J\x00\r\n\t\x7f\x9b"),
        ("\u202ea\u2066b\u2028", r"\u202ea\u2066b\u2028"),
        ("\ud800\udcff", r"\ud800\udcff"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(text, shown):
    assert printable(text) == shown
    assert is_printable(text) == (text == shown)
    assert is_printable(shown)


def test_a_message_is_one_line_whatever_is_in_it():
    assert one_line("  a\n  b\tc ") == "a b c"
    message = str(UsageError("begins" + "x" * 10**6 + "\x1b\n" + "y" * 10**6 + "ends"))
    assert len(message) < LINE_LENGTH + 10
    assert message.startswith("beginsxxx")
    assert message.endswith("yyyends")
    assert str(UsageError("a\ud800")) == r"a\ud800"


def test_foreign_values_are_short():
    deep = []
    for _ in range(10**5):
        deep = [deep]
    for value in ("x" * 10**6, 10**5000, list(range(10**6)), {"k" * 10**6: 1}, deep, b"\xff" * 10**6, object()):
        assert len(quoted(value)) < 300
    assert quoted("parrot") == "'parrot'"
    while deep:  # or the interpreter frees it in as many nested calls
        deep = deep.pop()
