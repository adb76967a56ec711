"""The queue of a server, its models and its limits, with a pipeline that waits to be let go."""

import asyncio
import threading
import time
from contextlib import asynccontextmanager
from types import SimpleNamespace

import httpx
import numpy as np
import pytest

from engines.bundle.bundle import DEMO_BUNDLE, Bundle
from engines.draw.results import Preview, Timings
from engines.errors import BackendError, CancelledError, OutOfMemoryError, UsageError
from engines.serve import app as application
from engines.serve import models as having
from engines.serve import wire
from engines.serve.app import ServerSettings, create_app
from engines.serve.joiner import Joiner, QueueFullError, Ticket, TimedOutError
from engines.serve.metrics import Metrics
from engines.serve.models import Models, NoRoomError
from tests.support import copy_bundle

BUNDLE = Bundle.open(DEMO_BUNDLE, verify=False)


class Slow:
    """A pipeline whose scales wait for `go`; `batches` are the seeds of each."""

    def __init__(self, max_batch=4, error=None):
        self.bundle, self.config, self.max_batch = BUNDLE, BUNDLE.config, max_batch
        self.go, self.begun, self.batches, self.closed, self.error = (
            threading.Event(),
            threading.Event(),
            [],
            False,
            error,
        )

    def stream(self, classes, *, seeds, preview_scales, forced, stop, **sampling):
        self.batches.append([int(seed) for seed in seeds])
        self.begun.set()
        if self.error is not None:
            raise self.error
        for scale in range(self.config.num_scales):
            while not self.go.wait(0.005):
                if stop():
                    raise CancelledError
            if stop():
                raise CancelledError
            final = scale == self.config.num_scales - 1
            which = np.array([k for k, wanted in enumerate(preview_scales) if final or scale in wanted])
            if len(which):
                images = np.full((len(which), 64, 64, 3), scale, np.uint8)
                yield Preview(
                    scale, images, np.zeros((len(which), 1), np.int64), final, which, Timings() if final else None
                )

    def close(self):
        self.closed = True


def ticket(seed=0, images=1, heard=None, **options):
    request = wire.request_of(wire.GenerationBody(n=images, seed=seed), BUNDLE)
    (order,) = wire.orders_of(request, images)
    return Ticket(order, (), (heard if heard is not None else []).append, **options)


@pytest.fixture
def slow():
    return Slow()


@pytest.fixture
def joiner(slow):
    made = Joiner(slow, lambda *told: None, queue=4)
    yield made
    slow.go.set()
    made.close()
    assert slow.closed


