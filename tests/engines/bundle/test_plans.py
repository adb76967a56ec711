"""Plans in a bundle: what the manifest says of them, which set serves a machine, and why another does not.

The bundles are hollow and the machines emulated: nothing here depends on a number that a model computes.
"""

import json
import platform
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from plan_helpers import CONFIG, EMULATED, GRAPHS, edit, manifest, refused
from support import tiny_config

from engines.backends.tensorrt.options import PlanOptions
from engines.bundle.bundle import Bundle
from engines.bundle.plans import PlanFile, PlanSet, Platform, parse_plans
from engines.bundle.writer import foreign_files, withdraw_plans
from engines.spec.choices import PLAN_TARGETS
from tests.emulation import hollow_bundle


@pytest.fixture
def path(tmp_path):
    """A bundle that has no plans yet, alone in its folder."""
    return hollow_bundle(tmp_path / "bundles" / "model", CONFIG)


@pytest.fixture
def machine(emulate):
    """Makes emulated machines that know the model of these bundles."""
    return lambda **options: emulate(**EMULATED, **options)


def names(path):
    return [entry.name for entry in Bundle.open(path).plans]


# --- in the manifest ----------------------------------------------------------------------------------------------


def test_what_is_built_is_read_again(path, machine):
    built = machine().build(path, "1:2:4", workspace=64, optimization_level=2, extra={"max_aux_streams": 1}).plans
    (read,) = Bundle.open(path).plans
    assert read == built
    assert set(read.graphs) == set(GRAPHS)
    assert read.graphs["step"].batch == (1, 2, 4)
    assert read.graphs["step"].rows == (1, 4, 8)
    assert read.graphs["step"].profiles == CONFIG.num_scales
    assert (read.graphs["fused"].batch, read.graphs["fused"].rows) == ((2, 2, 2), (4, 4, 4))
    assert read.options["workspace"] == 64
    assert read.built_on.gpu == "Emulated GPU"
    assert str(read) == "tensorrt 10.3.0, sm 8.6, batch 1 to 4"
    assert sorted(file.name for file in (path / "plans" / read.name).iterdir()) == sorted(f"{g}.plan" for g in GRAPHS)


def texts():
    return st.text(st.characters(categories=("L", "N", "P", "Zs")), max_size=12)


def plan_names():
    return st.from_regex(r"[a-z0-9][a-z0-9.-]{0,20}", fullmatch=True)


@st.composite
def plan_sets(draw):
    name = draw(plan_names())
    counts = st.lists(st.integers(1, 64), min_size=3, max_size=3).map(lambda values: tuple(sorted(values)))
    graphs = {
        graph: PlanFile(
            file=f"plans/{name}/{graph}.plan",
            size=draw(st.integers(0, 2**40)),
            sha256=draw(texts()),
            onnx_sha256=draw(texts()),
            batch=draw(counts),
            rows=draw(counts),
            profiles=draw(st.integers(1, 10)),
            seconds=draw(st.floats(0, 1e6)),
        )
        for graph in draw(st.sets(st.sampled_from(GRAPHS)))
    }
    return PlanSet(
        name=name,
        key=draw(texts()),
        built_on=Platform(
            target=draw(st.sampled_from(PLAN_TARGETS)),
            version=draw(texts()),
            cuda=draw(texts()),
            system=draw(texts()),
            gpu=draw(st.none() | texts()),
            compute_capability=draw(st.none() | texts()),
        ),
        precision=draw(texts()),
        compute_capabilities=tuple(draw(st.lists(texts(), max_size=3))),
        hardware_compatibility=draw(texts()),
        weight_streaming=draw(st.booleans()),
        weights_sha256=draw(texts()),
        options=draw(st.dictionaries(texts(), st.integers() | texts() | st.none(), max_size=3)),
        graphs=graphs,
    )


@pytest.mark.slow
@hypothesis_settings(deadline=None)
@given(st.lists(plan_sets(), max_size=3, unique_by=lambda plans: plans.name))
def test_any_plan_sets_survive_the_manifest(sets):
    assert parse_plans(json.loads(json.dumps([one.to_dict() for one in sets]))) == tuple(sets)


