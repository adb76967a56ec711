import string

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from engines.bundle.labels import ClassNames, normalise
from engines.errors import UsageError

LABELS = (
    "parrot",
    "crane",
    "t-shirt",
    "great white shark, white shark, man-eater",
    "crane",
    "jack-o-lantern",
    "7-9",
    "Größe",
)
NAMES = ClassNames(len(LABELS), LABELS)
BARE = ClassNames(1000)


@pytest.mark.parametrize(
    ("specification", "indexes"),
    [
        ("3", [3]),
        (" 3 ", [3]),
        ("0-2", [0, 1, 2]),
        ("0 - 2", [0, 1, 2]),
        ("1-1", [1]),
        ("1,5,parrot", [1, 5, 0]),
        ("5,1,5", [5, 1, 5]),
        ("all", list(range(len(LABELS)))),
        ("none", [len(LABELS)]),
        ("None,ALL", [len(LABELS), *range(len(LABELS))]),
        ("parrot", [0]),
        ("PARROT", [0]),
        ("t-shirt", [2]),
        ("T shirt", [2]),
        ("t_shirt", [2]),
        ("jack o lantern", [5]),
        ("7-9", [6]),  # a label that looks like a range
        ("white shark", [3]),  # a synonym
        ("man eater", [3]),
        ("great white shark, white shark, man-eater", [3]),  # a whole label with commas
        ("parrot, t-shirt", [0, 2]),
        ("größe", [7]),
        ("GRÖSSE", [7]),
    ],
)
def test_a_specification_names_classes(specification, indexes):
    assert list(NAMES.parse([specification])) == indexes


def test_specifications_keep_their_order():
    assert NAMES.parse(["2", "0-1"]) == (2, 0, 1)
    assert NAMES.parse("0-1") == (0, 1)


@pytest.mark.parametrize(
    ("specification", "says"),
    [
        ("8", ["8", "0 to 7", "none"]),
        ("-1", ["-1", "0 to 7"]),
        ("0-8", ["8", "0 to 7"]),
        ("0-99999999999999", ["0 to 7"]),
        ("2-1", ["backwards", "1-2"]),
        ("crane", ["1 and 4", "index"]),
        ("parot", ["did you mean parrot?", "var-run classes"]),
        ("shirt", ["t-shirt"]),
        ("shark", ["great white shark"]),
        ("quetzal", ["no class is called 'quetzal'", "var-run classes"]),
        ("", ["empty"]),
        (" , ", ["empty"]),
        ("parrot,,t-shirt", ["empty"]),
        ("parrot,", ["empty"]),
        ("x" * 5000, ["xxx..."]),
        ("9" * 5000, ["999..."]),
        ("3-", ["no class"]),
        ("1.5", ["no class"]),
    ],
)
def test_a_wrong_specification_says_what_to_do(specification, says):
    with pytest.raises(UsageError) as caught:
        NAMES.parse([specification])
    message = str(caught.value)
    assert all(part in message for part in says)
    assert "\n" not in message
    assert len(message) < 400


IMAGENET = (
    "tench, Tinca tinca",
    "scarf",
    "sports car, sport car",
    "car mirror",
    "streetcar, tram",
    "cardigan",
    "great auk",
)


@pytest.mark.parametrize(
    ("specification", "index"), [("tench", 0), ("Tinca tinca", 0), ("tinca-tinca", 0), ("tram", 4), ("sport car", 2)]
)
def test_every_alternative_names_its_class(specification, index):
    assert ClassNames(7, IMAGENET).parse(specification) == (index,)


@pytest.mark.parametrize(
    ("specification", "suggested"),
    [
        ("car", "sports car, car mirror, streetcar, cardigan, scarf"),  # words, edges of words, parts
        ("Tinca", "Tinca tinca"),  # written as the label has it
        ("sport", "sport car"),  # one alternative of a class
        ("sports CAR mirror", "sports car, car mirror"),
        ("ar", None),  # too short for a part of a word
        ("tramm", "tram"),
    ],
)
def test_suggestions_hold_what_was_written(specification, suggested):
    with pytest.raises(UsageError) as caught:
        ClassNames(7, IMAGENET).parse(specification)
    hint = f"did you mean {suggested}? " if suggested else ""
    assert f"no class is called {specification!r}: {hint}`var-run" in str(caught.value)


def test_many_suggestions_are_counted():
    names = ClassNames(30, [f"car {k}" for k in range(30)])
    with pytest.raises(UsageError, match=r"did you mean car 0, car 1, .*, car 7 and 22 more\?"):
        names.parse("car")


def test_without_labels_only_indexes_count():
    assert BARE.parse(["998-999", "none"]) == (998, 999, 1000)
    with pytest.raises(UsageError, match=r"no labels.*0 to 999"):
        BARE.parse(["parrot"])


def test_one_class_where_one_is_needed():
    assert NAMES.index("parrot") == 0
    assert NAMES.index(8) == NAMES.index("none") == 8
    for wrong in ("0-1", "all", 9, -1):
        with pytest.raises(UsageError):
            NAMES.index(wrong)


def test_labels_and_file_names():
    assert [NAMES.label(i) for i in (0, 8)] == ["parrot", "none"]
    assert (NAMES.slug(3), NAMES.short_label(3)) == ("great-white-shark", "great white shark")
    assert ClassNames(1, [" , "]).short_label(0) == "0"
    assert NAMES.slug(8) == "none"
    assert (NAMES.slug(1), NAMES.slug(4)) == ("crane-1", "crane-4")
    assert (BARE.label(7), BARE.slug(7), BARE.slug(1000)) == ("7", "7", "none")


words = st.text(string.ascii_letters + string.digits + " -_'.,/\\éß日", min_size=1, max_size=20)


@given(st.lists(words, min_size=1, max_size=12))
def test_file_names_are_unique_and_harmless(labels):
    names = ClassNames(len(labels), labels)
    slugs = [names.slug(index) for index in range(len(labels) + 1)]
    assert len(set(slugs)) == len(slugs)
    assert all(slug and not set(slug) & set("/\\ ,.{}") and not slug.startswith("-") for slug in slugs)


@given(st.lists(words, min_size=1, max_size=12, unique_by=normalise), st.data())
def test_every_label_finds_its_class(labels, data):
    index = data.draw(st.integers(0, len(labels) - 1))
    name = normalise(labels[index])
    assume(name and name not in ("all", "none") and not name.isdecimal())
    written = labels[index].swapcase() if "ß" not in labels[index] else labels[index]
    for variant in (labels[index], written.replace(" ", "_"), written.replace("-", " ")):
        assert ClassNames(len(labels), labels).parse([variant]) == (index,)


@given(st.lists(st.tuples(st.integers(0, 999), st.integers(0, 999)), min_size=1, max_size=5))
def test_ranges_and_lists_spell_out(bounds):
    ranges = [(min(pair), max(pair)) for pair in bounds]
    written = ",".join(f"{first}-{last}" for first, last in ranges)
    assert list(BARE.parse([written])) == [i for first, last in ranges for i in range(first, last + 1)]


@given(st.text(max_size=40))
def test_any_text_gives_indexes_or_a_usage_error(text):
    try:
        found = NAMES.parse([text])
    except UsageError:
        return
    assert all(0 <= index <= len(LABELS) for index in found)
