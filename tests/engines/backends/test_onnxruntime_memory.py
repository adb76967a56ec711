"""What the CPU's sessions hold beside weights: measured in a process of its own, where nothing else comes and goes."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/statm")
DRAW = """
import gc, json, resource, sys
from engines.draw.pipeline import Pipeline

def resident():  # MiB
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
    assert most - closed > 20  # 35; nothing where the arena stays registered
    assert max(second) < most + 15  # the next pipeline takes its place