@pytest.mark.slow
def test_plans_are_no_foreign_files(path, machine):
    machine().build(path)
    assert foreign_files(path) == []
    for left in (".plans.lock", ".manifest.json.77.part"):  # by a build that was killed
        (path / left).write_text("")
    assert foreign_files(path) == []
    (path / "plans.txt").write_text("mine")
    assert foreign_files(path) == ["plans.txt"]


# --- which set serves ---------------------------------------------------------------------------------------------


def test_sets_for_several_machines_live_side_by_side(path, machine):
    for options in (
        {},
        {"name": "Other GPU"},
        {"version": "10.13.0"},
        {"capability": (8, 9)},
        {"rtx": True},
    ):
        machine(**options).build(path)
    assert len(set(names(path))) == 5
    for options in ({"rtx": True}, {"capability": (8, 9)}, {"version": "10.13.0"}, {"name": "Other GPU"}, {}):
        emulation = machine(**options)
        with emulation.load(path) as pipeline:
            chosen = pipeline.bundle.plans_for(pipeline.backend.here, "step")
            assert chosen.built_on.gpu == options.get("name", "Emulated GPU")
            pipeline.generate([0])


def test_the_newest_that_fits_is_taken(path, machine):
    """Two sets may serve one machine: its own, and a later one that is hardware-compatible."""
    own = machine(name="RTX 3060").build(path, "2").plans
    other = machine(name="RTX A2000").build(path, "4", hardware_compatibility="ampere+").plans
    assert names(path) == [own.name, other.name]
    assert machine(name="RTX 3060").load(path).max_batch == 4
    withdraw_plans(path, other.name)
    assert machine(name="RTX 3060").load(path).max_batch == 2


# CUDA calls both Orin.
AGX_ORIN = {"name": "Orin", "capability": (8, 7), "integrated": True, "processors": 16}
ORIN_NANO = AGX_ORIN | {"processors": 8}


@pytest.mark.parametrize(
    ("built_on", "here", "reason"),
    [
        ({"rtx": True}, {}, "it is for tensorrt-rtx"),
        ({}, {"rtx": True}, "it is for tensorrt"),
        ({}, {"version": "10.13.0"}, "it was built by tensorrt 10.3.0, here is 10.13.0"),
        ({}, {"name": "Other GPU"}, "it is for Emulated GPU of compute capability 8.6"),
        ({}, {"capability": (8, 9)}, "it is for Emulated GPU of compute capability 8.6"),
        (AGX_ORIN, ORIN_NANO, "it is for Orin (16 SM) of compute capability 8.7"),
        ({"rtx": True}, {"rtx": True, "capability": (8, 9)}, "it is for GPUs of compute capability 8.6"),
        ({"rtx": True}, {"rtx": True, "version": "1.8"}, "it was built by tensorrt-rtx 1.7.1.116, here is 1.8"),
    ],
)
def test_a_machine_that_a_set_is_not_for(built_on, here, reason, path, machine):
    name = machine(**built_on).build(path).plans.name
    emulation = machine(**here)
    refused(
        lambda: emulation.load(path),
        "holds no plan for",
        f"{name}: {reason}",
        f"var-export build {path} --target {emulation.target}",
    )
    assert emulation.trt.deserialized == 0


