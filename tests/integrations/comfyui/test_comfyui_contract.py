"""The nodes against ComfyUI's contract; and the checker of the contract against nodes that break it."""

from __future__ import annotations

import subprocess
import sys
from itertools import count

import pytest
from support import need_torch

from engines.spec.sampling import OPTIONS
from tests.kept import ROOT

need_torch()

from tests.integrations.comfyui.contract import hidden_of, problems, value_problem  # noqa: E402
from tests.integrations.comfyui.executor import CORE  # noqa: E402

FOLDER = ROOT / "integrations" / "comfyui"


def test_nothing_breaks_the_contract(comfy_nodes):
    assert problems(comfy_nodes.NODE_CLASS_MAPPINGS, comfy_nodes.NODE_DISPLAY_NAME_MAPPINGS) == []
    assert problems(comfy_nodes.NODE_CLASS_MAPPINGS | CORE, {}) == [], "nor clashes with the core"


def test_all_that_was_promised_is_there(comfy_nodes):
    assert set(comfy_nodes.__all__) == {"NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"}
    nodes = comfy_nodes.NODE_CLASS_MAPPINGS
    gives = {name.removeprefix("VarExport"): each.RETURN_TYPES for name, each in nodes.items()}
    assert gives == {
        "LoadBundle": ("VAR_PIPELINE",),
        "Draw": ("IMAGE",),
        "PreviewScales": ("IMAGE",),
        "Edit": ("IMAGE",),
        "Encode": ("VAR_TOKENS",),
        "Decode": ("IMAGE",),
    }
    assert set(comfy_nodes.NODE_DISPLAY_NAME_MAPPINGS) == set(comfy_nodes.NODE_CLASS_MAPPINGS)
    for node in comfy_nodes.NODE_CLASS_MAPPINGS.values():
        assert node.CATEGORY == "var-export"
        assert node.DESCRIPTION.endswith(".")
        inputs = node.INPUT_TYPES()
        assert hidden_of(inputs) == {}
        for name, (_, options) in {**inputs["required"], **inputs.get("optional", {})}.items():
            assert options["tooltip"].endswith("."), f"{name} is explained"


@pytest.mark.parametrize("name", ["Draw", "PreviewScales", "Edit"])
def test_every_sampling_option_has_a_widget_that_may_be_left_alone(comfy_nodes, name):
    optional = comfy_nodes.NODE_CLASS_MAPPINGS[f"VarExport{name}"].INPUT_TYPES()["optional"]
    kinds = {"float": "FLOAT", "int": "INT", "bool": "BOOLEAN"}
    assert {option.name: kinds[option.kind] for option in OPTIONS}.items() <= {
        name: kind for name, (kind, _) in optional.items() if isinstance(kind, str)
    }.items()
    for option in OPTIONS:
        widget = optional[option.name][1]
        if option.kind != "bool":
            assert widget["default"] == widget["min"] == -1, "which stands for the bundle's choice"
            assert not option.holds(-1), "so that nobody can mean it"


def good(**changes):
    """A node that keeps the contract, with some attributes changed; None removes one."""
    body = {
        "INPUT_TYPES": classmethod(lambda cls: {"required": {"side": ("INT", {"default": 1, "min": 0, "max": 2})}}),
        "RETURN_TYPES": ("IMAGE",),
        "FUNCTION": "make",
        "CATEGORY": "tests",
        "make": lambda self, side: None,
    } | changes
    return type(f"Node{next(COUNTER)}", (), {name: value for name, value in body.items() if value is not None})


COUNTER = count()


def takes(entry, group="required", **changes):
    """A node whose one input is this."""
    function = (lambda self, side: None) if group == "required" else (lambda self, side=1: None)
    inputs = {"required": {}, group: {"side": entry}}
    return good(INPUT_TYPES=classmethod(lambda cls: inputs), make=function, **changes)


