"""What the two models do with requests, without a server: errors, cancellation to the scale, previews, hand-over."""

import os
import threading
import time

import numpy as np
import pytest

from engines.bundle.bundle import DEMO_BUNDLE, Bundle
from engines.draw.pipeline import Pipeline
from engines.errors import BackendError, OutOfMemoryError, UsageError
from engines.triton.serving.cancellation import CancelFlags
from engines.triton.serving.forward import Forwarder
from engines.triton.serving.service import Service
from engines.triton.wire import read_parameters

pytestmark = pytest.mark.slow


class Asked:
    """A request; `gone_after` scales its client has gone."""

    def __init__(self, *, gone_after=None, preview_scales=None, **given):
        edit = {name: given.pop(name) for name in ("picture", "redrawn") if name in given}
        types = {"label": object, "seed": np.uint64, "smooth": np.bool_}
        types |= dict.fromkeys(("class", "top_k", "cfg_scales"), np.int64)
        self.given = {
            name.rstrip("_"): np.array(
                [[value] for value in np.atleast_1d(values)], types.get(name.rstrip("_"), np.float32)
            )
            for name, values in given.items()
        }
        self.given |= edit
        self.gone_after, self.preview_scales = gone_after, preview_scales
        self.questions, self.sent, self.finals, self.error = 0, [], 0, None

    def tensor(self, name):
        return self.given.get(name)

    def parameter(self, name):
        return self.preview_scales if name == "preview_scales" else None

    def cancelled(self):
        self.questions += 1
        return self.gone_after is not None and self.questions > self.gone_after

    def send(self, outputs, *, final):
        self.sent.append(outputs)
        self.finals += final

    def fail(self, code, message):
        self.error = (code, message)
        self.finals += 1


@pytest.fixture
def counted():
    return []


@pytest.fixture
def service(counted, monkeypatch):
    monkeypatch.setattr("engines.joining.batch.JOIN_SECONDS", 0)
    service = Service.load(
        DEMO_BUNDLE, lambda name, labels, value: counted.append((name, dict(labels), value)), max_batch=8, threads=1
    )
    yield service
    service.close()


class Broken(Asked):
    """A request that a server hands over in a way that nobody expected."""

    def tensor(self, name):
        raise RuntimeError("the shared memory is gone")


def test_a_request_that_cannot_be_read_fails_alone(service):
    broken, good = Broken(class_=1), Asked(class_=88, seed=1, preview_scales="none")
    service.run([broken, good])
    assert broken.error == ("INTERNAL", "internal error; the server's log has it")
    assert good.error is None
    assert good.finals == broken.finals == 1


@pytest.mark.parametrize("text", ["[" * 10**5, "[]", "1", "{", '{"a": "\\ud800"}', '{"a":' * 200 + "1" + "}" * 200])
def test_parameters_that_cannot_be_read(text):
    with pytest.raises(UsageError, match="the request's parameters"):
        read_parameters(text)


def test_parameters():
    assert read_parameters(None) == read_parameters("") == {}
    assert read_parameters('{"preview_scales": "0,1"}') == {"preview_scales": "0,1"}


def test_every_request_gets_one_end(service):
    batch = [
        Asked(class_=88, seed=1), Asked(class_=999), Asked(label=b"frog", preview_scales="none"),
        Asked(class_=3, cfg=np.nan), Asked(class_=3, gone_after=0),
        Asked(class_=[4, 5], preview_scales="2"), Asked(class_=6, preview_scales="nine"),
    ]  # fmt: skip
    service.run(batch)
    assert [asked.finals for asked in batch] == [1] * 7
    assert [asked.error and asked.error[0] for asked in batch] == [
        None, "INVALID_ARG", None, "INVALID_ARG", "CANCELLED", None, "INVALID_ARG",
    ]  # fmt: skip
    assert [len(asked.sent) for asked in batch] == [7, 0, 1, 0, 0, 2, 0]
    assert [sent["scale"].tolist() for sent in batch[5].sent] == [[[2], [2]], [[6], [6]]]
    assert [sent["final"].tolist() for sent in batch[5].sent] == [[[False], [False]], [[True], [True]]]
    with Pipeline.load(DEMO_BUNDLE, threads=1) as alone:
        np.testing.assert_array_equal(batch[0].sent[-1]["tokens"], alone.generate(88, seeds=1).tokens)
        np.testing.assert_array_equal(batch[5].sent[-1]["tokens"], alone.generate([4, 5], seeds=[0, 0]).tokens)


