"""What the CPU's sessions hold beside weights: measured in a process of its own, where nothing else comes and goes."""

import json
import subprocess
import sys
import threading
import time

import onnxruntime
import pytest

from engines.backends.onnxruntime import OnnxRuntimeBackend
from engines.backends.onnxruntime.arithmetic import saturates
from engines.bundle.bundle import Bundle

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/statm")
DRAW = """
import ctypes, gc, json, resource, sys
from engines.draw.pipeline import Pipeline

def resident():  # MiB that are in use: what is free, and only kept by the C library for later, is given back first
    ctypes.CDLL(None).malloc_trim(0)
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 2**20

lives = []
for _ in range(2):
    pipeline = Pipeline.load(sys.argv[1], threads=1)
    held = [resident()]
    for seed in range(3):
        pipeline.generate([1] * 8, seeds=seed)
        held.append(resident())
    pipeline.close()
    gc.collect()
    lives.append([*held, resident()])
print(json.dumps(lives))
"""


@pytest.fixture(scope="module")
def lives(demo_fp16_bundle):
    """MiB that two pipelines held, one after the other: loaded, after each of three batches of eight, and closed."""
    run = subprocess.run([sys.executable, "-c", DRAW, demo_fp16_bundle], capture_output=True, text=True, check=True)
    found = json.loads(run.stdout)
    print(found)
    return found


@pytest.mark.slow
def test_later_batches_need_no_more_than_the_first(lives):
    _, first, second, third, _ = lives[0]
    assert second - first < 15  # 0; with memory patterns 73, the decoder's tensors once more
    assert third - second < 5


def test_the_decoder_works_where_the_transformer_did(lives):
    loaded, first, *_ = lives[0]
    assert first - loaded < 66  # 54; with an arena for each session 78


def test_a_closed_pipeline_gives_its_memory_back(lives):
    (*_, most, closed), second = lives
    assert most - closed > 60  # 75; 48 where the arena stays registered
    assert max(second) < most + 15  # the next pipeline takes its place


def test_no_arena_takes_anothers_place_while_a_session_is_made(monkeypatch, demo_fp16_bundle):
    """ONNX Runtime's list of arenas has no lock: threads that load and close pipelines ended the process."""
    making, overlaps, made = [], [], []
    session, register = onnxruntime.InferenceSession, onnxruntime.create_and_register_allocator

    def slow_session(*arguments, **options):
        making.append(1)
        time.sleep(0.02)
        try:
            return session(*arguments, **options)
        finally:
            making.pop()
            made.append(1)

    def watched_register(*arguments):
        overlaps.append(len(making))
        return register(*arguments)

    bundle = Bundle.open(demo_fp16_bundle)
    saturates(onnxruntime)  # its own session takes no shared arena
    monkeypatch.setattr(onnxruntime, "InferenceSession", slow_session)
    monkeypatch.setattr(onnxruntime, "create_and_register_allocator", watched_register)

    def load():
        for _ in range(10):
            backend = OnnxRuntimeBackend(threads=1)
            backend.open(bundle, "cond").close()
            backend.close()

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 40
    assert overlaps == [0] * 80
