import json

import numpy as np
import pytest

from calib.calibration import Calibration
from engines.errors import UsageError


@pytest.fixture
def saved(calibrated, tmp_path):
    """A calibration with smoothing, and its file."""
    factors = {"step/blocks.0.fc1": np.float32([0.125, 3.14159274, 1e-2])}
    made = Calibration(calibrated.model, calibrated.requests, calibrated.done, calibrated.tensors, factors)
    file = tmp_path / "new" / "model.calibration.json"
    made.save(file)
    return made, file


@pytest.mark.slow
@pytest.mark.parametrize("exact", [False, True])
def test_a_file_says_the_same(saved, exact):
    made, file = saved
    made.save(file, exact=exact)
    read = Calibration.load(file)
    assert read.digest() == made.digest()
    assert (read.model, read.requests, read.done) == (made.model, made.requests, made.done)
    assert read.tensors.keys() == made.tensors.keys()
    np.testing.assert_allclose(read.smoothing["step/blocks.0.fc1"], made.smoothing["step/blocks.0.fc1"], rtol=1e-5)
    again = file.with_name("again.json")
    read.save(again, exact=exact)
    if not exact:
        assert again.read_bytes() == file.read_bytes()


def test_the_digest_tells_contents_apart(saved):
    made, _ = saved
    digests = {made.digest()}
    for change in ({"model": "other"}, {"requests": {}}, {"smoothing": {}}, {"tensors": {}}):
        digests.add(Calibration(**vars(made) | change).digest())
    assert len(digests) == 5
    assert Calibration(**vars(made) | {"done": 99}).digest() == made.digest()  # how far, not what


def test_it_belongs_to_one_model(saved, tiny_fp32, tiny_shared_adaln):
    made, file = saved
    made.check_model(tiny_fp32)
    with pytest.raises(UsageError, match="another checkpoint") as caught:
        made.check_model(tiny_shared_adaln, file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_only_the_same_run_is_taken_up(saved):
    made, file = saved
    same = Calibration(made.model, json.loads(json.dumps(made.requests)))
    assert Calibration.resume(file, same).done == made.done
    assert Calibration.resume(file, Calibration("other", made.requests)) is None
    assert Calibration.resume(file, Calibration(made.model, made.requests | {"smooth": "0.5"})) is None
    assert Calibration.resume(file.with_name("missing"), same) is None
    file.write_text("")
    assert Calibration.resume(file, same) is None


def test_a_truncated_file_is_refused(saved):
    _, file = saved
    data = file.read_bytes()
    for size in (0, 1, len(data) // 2, len(data) - 3):
        file.write_bytes(data[:size])
        assert_refused(file)
    file.write_bytes(b"\xff\xfe" + data)
    assert_refused(file)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "var-export calibration 0"},
        {"format": ["long"] * 1000},
        {"done": "many"},
        {"done": None},
        {"done": float("inf")},
        {"requests": 3},
        {"tensors": []},
        {"tensors": {"step/head:input": {}}},
        {"tensors": {"step/head:input": None}},
        {"smoothing": {"step/head": "wide"}},
        {"smoothing": [1.0]},
        {"smoothing": {"step/head": {"a": 1}}},
    ],
    ids=str,
)
def test_a_damaged_file_is_refused(saved, change):
    _, file = saved
    document = json.loads(file.read_text())
    file.write_text(json.dumps(document | change))
    assert_refused(file)


@pytest.mark.parametrize("field", ["format", "model", "requests", "done", "tensors", "smoothing"])
def test_a_file_without_a_field_is_refused(saved, field):
    _, file = saved
    document = json.loads(file.read_text())
    del document[field]
    file.write_text(json.dumps(document))
    assert_refused(file)


@pytest.mark.parametrize("text", ["[]", "3", "null", '"text"', "[" * 100_000])
def test_other_json_is_refused(tmp_path, text):
    file = tmp_path / "other.json"
    file.write_text(text)
    assert_refused(file)


def assert_refused(file):
    with pytest.raises(UsageError) as caught:
        Calibration.load(file)
    message = str(caught.value)
    assert message.startswith(
        (f"{file} is no calibration of this version (", f"cannot read {file}: it is no JSON file (")
    )
    assert message.endswith("); make it again")
    assert len(message) < len(str(file)) + 300
    assert "\n" not in message


def test_a_missing_file(tmp_path):
    with pytest.raises(UsageError, match=r"cannot read .*: No such file"):
        Calibration.load(tmp_path / "missing.json")


def test_what_cannot_be_written_leaves_the_old_file(saved, monkeypatch):
    """A full disk."""
    made, file = saved
    before = file.read_bytes()

    def fail(path, other):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(UsageError, match=r"cannot write .*: No space left on device"):
        Calibration(made.model, {}).save(file)
    assert file.read_bytes() == before


def test_a_place_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        Calibration("model", {}).save(tmp_path / "file" / "model.json")