def test_smoothed_and_drawn_images_share_a_batch(demo_smooth_bundle, monkeypatch):
    monkeypatch.setattr("engines.joining.batch.JOIN_SECONDS", 0)
    service = Service.load(demo_smooth_bundle, lambda name, labels, value: None, max_batch=8, threads=1)
    batch = [
        Asked(class_=88, seed=1, smooth=True, preview_scales="none"),
        Asked(class_=88, seed=1, preview_scales="none"),
        Asked(class_=[4, 5], smooth=[False, True], preview_scales="none"),
    ]
    service.run(batch)
    service.close()
    assert [asked.error for asked in batch] == [None] * 3
    with Pipeline.load(demo_smooth_bundle, threads=1) as alone:
        wanted = [alone.generate(88, seeds=1, smooth=True), alone.generate(88, seeds=1)]
        wanted.append(alone.generate([4, 5], seeds=[0, 0], smooth=[False, True]))
    for asked, images in zip(batch, wanted, strict=True):
        np.testing.assert_array_equal(asked.sent[-1]["tokens"], images.tokens)
        np.testing.assert_allclose(asked.sent[-1]["image"].astype(int), images.images.astype(int), atol=1)


def test_guidance_of_images_that_share_a_batch_ends_where_each_says(service):
    batch = [
        Asked(class_=88, seed=1, cfg=4.0, cfg_scales=5, preview_scales="none"),
        Asked(class_=88, seed=1, cfg=4.0, preview_scales="4"),
        Asked(class_=[4, 5], cfg=[2.0, 4.0], cfg_scales=[3, 6], preview_scales="none"),
        Asked(class_=4, cfg_scales=-1),
    ]
    service.run(batch)
    assert [asked.error for asked in batch] == [None] * 3 + [("INVALID_ARG", "cfg_scales must be 0 or more, got -1")]
    with Pipeline.load(DEMO_BUNDLE, threads=1) as alone:
        wanted = [alone.generate(88, seeds=1, cfg=4.0, cfg_scales=5), alone.generate(88, seeds=1, cfg=4.0)]
        wanted.append(alone.generate([4, 5], seeds=[0, 0], cfg=[2.0, 4.0], cfg_scales=[3, 6]))
    for asked, images in zip(batch, wanted, strict=False):
        np.testing.assert_array_equal(asked.sent[-1]["tokens"], images.tokens)
        np.testing.assert_allclose(asked.sent[-1]["image"].astype(int), images.images.astype(int), atol=1)


def test_edits_share_a_batch_with_images(service):
    pictures = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    redrawn = np.zeros((3, 8, 8), np.bool_)
    redrawn[0, 4:] = redrawn[1, :, :2] = True
    batch = [
        Asked(class_=88, seed=1, preview_scales="none"),
        Asked(class_=[3, 4], seed=[5, 6], picture=pictures[:2], redrawn=redrawn[:2], preview_scales="0"),
        Asked(picture=pictures[1:2], redrawn=redrawn[1:2], seed=2, preview_scales="none"),
        Asked(picture=pictures[2:], preview_scales="none"),
    ]
    service.run(batch)
    assert [asked.error for asked in batch] == [None] * 4
    with Pipeline.load(DEMO_BUNDLE, threads=1) as alone:
        wanted = [
            alone.generate(88, seeds=1),
            alone.edit(pictures[:2], redrawn[:2], [3, 4], seeds=[5, 6]),
            alone.edit(pictures[1], redrawn[1], seeds=2),
        ]
        for asked, images in zip(batch, wanted, strict=False):
            np.testing.assert_array_equal(asked.sent[-1]["tokens"], images.tokens)
            np.testing.assert_allclose(asked.sent[-1]["image"].astype(int), images.images.astype(int), atol=1)
        np.testing.assert_array_equal(batch[3].sent[0]["tokens"], alone.encode(pictures[2:]))
        kept = alone.reconstruct(pictures[2:]).astype(int)
        np.testing.assert_allclose(batch[3].sent[0]["image"].astype(int), kept, atol=1)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"redrawn": (1, 8, 8)}, "the input redrawn needs picture"),
        ({"picture": (1, 32, 64, 3)}, "picture must have the shape (1, 64, 64, 3), got (1, 32, 64, 3)"),
        ({"picture": (1, 64, 64, 3), "redrawn": (1, 4, 4)}, "redrawn must have the shape (1, 8, 8), got (1, 4, 4)"),
        ({"picture": (2, 64, 64, 3), "redrawn": (1, 8, 8)}, "redrawn must have the shape (2, 8, 8)"),
        ({"picture": (2, 64, 64, 3), "class_": [1, 2, 3]}, "2 pictures for 3 images: give one for each"),
        ({"picture": ()}, "picture must have the shape"),
    ],
)
def test_edits_that_cannot_be(given, says, service):
    types = {"picture": np.uint8, "redrawn": np.bool_}
    given = {name: np.zeros(value, types[name]) if name in types else value for name, value in given.items()}
    wrong, fine = Asked(**{"class_": 1, **given} if "picture" not in given else given), Asked(class_=2)
    service.run([wrong, fine])
    assert wrong.error[0] == "INVALID_ARG"
    assert says in wrong.error[1]
    assert fine.error is None


