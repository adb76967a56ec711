"""Memory estimates against what the loop really allocates, buffer by buffer."""

from dataclasses import dataclass

import numpy as np
import pytest
from recording_backend import RecordingBackend

from engines.bundle.bundle import Bundle
from engines.draw.workspace import Constants, GraphWorkspace, Workspace
from engines.sizing.estimate import Estimate
from engines.sizing.memory import CONTEXT_BYTES, PLAN_OVERHEAD, memory
from engines.sizing.models import official
from engines.sizing.roofline import step_work
from engines.sizing.workload import MAX_BATCH, Workload
from engines.spec.contract import FUSED, GRAPHS, resolve
from tests.bundles import shared_bundle

SHAPES = ((1, 1), (1, 2), (3, 4), (5, 10))


def allocated(backend):
    return sum(event.size for event in backend.of("buffer"))


@dataclass(frozen=True, kw_only=True)
class Mixed(Workload):
    """Images with and without guidance in one batch."""

    all_rows: int

    @property
    def rows(self):
        return self.all_rows


def load_of(bundle, shape, form="stepwise"):
    images, rows = shape
    same = {name: getattr(bundle, name) for name in ("config", "precision", "max_top_k", "smooth")}
    return Mixed(images=images, all_rows=rows, form=form, **same)


def estimate(bundle, shape, form="stepwise"):
    return memory(load_of(bundle, shape, form))


@pytest.fixture(params=["demo_fp16", "tiny", "tiny-smooth"])
def bundle(request):
    if request.param == "tiny":
        return Bundle.open(shared_bundle("tiny-fp32"), verify=False)
    if request.param == "tiny-smooth":
        return Bundle.open(shared_bundle(request.param), verify=False)
    return Bundle.open(request.getfixturevalue(f"{request.param}_bundle"), verify=False)


def stepwise(bundle, shape):
    """The workspace of the loop for this shape, its backend, and the bytes of the constants."""
    backend = RecordingBackend()
    engines = {name: backend.open(bundle, name) for name in ("step", "decode")}
    arrays = {name: bundle.constant(name) for name in bundle.constants}
    constants = Constants(backend, bundle.config, engines["step"], arrays)
    constant_bytes = allocated(backend)
    backend.log.clear()
    workspace = Workspace(backend, bundle.config, engines, constants, shape)
    return workspace, backend, constant_bytes


@pytest.mark.parametrize("shape", SHAPES)
def test_buffers_and_cache_are_those_of_the_loop(bundle, shape):
    _, backend, constant_bytes = stepwise(bundle, shape)
    images, rows = shape
    labels = images + (rows > images)
    GraphWorkspace(backend, backend.open(bundle, "cond"), (labels, labels))
    needed = estimate(bundle, shape)
    assert needed.scale_constants == constant_bytes
    assert needed.loop_buffers + needed.kv_cache == allocated(backend)


@pytest.mark.parametrize("shape", SHAPES)
def test_cache_is_what_the_calls_are_bound_to(bundle, shape):
    workspace, _, _ = stepwise(bundle, shape)
    last = workspace.calls[-1]
    past = sum(buffer.array.nbytes for name, buffer in last.inputs.items() if name.startswith("past_"))
    new = {b.address: b.array.nbytes for name, b in last.outputs.items() if name.startswith("new_")}
    assert len(new) == 2  # all blocks write the last keys to one place, and the values to another
    assert estimate(bundle, shape).kv_cache == past + sum(new.values())


@pytest.mark.parametrize("shape", SHAPES)
def test_bytes_that_a_step_moves_are_those_of_its_buffers(bundle, shape):
    workspace, _, _ = stepwise(bundle, shape)
    for scale, call in enumerate(workspace.calls):
        work = step_work(load_of(bundle, shape), scale)
        inputs = {b.address: b.array.nbytes for b in call.inputs.values() if b.array.nbytes}
        outputs = {b.address: b.array.nbytes for b in call.outputs.values()}
        resampling = sum(call.inputs[name].array.nbytes for name in ("up", "down"))
        assert work.read["inputs"] + work.read["cache"] == sum(inputs.values()) - resampling
        assert sum(work.written.values()) == sum(outputs.values())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["tiny-fp32", "tiny-smooth"])
def test_fused_buffers(name, shape):
    bundle = Bundle.open(shared_bundle(name), verify=False)
    backend = RecordingBackend()
    GraphWorkspace(backend, backend.open(bundle, "fused"), shape)
    assert estimate(bundle, shape, "fused").loop_buffers == allocated(backend)


