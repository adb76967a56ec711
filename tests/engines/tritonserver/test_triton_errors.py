"""What a server refuses, with which code and message; and that it goes on as if nothing had been."""

import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("tritonclient.grpc")

import tritonclient.grpc as grpc
from triton_calls import Stream, eventually, inputs, settle, unary
from tritonclient.utils import InferenceServerException

INVALID, UNAVAILABLE = "INVALID_ARGUMENT", "UNAVAILABLE"
NAN = float("nan")
REFUSED = [
    ({"class_": 999}, "class 999 is out of range: this model has the classes 0 to 170"),
    ({"class_": -1}, "class -1 is out of range"),
    ({"label": b"a dragon that nobody drew"}, "no class is called"),
    ({"label": b"\xff\xfe"}, "label must be UTF-8"),
    ({"label": b"0-3"}, "4 classes where one is needed"),
    ({"class_": 88, "label": b"parrot"}, "one of the inputs class and label, not both"),
    ({"seed": 1}, "give one of the inputs class and label"),
    ({"class_": 88, "cfg": NAN}, "cfg must be finite"),
    ({"class_": 88, "cfg": -1.0}, "cfg must lie in 0 to 1000"),
    ({"class_": 88, "temperature": 0.0}, "use top_k 1"),
    ({"class_": 88, "top_k": 901}, "top_k 901 is more than the 900"),
    ({"class_": 88, "top_k": -1}, "top_k must be 0 or more"),
    ({"class_": 88, "top_p": 1.5}, "top_p must lie in 0 to 1"),
    ({"class_": 88, "smooth": True}, "built without smoothing"),
    ({"class_": [88, 999]}, "class 999 is out of range"),
]


def refusal(call):
    with pytest.raises(InferenceServerException) as caught:
        call()
    return str(caught.value.status()).removeprefix("StatusCode."), caught.value.message()


def healthy(server, local):
    """Still ready, and still right."""
    assert server.get("/v2/health/ready") is not None
    np.testing.assert_array_equal(unary(server, class_=3, seed=2)[1], local.generate(3, seeds=2).tokens)


@pytest.mark.parametrize("streamed", [False, True], ids=["unary", "stream"])
def test_wrong_requests_are_refused_with_the_remedy(streamed, server, local):
    for given, words in REFUSED:
        if streamed:
            with Stream(server, **given) as stream:
                _, message = refusal(lambda stream=stream: list(stream))  # streams carry no code
        else:
            code, message = refusal(lambda given=given: unary(server, **given))
            assert code == INVALID, given
        assert words in message, given
        assert "\n" not in message
    healthy(server, local)


def test_wrong_scales_are_refused(server):
    for text in ("7", "-1", "1.5", "all of them", "1;2"):
        with Stream(server, class_=88, parameters={"preview_scales": text}) as stream:
            assert "preview_scales must be scales from 0 to 6" in refusal(lambda stream=stream: list(stream))[1]


def raw(server, name, array, dtype):
    tensor = grpc.InferInput(name, array.shape, dtype)
    tensor.set_data_from_numpy(array)
    others = [] if name == "class" else inputs(class_=88)
    with grpc.InferenceServerClient(server.grpc) as client:
        return client.infer("var", [*others, tensor])


@pytest.mark.parametrize(
    ("name", "array", "dtype", "words"),
    [
        ("class", np.array([[88.0]], np.float32), "FP32", "INT64"),
        ("seed", np.array([[-1]], np.int64), "INT64", "UINT64"),
        ("class", np.array([88]), "INT64", "shape"),
        ("class", np.array([[88, 3]]), "INT64", "shape"),
        ("class", np.zeros((9, 1), np.int64), "INT64", "batch-size"),
        ("class", np.zeros((100_000, 1), np.int64), "INT64", "batch-size"),
        ("class", np.zeros((0, 1), np.int64), "INT64", ""),
        ("guidance", np.array([[1.0]], np.float32), "FP32", "guidance"),
    ],
    ids=["class-float", "seed-negative", "class-1d", "class-wide", "nine-images", "huge-batch", "no-image", "unknown"],
)
def test_wrong_tensors_are_refused(name, array, dtype, words, server, local):
    code, message = refusal(lambda: raw(server, name, array, dtype))
    assert code == INVALID
    assert words in message
    healthy(server, local)


def test_over_http_it_is_a_400(server):
    for body in (b'{"class": 999}', b'{"seed": 1}', b'{"label": "nobody"}'):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"http://{server.http}/v2/models/var/generate", body, timeout=60)
        assert caught.value.code == 400, body