def test_the_batch_stops_when_all_have_gone(service, counted):
    """Each is asked on its way in and then before each scale: none is started after the question that said yes."""
    batch = [Asked(class_=1, gone_after=3, preview_scales="none"), Asked(class_=2, gone_after=3, preview_scales="none")]
    runs = []
    advance = service._pipeline._engines.open("step").bind
    service._pipeline._engines._spaces.close()  # so that the calls are bound anew, and can be counted
    service._pipeline._engines.open("step").bind = lambda *args: Counted(advance(*args), runs)
    service.run(batch)
    assert len(runs) <= 5, "of 7"
    assert [asked.error[0] for asked in batch] == ["CANCELLED"] * 2
    assert not any(asked.sent for asked in batch)
    assert ("var_images_total", {"result": "cancelled"}, 1) in counted
    assert not any(labels == {"result": "drawn"} for _, labels, _ in counted)


class Counted:
    def __init__(self, call, runs):
        self.call, self.runs = call, runs

    def run(self):
        self.runs.append(1)
        self.call.run()


def test_one_that_has_gone_does_not_stop_its_mates(service):
    gone, stays = Asked(class_=1, gone_after=4), Asked(class_=2)
    service.run([gone, stays])
    assert gone.error[0] == "CANCELLED"
    assert 1 <= len(gone.sent) <= 2
    assert len(stays.sent) == 7
    assert gone.finals == stays.finals == 1


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OutOfMemoryError("the device is full"), "UNAVAILABLE", "the device is full"),
        (BackendError("the runtime refused"), "INTERNAL", "the runtime refused"),
        (ZeroDivisionError("a bug"), "INTERNAL", "the server's log has it"),
    ],
)
def test_an_error_of_the_engines_reaches_all(error, code, words, service, monkeypatch, caplog):
    def fail(*args, **more):
        raise error

    monkeypatch.setattr(service._pipeline, "stream", fail)
    batch = [Asked(class_=1), Asked(class_=2)]
    service.run(batch)
    assert [asked.error[0] for asked in batch] == [code] * 2
    assert words in batch[0].error[1]
    assert ("a bug" in caplog.text) == isinstance(error, ZeroDivisionError)
    monkeypatch.undo()
    service.run([fine := Asked(class_=1)])
    assert fine.error is None


def test_engines_that_hold_less_than_configured_are_refused(monkeypatch):
    monkeypatch.setattr("engines.backends.onnxruntime.runner.OnnxRuntimeEngine.max_images", property(lambda _: 4))
    with pytest.raises(UsageError, match="write the repository again with --max-batch 4"):
        Service.load(DEMO_BUNDLE, lambda *_: None, max_batch=8)


# --- handing over -----------------------------------------------------------------------------------------------------


class Waiting(Asked):
    """A request of the unary model."""

    def __init__(self, **given):
        super().__init__(**given)
        self.done, self.gone, self.response = threading.Event(), False, None

    def cancelled(self):
        return self.gone

    def answer(self, response):
        self.response = response
        self.done.set()

    def fail(self, code, message):
        super().fail(code, message)
        self.done.set()