def test_a_bundle_that_came_from_another_system(path, machine, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    machine().build(path)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    emulation = machine()
    refused(lambda: emulation.load(path), "it was built on Linux aarch64", "var-export build")


def test_every_set_has_its_reason(path, machine):
    first = machine(name="Other GPU").build(path).plans.name
    second = machine(version="10.13.0").build(path).plans.name
    here = machine()
    message = refused(
        lambda: here.load(path),
        f"{first}: it is for Other GPU",
        f"{second}: it was built by tensorrt 10.13.0",
        "tensorrt 10.3.0, CUDA 12.6, Emulated GPU (compute capability 8.6), Linux",
    )
    assert message.index(second) < message.index(first), "the newest comes first"


def test_a_bundle_without_plans_says_how_to_make_them(path, machine):
    emulation = machine()
    refused(
        lambda: emulation.load(path), "holds no plans; build one with:", f"var-export build {path} --target tensorrt"
    )


def test_a_graph_that_a_set_does_not_have(path, machine):
    emulation = machine()
    name = emulation.build(path).plans.name
    edit(path, lambda value: value["plans"][0]["graphs"].pop("encode"))
    pipeline = emulation.load(path)
    pipeline.generate([0])
    side = CONFIG.image_size
    refused(
        lambda: pipeline.encode(np.zeros((1, side, side, 3), np.uint8)),
        f"{name}: it has no encode engine",
        "var-export build",
    )


@pytest.mark.parametrize("changed", ["step.onnx", "weights.bin"])
def test_a_set_that_was_built_from_another_model(changed, path, machine):
    """Of the same architecture: it would run, and draw something else."""

    def change(value):
        entry = value["plans"][0]
        if changed == "weights.bin":
            entry["weights_sha256"] = "0" * 64
        else:
            entry["graphs"]["step"]["onnx_sha256"] = "0" * 64

    emulation = machine()
    emulation.build(path)
    edit(path, change)
    graph = "cond" if changed == "weights.bin" else "step"
    refused(
        lambda: emulation.load(path),
        f"it was built from another {graph} graph, or other weights",
        f"var-export build {path} --target tensorrt",
    )
    assert not emulation.build(path).reused, "the command that the message names helps"
    emulation.load(path).generate([0])


def test_plans_that_were_copied_from_another_bundle(path, machine):
    """Folder and manifest entry both, as somebody may try who has only one GPU to build on."""
    emulation = machine()
    other = hollow_bundle(path.with_name("other"), tiny_config("other"))
    name = emulation.build(other).plans.name
    shutil.copytree(other / "plans", path / "plans")
    edit(path, lambda value: value.update(plans=manifest(other)["plans"]))
    refused(lambda: emulation.load(path), f"{name}: it was built from another cond graph, or other weights")
    built = emulation.build(path)
    assert (built.reused, built.superseded) == (False, (name,))
    emulation.load(path).generate([0])


def test_a_machine_without_a_gpu_fits_nothing(path, machine):
    machine(rtx=True).build(path, compute_capabilities=("8.6",))
    bundle = Bundle.open(path)
    nothing = Platform(
        target="tensorrt-rtx",
        version="1.7.1.116",
        cuda="",
        system=bundle.plans[0].built_on.system,
        gpu=None,
        compute_capability=None,
    )
    assert bundle.plans[0].why_not(nothing, bundle.files, "step") == "there is no GPU"
    refused(lambda: bundle.plans_for(nothing, "step"), "no GPU")


@pytest.mark.parametrize(
    ("level", "here", "serves"),
    [
        ("none", {"name": "Other GPU"}, False),
        ("same-sm", {"name": "Other GPU"}, True),
        ("same-sm", {"name": "Other GPU", "capability": (8, 9)}, False),
        ("ampere+", {"name": "Other GPU"}, True),
        ("ampere+", {"name": "Other GPU", "capability": (8, 0)}, True),
        ("ampere+", {"name": "Other GPU", "capability": (9, 0)}, True),
        ("ampere+", {"name": "Other GPU", "capability": (12, 1)}, True),
        ("ampere+", {"name": "Other GPU", "capability": (7, 5)}, False),
        ("ampere+", {"name": "Other GPU", "version": "10.4.0"}, False),
    ],
)
def test_hardware_compatibility(level, here, serves, path, machine):
    builder = machine()
    builder.trt.HardwareCompatibilityLevel = type(
        "Levels", (), {"NONE": 0, "AMPERE_PLUS": 1, "SAME_COMPUTE_CAPABILITY": 2}
    )
    builder.build(path, hardware_compatibility=level)
    emulation = machine(**here)
    if serves:
        emulation.load(path).generate([0])
    else:
        refused(lambda: emulation.load(path), "var-export build")


def test_tensorrt_rtx_serves_every_card_of_its_compute_capabilities(path, machine):
    """Whatever their names, and whatever it was built on."""
    built = machine(rtx=True, devices=0).build(path, compute_capabilities=("8.6", "12.0")).plans
    assert built.built_on.gpu is None
    assert built.compute_capabilities == ("8.6", "12.0")
    for capability in ((8, 6), (12, 0)):
        machine(rtx=True, name=f"RTX {capability}", capability=capability).load(path).generate([0])
    other = machine(rtx=True, capability=(8, 9))
    refused(lambda: other.load(path), "it is for GPUs of compute capability 8.6, 12.0")


def test_default_options_are_a_batch_of_one_to_eight():
    assert PlanOptions().batch.images == (1, 1, 8)
