"""Plans that are not what was built: damaged files and manifests, found before TensorRT sees a byte of them."""

import copy
import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from plan_helpers import CONFIG, EMULATED, edit, manifest, refused

from engines.bundle.bundle import Bundle
from engines.bundle.plans import parse_plans
from engines.errors import BackendError, UsageError
from tests.emulation import hollow_bundle
from tests.emulation.machine import Emulation


@pytest.fixture
def path(tmp_path):
    """A bundle that has no plans yet, alone in its folder."""
    return hollow_bundle(tmp_path / "bundles" / "model", CONFIG)


@pytest.fixture
def machine(emulate):
    """Makes emulated machines that know the model of these bundles."""
    return lambda **options: emulate(**EMULATED, **options)


# --- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("graph", ["cond", "step", "decode"])
@pytest.mark.parametrize("damage", ["truncated", "one bit", "longer", "empty", "missing", "a folder", "a dead link"])
def test_a_damaged_plan_never_reaches_tensorrt(damage, graph, path, machine):
    """A plan is code: what is not what was built is not deserialized."""
    emulation = machine()
    emulation.build(path)
    (plan,) = path.glob(f"plans/*/{graph}.plan")
    data = bytearray(plan.read_bytes())
    plan.unlink()
    if damage == "truncated":
        plan.write_bytes(data[:-1])
    elif damage == "one bit":
        data[len(data) // 2] ^= 1
        plan.write_bytes(data)
    elif damage == "longer":
        plan.write_bytes(data + b"\0")
    elif damage == "empty":
        plan.write_bytes(b"")
    elif damage == "a folder":
        plan.mkdir()
    elif damage == "a dead link":
        plan.symlink_to(path / "nowhere")
    Bundle.open(path)  # the bundle itself is whole: ONNX Runtime does not care
    refused(lambda: emulation.load(path), f"{graph}.plan", f"var-export build {path} --target tensorrt")
    assert emulation.trt.deserialized == ("cond", "step", "decode").index(graph), "only those before it"


def test_exchanged_plans_are_found(path, machine):
    emulation = machine()
    emulation.build(path)
    (a,), (b,) = path.glob("plans/*/cond.plan"), path.glob("plans/*/step.plan")
    a.rename(a.with_suffix(".aside"))
    b.rename(a)
    a.with_suffix(".aside").rename(b)
    refused(lambda: emulation.load(path), "cond.plan")
    assert emulation.trt.deserialized == 0


def test_a_plan_that_tensorrt_rtx_itself_refuses(path, machine):
    emulation = machine(rtx=True)
    emulation.build(path)
    emulation.trt.validity = emulation.trt.EngineValidity.INVALID
    refused(lambda: emulation.load(path), "TensorRT-RTX 1.7.1.116 refuses plans/", "reason 7", kind=BackendError)
    assert emulation.trt.deserialized == 0
    emulation.trt.validity = emulation.trt.EngineValidity.SUBOPTIMAL
    emulation.load(path).generate([0])


@pytest.mark.slow
def test_a_plan_with_other_tensors_than_the_graph(path, machine):
    """By a builder that has lost or renamed one; the manifest fits it."""
    emulation = machine()
    tensors = emulation.trt.tensors
    emulation.trt.tensors = lambda file: [tensor for tensor in tensors(file) if tensor.name != "logits"]
    emulation.build(path)
    refused(
        lambda: emulation.load(path), "step.plan has other tensors", "(logits)", "build it again", kind=BackendError
    )

    def other_type(file):
        return [tensor._replace(kind="FLOAT") if tensor.name == "past_k_0" else tensor for tensor in tensors(file)]

    emulation = machine()
    emulation.trt.tensors = other_type
    assert not emulation.build(path, "2").reused
    refused(lambda: emulation.load(path), "step.plan has past_k_0 as", "FLOAT, not float16", kind=BackendError)


MALFORMED = {
    "no list": lambda value: value.update(plans={}),
    "null": lambda value: value.update(plans=None),
    "a set that is no table": lambda value: value["plans"].append("set"),
    "a number": lambda value: value["plans"].append(7),
    "two of one name": lambda value: value["plans"].append(copy.deepcopy(value["plans"][0])),
    "an unknown key": lambda value: value["plans"][0].update(speed=1),
    "a missing key": lambda value: value["plans"][0].pop("key"),
    "an unknown product": lambda value: value["plans"][0]["built_on"].update(target="openvino"),
    "graphs that are a list": lambda value: value["plans"][0].update(graphs=[]),
    "a plan that is no table": lambda value: value["plans"][0]["graphs"].update(step="step.plan"),
    "a capability that is one string": lambda value: value["plans"][0].update(compute_capabilities="8.6"),
    "a size that is text": lambda value: value["plans"][0]["graphs"]["step"].update(size="10"),
    "a size that is true": lambda value: value["plans"][0]["graphs"]["step"].update(size=True),
    "a hash that is a number": lambda value: value["plans"][0]["graphs"]["step"].update(sha256=5),
    "a batch of two numbers": lambda value: value["plans"][0]["graphs"]["step"].update(batch=[1, 2]),
    "a batch that falls": lambda value: value["plans"][0]["graphs"]["step"].update(batch=[3, 2, 1]),
    "a batch of nothing": lambda value: value["plans"][0]["graphs"]["step"].update(batch=[0, 0, 0]),
    "rows that are text": lambda value: value["plans"][0]["graphs"]["step"].update(rows="123"),
    "streaming that is text": lambda value: value["plans"][0].update(weight_streaming="no"),
    "options that are a list": lambda value: value["plans"][0].update(options=[]),
    "a GPU that is a number": lambda value: value["plans"][0]["built_on"].update(gpu=3060),
}


@pytest.mark.parametrize("change", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_entry_is_damage(change, path, machine):
    machine().build(path)
    edit(path, change)
    refused(lambda: Bundle.open(path), "manifest.json is damaged")


NO_NAMES = ["..", ".", "", "../x", "a/b", "/tmp/x", ".hidden", "a\nb", "a\0b"]


@pytest.mark.parametrize(
    ("where", "name"),
    [*(("graph", name) for name in NO_NAMES), *(("set", name) for name in (*NO_NAMES, 5, None, ["a"]))],
    ids=repr,
)
def test_a_name_that_leads_out_of_the_folder_is_damage(where, name, path, machine):
    machine().build(path)

    def change(value):
        entry = value["plans"][0]
        if where == "set":
            entry["name"] = name
            for graph, plan in entry["graphs"].items():
                plan["file"] = f"plans/{name}/{graph}.plan"
        else:
            plan = entry["graphs"].pop("step")
            entry["graphs"][name] = {**plan, "file": f"plans/{entry['name']}/{name}.plan"}

    edit(path, change)
    refused(lambda: Bundle.open(path), "manifest.json is damaged")


@pytest.mark.parametrize(
    "file",
    [
        "plans/../step.plan",
        "plans/{name}/../step.plan",
        "plans/{name}/..",
        "plans/{name}/",
        "plans/{name}",
        "plans/{name}/deeper/step.plan",
        "plans/other/step.plan",
        "/etc/passwd",
        "step.plan",
        "plans/{name}/cond.plan",
        "",
        7,
        None,
    ],
)
def test_a_file_that_lies_elsewhere_is_damage(file, path, machine):
    name = machine().build(path).plans.name
    outside = file.format(name=name) if isinstance(file, str) else file
    edit(path, lambda value: value["plans"][0]["graphs"]["step"].update(file=outside))
    refused(lambda: Bundle.open(path), "manifest.json is damaged")


@pytest.fixture(scope="module")
def with_plans(tmp_path_factory):
    path = hollow_bundle(tmp_path_factory.mktemp("bundles") / "model", CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        Emulation(patch, model=(CONFIG, "fp16")).build(path)
        Emulation(patch, model=(CONFIG, "fp16"), rtx=True).build(path, compute_capabilities=("8.6", "8.9"))
    return path


def places(value, where=()):
    """Every place in a JSON value."""
    yield where
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from places(child, (*where, key))


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["..", "plans/../x", "/", "\n"]),
    st.lists(st.integers(), max_size=4),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@hypothesis_settings(deadline=None)
@given(data=st.data())
def test_whatever_stands_in_the_manifest_is_refused_or_makes_sense(with_plans, data):
    """One or two values of the entries replaced, added or taken out."""
    value = manifest(with_plans)
    for _ in range(data.draw(st.integers(1, 2))):
        where = data.draw(st.sampled_from([place for place in places(value["plans"]) if place] or [(0,)]))
        parent = value["plans"]
        try:
            for key in where[:-1]:
                parent = parent[key]
            if data.draw(st.booleans()):
                parent[where[-1]] = data.draw(ODD)
            elif isinstance(parent, dict):
                parent.pop(where[-1])
        except (KeyError, IndexError, TypeError):
            continue
    try:
        sets = parse_plans(json.loads(json.dumps(value["plans"])))
    except (ValueError, TypeError, KeyError, AttributeError, UsageError):
        return  # `Manifest.from_dict` makes one line of these
    bundle = Bundle.open(with_plans)
    folder = (with_plans / "plans").resolve()
    for one in sets:
        assert parse_plans([one.to_dict()]) == (one,)
        assert "\n" not in str(one)
        for here in (bundle.plans[0].built_on, bundle.plans[1].built_on):
            reason = one.why_not(dataclasses.replace(here, compute_capability="8.6"), bundle.files, "step")
            assert reason is None or isinstance(reason, str)
        for plan in one.graphs.values():
            assert (with_plans / plan.file).resolve().parent.parent == folder
            assert 1 <= plan.batch[0] <= plan.batch[2]
            assert bundle.plan_problem(plan) is None or "\n" not in str(bundle.plan_problem(plan))