@pytest.fixture
def flags(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return CancelFlags("var", own=True)


def forwarder(flags, call, workers=4):
    return Forwarder(Bundle.open(DEMO_BUNDLE), flags, call, workers=workers)


def test_what_is_handed_on_leaves_nothing_to_defaults(flags, tmp_path):
    seen = []
    hands = forwarder(flags, lambda waiting, inputs, parameters: seen.append((inputs, parameters)) or "answer")
    asked = Waiting(label=b"parrot", seed=2**64 - 1)
    hands.take(asked)
    assert asked.done.wait(10)
    inputs, parameters = seen[0]
    assert asked.response == "answer"
    assert {name: (value.shape, value.dtype.name, value.item()) for name, value in inputs.items()} == {
        "class": ((1, 1), "int64", 88), "seed": ((1, 1), "uint64", 2**64 - 1), "cfg": ((1, 1), "float32", 1.0),
        "temperature": ((1, 1), "float32", 1.0), "top_k": ((1, 1), "int64", 20),
        "top_p": ((1, 1), "float32", pytest.approx(0.5)), "smooth": ((1, 1), "bool", False),
        "cfg_scales": ((1, 1), "int64", 0),
    }  # fmt: skip
    assert parameters["preview_scales"] == "none"
    edit = Waiting(picture=np.ones((1, 64, 64, 3), np.uint8))
    hands.take(edit)
    assert edit.done.wait(10)
    inputs, _ = seen[1]
    assert inputs["class"].item() == 171
    assert (inputs["picture"] == 1).all()
    assert (inputs["redrawn"].shape, inputs["redrawn"].any()) == ((1, 8, 8), False)
    hands.close()
    assert not list(tmp_path.iterdir()), "the folder of flags is gone"


def test_a_cancellation_reaches_the_other_process_and_leaves_no_flag(flags, tmp_path):
    other = CancelFlags("var")
    told = threading.Event()

    def call(waiting, inputs, parameters):
        end = time.monotonic() + 10
        while not other.is_set(parameters["cancel_token"]) and time.monotonic() < end:
            time.sleep(0.001)
        if other.is_set(parameters["cancel_token"]):
            told.set()
        return "answer"

    hands = forwarder(flags, call)
    asked = Waiting(class_=1)
    hands.take(asked)
    time.sleep(0.05)
    assert not told.is_set()
    began = time.monotonic()
    asked.gone = True
    assert told.wait(5)
    assert time.monotonic() - began < 1
    assert asked.done.wait(5)
    (folder,) = tmp_path.iterdir()
    end = time.monotonic() + 5
    while list(folder.iterdir()) and time.monotonic() < end:  # the flag goes right behind the answer
        time.sleep(0.001)
    assert not list(folder.iterdir())
    hands.close()


def test_a_failure_on_the_way_is_an_answer(flags, caplog):
    def call(*_):
        raise RuntimeError("the other model is gone")

    hands = forwarder(flags, call)
    wrong, lost = Waiting(class_=999), Waiting(class_=1)
    hands.take(wrong)
    hands.take(lost)
    assert wrong.done.wait(5)
    assert lost.done.wait(5)
    assert wrong.error[0] == "INVALID_ARG"
    assert lost.error == ("INTERNAL", "internal error; the server's log has it")
    assert "the other model is gone" in caplog.text
    hands.close()


def test_flags_outlive_a_model_that_is_loaded_anew(flags):
    fresh, other = CancelFlags("var", own=True), CancelFlags("var")
    flags.close()  # the old one ends after the new one began
    fresh.set(token := fresh.new())
    assert other.is_set(token)
    fresh.clear(token)
    assert not other.is_set(token)
    fresh.close()


def test_a_folder_of_another_user_is_not_trusted(flags, monkeypatch):
    flags.close()
    mine = os.getuid()
    monkeypatch.setattr("os.getuid", lambda: mine + 1)  # whoever made this folder, it was not this user
    with pytest.raises(BackendError, match="belongs to another user"):
        CancelFlags("var", own=True)


def test_flags_take_no_paths(flags, tmp_path):
    (tmp_path / "secret").touch()
    for token in ("../secret", str(tmp_path / "secret"), "", "0" * 31, "A" * 32):
        assert not flags.is_set(token)
    flags.close()