def wait_for(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_who_waits_is_drawn_together_in_order(joiner, slow):
    heard = [[] for _ in range(5)]
    joiner.submit([ticket(0, heard=heard[0])])
    assert slow.begun.wait(5)
    for k, images in enumerate((1, 2, 1), 1):
        joiner.submit([ticket(10 * k, images, heard[k])])
    slow.go.set()
    wait_for(lambda: all(heard[:4]))
    assert slow.batches == [[0], [10, 20, 21, 30]]
    assert [len(each[0].images) for each in heard[:4]] == [1, 1, 2, 1]


def test_a_full_queue_says_when_to_come_back(joiner, slow):
    joiner.submit([ticket()])
    assert slow.begun.wait(5)
    joiner.submit([ticket(1, 3)])
    with pytest.raises(QueueFullError, match="try again in") as raised:
        joiner.submit([ticket(2, 2)])
    assert raised.value.seconds >= 1
    joiner.submit([ticket(3)])
    assert joiner.images_waiting == 4


def test_who_has_gone_takes_no_place(joiner, slow):
    heard = [[], [], []]
    joiner.submit([ticket()])
    assert slow.begun.wait(5)
    gone, late, stays = (ticket(k, heard=each) for k, each in enumerate(heard, 1))
    late.deadline = 0.0
    joiner.submit([gone, late, stays])
    gone.cancel()
    slow.go.set()
    wait_for(lambda: all(heard))
    assert slow.batches == [[0], [3]]
    assert isinstance(heard[0][0], CancelledError)
    assert isinstance(heard[1][0], TimedOutError)


def test_who_has_gone_leaves_room_in_the_queue(joiner, slow):
    joiner.submit([ticket()])
    assert slow.begun.wait(5)
    heard = []
    gone = ticket(1, 4, heard)
    joiner.submit([gone])
    gone.cancel()
    assert joiner.images_waiting == 0
    joiner.submit([ticket(2, 4)])
    assert isinstance(heard[0], CancelledError)


def test_who_leaves_with_the_last_image_has_it(slow):
    counted = []
    joiner = Joiner(slow, lambda name, labels, value: counted.append((name, labels.get("result"))), queue=4)
    slow.go.set()
    one = ticket()
    one.tell = lambda told: one.cancel()  # as the loop does when it has all
    joiner.submit([one])
    wait_for(lambda: joiner.is_idle and one.done)
    joiner.close()
    assert ("var_images_total", "drawn") in counted
    assert ("var_images_total", "cancelled") not in counted


def test_a_batch_stops_when_nobody_waits(joiner, slow):
    heard = []
    one = ticket(heard=heard)
    joiner.submit([one])
    assert slow.begun.wait(5)
    one.cancel()
    wait_for(lambda: heard)
    assert isinstance(heard[0], CancelledError)
    wait_for(lambda: joiner.is_idle)


@pytest.mark.parametrize("error", [BackendError("refused"), OutOfMemoryError("full"), RuntimeError("a bug")])
def test_an_error_reaches_all_and_the_queue_goes_on(error):
    slow, heard = Slow(error=error), [[], []]
    joiner = Joiner(slow, lambda *told: None, queue=4)
    joiner.submit([ticket(k, heard=each) for k, each in enumerate(heard)])
    wait_for(lambda: all(heard))
    assert [each[0] for each in heard] == [error, error]
    slow.error = None
    slow.go.set()
    joiner.submit([ticket(heard=heard[0])])
    wait_for(lambda: len(heard[0]) == 2)
    assert heard[0][1].final
    joiner.close()
    with pytest.raises(CancelledError, match="stops"):
        joiner.submit([ticket()])


@pytest.fixture
def two(tmp_path, monkeypatch):
    """Two models whose engines are slow pipelines, and what was loaded."""
    loaded = []

    def load(path, **options):
        loaded.append(Slow(options["max_batch"]))
        loaded[-1].go.set()
        return loaded[-1]

    monkeypatch.setattr(having, "Pipeline", SimpleNamespace(load=load))
    return [copy_bundle(DEMO_BUNDLE, tmp_path / name) for name in ("one", "two")], loaded


def test_models_make_room_for_each_other(two):
    paths, loaded = two

    async def go():
        models = Models(paths, count=uncounted, budget=1)
        one, other = models
        await models.joiner(one)  # alone it may
        one.asked += 1
        with pytest.raises(NoRoomError, match="in use"):
            await models.joiner(other)
        one.asked -= 1
        await asyncio.sleep(0.01)
        await models.joiner(other)
        assert (one.joiner, loaded[0].closed, loaded[1].closed) == (None, True, False)
        assert await models.joiner(other) is other.joiner
        await models.close()

    asyncio.run(go())
    assert len(loaded) == 2


def test_models_that_nobody_uses_are_unloaded(two):
    paths, loaded = two

    async def go():
        models = Models(paths, count=uncounted, keep=0.05)
        sweeper = asyncio.create_task(models.sweep())
        one, other = models
        await models.joiner(one)
        await models.joiner(other)
        other.asked += 1
        await asyncio.sleep(0.4)
        assert (one.joiner, loaded[0].closed) == (None, True)
        assert other.joiner is not None
        sweeper.cancel()
        await models.close()

    asyncio.run(go())


def test_bundles_that_a_server_cannot_have(two, tmp_path):
    paths, _ = two
    same = copy_bundle(DEMO_BUNDLE, tmp_path / "deeper" / "one")
    with pytest.raises(UsageError, match="two bundles are called one"):
        Models([*paths, same], count=uncounted)


@asynccontextmanager
async def asking(models, settings=None):
    """A client of an application in this process."""
    app = create_app(models, Metrics(), settings or ServerSettings())
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://server", timeout=30) as client:
        yield client


def uncounted(name):
    """Metrics that nobody reads."""
    return lambda *told: None


def answers(two, settings, requests, monkeypatch, prepare=lambda models, loaded: None, **options):
    """What an application in this process answers to requests that are sent at once."""
    paths, loaded = two

    async def go():
        metrics = Metrics()
        models = Models(paths, count=metrics.counting, **options)
        app = create_app(models, metrics, settings)
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)  # they are logged again
        async with httpx.AsyncClient(transport=transport, base_url="http://server", timeout=30) as client:
            await models.joiner(next(iter(models)))
            prepare(models, loaded)
            sent = [client.post("/v1/images/generations", json={"prompt": "1", **body}) for body in requests]
            found = await asyncio.gather(*sent)
            await asyncio.sleep(0.2)  # the thread that draws hears later that nobody waits
            page = (await client.get("/metrics")).text
        for slow in loaded:
            slow.go.set()
        await models.close()
        return found, page

    return asyncio.run(go())