def test_no_tensor_of_the_fused_graph_has_the_type_of_the_cache():
    """`loop_buffers` relies on it."""
    config = official("d16")
    for smooth in (False, True):
        assert resolve(FUSED, config, "fp32", smooth=smooth) == resolve(GRAPHS["fused"], config, "fp16", smooth=smooth)


def test_parts_add_up():
    for form in ("stepwise", "fused"):
        needed = memory(Workload(config=official("d20"), images=3, form=form))
        document = needed.to_dict()
        assert document["weights"] == sum(document["weights_by_graph"].values())
        scratch = max(document["activations"], document["decoder"])
        parts = [document[name] for name in ("weights", "kv_cache", "loop_buffers")]
        assert document["counted"] == sum(parts) + scratch
        assert document["runtime_allowance"] == CONTEXT_BYTES + round(PLAN_OVERHEAD * needed.transformer)
        assert document["total"] == document["counted"] + document["runtime_allowance"]


def test_known_sizes():
    """Parameters of the papers; docs/performance.md: d16 FP16 is a bundle of 0.79 GiB, with the encoder."""
    for name, parameters in (("d16", 310e6), ("d20", 600e6), ("d24", 1.0e9), ("d30", 2.0e9), ("d36", 2.3e9)):
        needed = memory(Workload(config=official(name)))
        assert (needed.transformer + needed.conditioning) / 2 == pytest.approx(parameters, rel=0.06), name
    assert memory(Workload(config=official("d16"))).weights == pytest.approx(0.70 * 2**30, rel=0.02)


def test_what_makes_it_smaller():
    base = {"config": official("d16"), "images": 4}
    total = memory(Workload(**base)).total
    counted = memory(Workload(**base)).counted
    for change in ({"images": 3}, {"guidance": False}, {"tokens_only": True}):
        assert memory(Workload(**base | change)).total < total, change
    assert memory(Workload(**base, precision="fp32")).counted > 1.8 * counted
    assert memory(Workload(**base, precision="bf16")) == memory(Workload(**base, precision="fp16"))
    without = memory(Workload(**base, tokens_only=True))
    assert without.decoder == without.decoder_activations == 0


def test_memory_grows_with_the_batch():
    """`largest_batch` halves intervals."""
    totals = [memory(Workload(config=official("d36"), images=images)).total for images in range(1, 40)]
    assert np.all(np.diff(totals) > 0)


class Box:
    """Stands for a device with this much memory."""

    def __init__(self, usable):
        self.usable_bytes = usable


@pytest.mark.parametrize("name", ["d16", "d30"])
def test_largest_batch_is_exact(name):
    workload = Workload(config=official(name), images=64)
    room = 9 * 10**9
    estimate = Estimate(workload, Box(room))
    assert not estimate.fits
    largest = estimate.largest_batch
    assert memory(Workload(config=workload.config, images=largest)).total <= room
    assert memory(Workload(config=workload.config, images=largest + 1)).total > room
    assert f"--batch {largest}" in estimate.remedies


def test_nothing_helps_where_the_weights_are_too_large():
    estimate = Estimate(Workload(config=official("d30"), images=2), Box(10**9))
    assert (estimate.fits, estimate.largest_batch, estimate.remedies) == (False, 0, [])


def test_every_remedy_helps_by_itself():
    config = official("d16")
    workload = Workload(config=config, precision="fp32", images=8)
    room = memory(Workload(config=config, precision="fp32", images=8, guidance=False)).total
    estimate = Estimate(workload, Box(room))
    assert estimate.remedies[1:] == ["--no-guidance", "--precision fp16", "--precision int8"]
    assert memory(Workload(config=config, precision="fp16", images=8)).total <= room


def test_no_batch_beyond_what_a_graph_takes():
    assert Estimate(Workload(config=official("demo")), Box(10**15)).largest_batch == MAX_BATCH


@pytest.mark.parametrize(
    ("target", "form", "times"),
    [("onnxruntime", "stepwise", 1), ("onnxruntime", "fused", 8), ("tensorrt", "stepwise", 8)],
)
def test_a_cpu_decodes_large_images_one_by_one(target, form, times):
    one, eight = (
        memory(Workload(config=official("d16"), precision="fp32", form=form, images=images, target=target))
        for images in (1, 8)
    )
    assert eight.decoder_activations == times * one.decoder_activations
    assert eight.decoder == one.decoder