def test_a_wrong_request_does_not_fail_its_batch_mates(server, local):
    requests = [
        {"class_": 3, "seed": 1},
        {"class_": 999, "seed": 2},
        {"class_": 3, "cfg": NAN},
        {"class_": 4, "seed": 3},
    ]
    with ThreadPoolExecutor(8) as threads:
        blocker = threads.submit(unary, server, class_=[1] * 8)  # meanwhile the others gather
        answers = [threads.submit(unary, server, **request) for request in requests]
        streams = [Stream(server, **{"seed": 0, "cfg": 1.0} | request) for request in requests]
        assert [answer.exception() is None for answer in answers] == [True, False, False, True]
        shown = [threads.submit(list, stream) for stream in streams]
        assert [show.exception() is None for show in shown] == [True, False, False, True]
        blocker.result()
    for stream in streams:
        stream.close()
    np.testing.assert_array_equal(answers[3].result()[1], local.generate(4, seeds=3).tokens)
    np.testing.assert_array_equal(shown[0].result()[-1]["tokens"], local.generate(3, seeds=1, cfg=1.0).tokens)


def settled(server):
    """Counts, once all that happened has been counted."""
    settle(server)
    return counts(server)


def counts(server):
    return {result: server.metric("var_images_total", result=result) for result in ("drawn", "cancelled")}


def test_a_cancelled_request_is_not_drawn(server, local):
    """One that waits behind another: it is told before it gets a place in a batch."""
    before = settled(server)
    with grpc.InferenceServerClient(server.grpc) as client, Stream(server, class_=[1] * 8) as blocker:
        responses = iter(blocker)
        next(responses)  # it has the engines to itself: a batch holds 8 images
        answers = []
        done = lambda result, error: answers.append(error)  # noqa: E731
        calls = [client.async_infer("var", inputs(class_=[2] * 8), done) for _ in range(2)]
        time.sleep(0.05)
        for call in calls:
            call.cancel()
        assert len(list(responses)) == 6
        assert eventually(lambda: len(answers) == 2)
    assert all("ancelled" in str(error) for error in answers)
    assert eventually(lambda: counts(server)["cancelled"] == before["cancelled"] + 16), counts(server)
    assert settled(server)["drawn"] == before["drawn"] + 8
    healthy(server, local)


def test_a_cancelled_stream_stops_the_engine(server, local):
    """Eight images, cancelled after the first of seven scales: they are never finished."""
    before = settled(server)
    stream = Stream(server, class_=[1] * 8)
    assert int(next(iter(stream))["scale"][0, 0]) == 0
    stream.cancel()
    assert eventually(lambda: counts(server)["cancelled"] == before["cancelled"] + 8)
    assert settled(server)["drawn"] == before["drawn"]
    healthy(server, local)


def test_a_time_limit_of_the_client_cancels(server):
    before = settled(server)
    with grpc.InferenceServerClient(server.grpc) as client, pytest.raises(InferenceServerException, match="Deadline"):
        client.infer("var", inputs(class_=[1] * 8), client_timeout=0.05)
    assert eventually(lambda: counts(server)["cancelled"] == before["cancelled"] + 8)


def test_more_than_the_queue_holds_is_refused_and_nothing_is_lost_or_mixed_up(server, local):
    """A batch, and once it is answered 192 at once: a queue of 16."""
    classes, seeds = [k % 171 for k in range(200)], [1000 + k for k in range(200)]
    made, refused = {}, []
    with grpc.InferenceServerClient(server.grpc) as client:
        arrived = []
        for first, end in ((0, 8), (8, 200)):
            for k in range(first, end):
                done = lambda result, error, k=k: arrived.append((k, result, error))  # noqa: E731
                client.async_infer("var", inputs(class_=classes[k], seed=seeds[k]), done)
            assert eventually(lambda end=end: len(arrived) == end, 240), f"{len(arrived)} of {end} answers"
    for k, result, error in arrived:
        if error is None:
            made[k] = result.as_numpy("tokens")[0]
        else:
            assert error.status() == f"StatusCode.{UNAVAILABLE}", f"{error.status()}: {error.message()}"
            refused.append(k)
    assert len(made) + len(refused) == 200
    assert len(made) >= 24, "a queue and a batch at least"
    assert len(refused) >= 100, "the queue holds 16"
    some = sorted(made)
    wanted = local.generate([classes[k] for k in some], seeds=[seeds[k] for k in some]).tokens
    np.testing.assert_array_equal(np.stack([made[k] for k in some]), wanted)
    healthy(server, local)