def test_a_full_queue_is_status_429(two, monkeypatch):
    found, page = answers(
        two,
        ServerSettings(seconds=0.5),
        [{"n": 4, "seed": k} for k in range(4)],
        monkeypatch,
        lambda models, loaded: loaded[0].go.clear(),
        queue=4,
        max_batch=4,
    )
    codes = [answer.status_code for answer in found]
    assert set(codes) == {429, 503}  # one that runs, and one that waits, unless it came before the first was taken
    assert codes.count(429) >= 2
    full = next(answer for answer in found if answer.status_code == 429)
    assert int(full.headers["retry-after"]) >= 1
    assert full.json()["error"]["code"] == "rate_limit_exceeded"
    late = next(answer for answer in found if answer.status_code == 503)
    assert late.json()["error"]["code"] == "timeout"
    late_images = f'var_images_total{{model="one",result="cancelled"}} {4.0 * codes.count(503)}'
    refused = f'var_request_seconds_count{{path="/v1/images/generations",status="429"}} {codes.count(429):.1f}'
    assert late_images in page
    assert refused in page


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (OutOfMemoryError("the device is full"), 503, "out_of_memory"),
        (BackendError("it refused"), 503, "cannot_draw"),
        (RuntimeError("secret"), 500, None),
    ],
)
def test_errors_of_the_engines(two, monkeypatch, error, status, code):
    def prepare(models, loaded):
        loaded[0].error = error

    (answer,), _ = answers(two, ServerSettings(), [{}], monkeypatch, prepare)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert "secret" not in answer.text
    (stream,), _ = answers(
        two, ServerSettings(), [{"stream": True}], monkeypatch, lambda m, loaded: prepare(m, loaded[-1:])
    )
    assert stream.text.startswith("event: error\n")
    assert '"code"' in stream.text


def test_health_draws_and_remembers(two, monkeypatch):
    paths, loaded = two

    async def go():
        models = Models(paths, count=uncounted)
        async with asking(models, ServerSettings(key="a-long-secret")) as client:
            assert (await client.get("/healthz")).json() == {"status": "ok"}
            loaded[0].error = BackendError("the device is lost")
            assert (await client.get("/healthz")).status_code == 200
            monkeypatch.setattr(application, "HEALTH_SECONDS", 0)
            (model, _) = models
            while not model.joiner.is_idle:  # who has its image is told a moment before the next may come
                await asyncio.sleep(0.01)
            failing = await client.get("/healthz")
            assert (failing.status_code, failing.json()["message"]) == (503, "the device is lost")
            loaded[0].error = None
            loaded[0].go.clear()
            loaded[0].begun.clear()
            model.joiner.submit([ticket()])
            assert loaded[0].begun.wait(5)
            assert (await client.get("/healthz")).json() == {"status": "ok"}  # it draws
            loaded[0].go.set()
            assert (await client.get("/v1/models")).status_code == 401
        await models.close()

    asyncio.run(go())
    assert len(loaded[0].batches) == 3


def test_health_keeps_no_model_loaded(two, monkeypatch):
    """Asked for ever, it is no use of a model; unloaded, the model is not loaded again to be asked."""
    paths, loaded = two
    monkeypatch.setattr(application, "HEALTH_SECONDS", 0)

    async def go():
        models = Models(paths, count=uncounted, keep=0.3)
        sweeper = asyncio.create_task(models.sweep())
        async with asking(models) as client:
            for _ in range(20):
                assert (await client.get("/healthz")).json() == {"status": "ok"}
                await asyncio.sleep(0.05)
        assert [model.joiner for model in models] == [None, None]
        sweeper.cancel()
        await models.close()

    asyncio.run(go())
    assert len(loaded) == 1
    assert len(loaded[0].batches) > 1


def test_health_unloads_nothing(two, monkeypatch):
    """Of two models for which there is no room together, the one that is loaded draws."""
    paths, loaded = two
    monkeypatch.setattr(application, "HEALTH_SECONDS", 0)

    async def go():
        models = Models(paths, count=uncounted, budget=1)
        async with asking(models) as client:
            _, second = models
            await models.joiner(second)
            await asyncio.sleep(0.01)
            assert (await client.get("/healthz")).json() == {"status": "ok"}
            assert second.joiner is not None
        await models.close()

    asyncio.run(go())
    assert len(loaded) == 1


def test_a_model_that_cannot_be_freed_keeps_no_other(two, monkeypatch):
    paths, loaded = two

    async def go():
        models = Models(paths, count=uncounted)
        for model in models:
            await models.joiner(model)

        def fail():
            raise RuntimeError("freeing failed")

        loaded[0].close = fail
        await models.close()

    asyncio.run(go())
    assert loaded[1].closed


def test_a_load_that_takes_too_long_is_a_timeout(two, monkeypatch):
    paths, _ = two
    real = having.Pipeline.load
    monkeypatch.setattr(having, "Pipeline", SimpleNamespace(load=lambda *a, **o: time.sleep(1) or real(*a, **o)))

    async def go():
        models = Models(paths, count=uncounted)
        async with asking(models, ServerSettings(seconds=0.3)) as client:
            late = await client.post("/v1/images/generations", json={"prompt": "1"})
            assert (late.status_code, late.json()["error"]["code"]) == (503, "timeout")
            await asyncio.sleep(1)  # it was loaded all the same
            assert (await client.post("/v1/images/generations", json={"prompt": "1"})).status_code == 200
        await models.close()

    asyncio.run(go())