BROKEN = [
    (good(RETURN_TYPES=None), "RETURN_TYPES is missing"),
    (good(RETURN_TYPES="IMAGE"), "RETURN_TYPES must be a tuple"),
    (good(RETURN_TYPES=("image",)), "no name of a type"),
    (good(RETURN_NAMES=("a", "b")), "RETURN_NAMES must have one entry"),
    (good(FUNCTION="other"), "the function other is not there"),
    (good(CATEGORY=None), "CATEGORY is missing"),
    (good(INPUT_TYPES=lambda: {"required": {}}), "must be a class method"),
    (good(INPUT_TYPES=classmethod(lambda cls: {"needed": {}})), "must give required"),
    (good(make=lambda self: None), "does not take side"),
    (good(make=lambda self, side, other: None), "other is no input"),
    (takes(("INT", {"default": 1}), "optional", FUNCTION="bare", bare=lambda self, side: None), "has no default"),
    (takes(("INT", {"default": 3, "max": 2})), "outside of its range"),
    (takes(("INT", {"default": 1.5})), "default must be of type INT"),
    (takes(("INT", {"default": True})), "default must be of type INT"),
    (takes(("INT", {"default": 0, "max": 2**64})), "beyond 64 bits"),
    (takes(("INT", {"min": 0})), "needs a default"),
    (takes(("FLOAT", {"default": 0.0, "minimum": 0})), "no option minimum"),
    (takes(("FLOAT", {"default": 0.0, "step": 0.0})), "step must be above 0"),
    (takes(("STRING", {"default": "", "max": 3})), "no option max"),
    (takes((["a", "b"], {"default": "c"})), "not in the list"),
    (takes((["a", "a"], {})), "each once"),
    (takes(("CHEESE", {"forceInput": True})), "no node gives CHEESE"),
    (takes(("CHEESE", {}), RETURN_TYPES=("CHEESE",)), "needs forceInput"),
    (takes(["INT", {}]), "must be a tuple"),
    (good(IS_CHANGED=classmethod(lambda cls, side: 1)), "IS_CHANGED needs a default"),
    (good(IS_CHANGED=classmethod(lambda cls: 1)), "does not take them"),
    (good(VALIDATE_INPUTS=classmethod(lambda cls, other=1: True)), "asks for other"),
    (good(VALIDATE_INPUTS=lambda side=1: True), "must be a class method"),
]


@pytest.mark.parametrize(("node", "problem"), BROKEN, ids=[problem for _, problem in BROKEN])
def test_the_checker_sees_what_breaks_the_contract(node, problem):
    (found,) = problems({"Node": node}, {})
    assert problem in found


def test_the_checker_lets_good_nodes_pass():
    cheese = takes(("CHEESE", {"forceInput": True}), RETURN_TYPES=("CHEESE",))
    passes = [good(), takes(("IMAGE",)), takes((["a"],)), cheese]
    for node in passes:
        assert problems({"Node": node}, {"Node": "A node"}) == []
    assert problems({}, {}) != []
    assert problems({"A": passes[0], "B": passes[0]}, {}) == ["a class has two names"]
    assert problems({"A": good(), "B": good()}, {"A": "x", "B": "x"}) == ["two nodes look the same in the menu"]
    assert "not there" in problems({"A": good()}, {"C": "x"})[0]


def test_the_checker_sees_values_that_are_none():
    torch = need_torch()
    assert value_problem("IMAGE", torch.zeros(1, 2, 2, 3)) is None
    for kind, value in [
        ("IMAGE", torch.zeros(2, 2, 3)),
        ("IMAGE", torch.zeros(1, 2, 2, 3, dtype=torch.uint8)),
        ("IMAGE", torch.full((1, 2, 2, 3), 255.0)),
        ("IMAGE", torch.zeros(1, 3, 2, 2)),
        ("MASK", torch.zeros(1, 2, 2, 1)),
        ("INT", "1"),
    ]:
        assert value_problem(kind, value) is not None


def test_without_the_package_the_import_says_how_to_install_it():
    """As ComfyUI would report it: the last line of the traceback."""
    script = f"""
import importlib.util, sys
sys.modules["engines"] = None
spec = importlib.util.spec_from_file_location("nodes_x", {str(FOLDER / "__init__.py")!r})
module = importlib.util.module_from_spec(spec)
sys.modules["nodes_x"] = module
spec.loader.exec_module(module)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: the var-export nodes need the package")
    assert 'pip install ".[cpu]"' in last


def test_the_registry_gets_what_its_specification_asks_for():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 cannot read TOML by itself")
    described = tomllib.loads((FOLDER / "pyproject.toml").read_text(encoding="utf-8"))
    package = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project, comfy = described["project"], described["tool"]["comfy"]
    assert project["name"].replace("-", "").isalnum() and project["name"][0].isalpha() and len(project["name"]) < 100
    assert "comfyui" not in project["name"].lower(), "the registry asks for that"
    assert len(project["version"].split(".")) == 3
    assert project["version"] == package["project"]["version"]
    assert project["requires-python"] == package["project"]["requires-python"]
    assert project["license"] == {"text": package["project"]["license"]}
    assert project["urls"]["Repository"].startswith("https://")
    assert {"PublisherId", "DisplayName"} <= set(comfy)
    file = described["tool"]["setuptools"]["dynamic"]["dependencies"]["file"]
    lines = [line for name in file for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()]
    needed = [*package["project"]["dependencies"], *package["project"]["optional-dependencies"]["cpu"]]
    assert [line for line in lines if not line.startswith("#")] == needed


def test_what_the_registry_forbids_is_not_there():
    """No eval, no exec, and nothing that installs while it runs."""
    code = "".join(file.read_text(encoding="utf-8") for file in FOLDER.glob("*.py"))
    assert [word for word in ("eval(", "exec(", "subprocess", "os.system") if word in code] == []
