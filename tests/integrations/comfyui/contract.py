"""ComfyUI's contract for nodes, as its documentation states it, and whatever in a node breaks it.

Written from docs.comfy.org (custom nodes: properties, data types, hidden and flexible inputs, data lists, lifecycle)
and from the names of options in ComfyUI's own `node_typing.py`; nothing here knows the nodes that it judges.
"""

from __future__ import annotations

import inspect
import re

import torch

# Types that the core has nodes for, beside those with widgets.
SOCKETS = {
    "IMAGE", "MASK", "LATENT", "AUDIO", "CONDITIONING", "MODEL", "CLIP", "VAE", "NOISE", "SAMPLER", "SIGMAS", "GUIDER",
}  # fmt: skip
ANY_INPUT = {"tooltip", "lazy", "rawLink", "forceInput", "defaultInput"}
NUMBER = {"default", "min", "max", "step", "control_after_generate"}
# What a widget's options may be called.
WIDGETS = {
    "INT": NUMBER,
    "FLOAT": NUMBER | {"round"},
    "STRING": {"default", "multiline", "placeholder", "dynamicPrompts"},
    "BOOLEAN": {"default", "label_on", "label_off"},
    "COMBO": {"default", "image_upload", "image_folder", "control_after_generate"},
}
PYTHON_TYPES = {"INT": int, "FLOAT": (int, float), "STRING": str, "BOOLEAN": bool}
HIDDEN = {"UNIQUE_ID", "PROMPT", "EXTRA_PNGINFO", "DYNPROMPT"}
# By name, and what each must be; those without a default have to be there.
ATTRIBUTES = {"RETURN_TYPES": tuple, "FUNCTION": str, "CATEGORY": str}
OPTIONAL_ATTRIBUTES = {"RETURN_NAMES": tuple, "DESCRIPTION": str, "OUTPUT_NODE": bool, "OUTPUT_TOOLTIPS": tuple}


def problems(mappings: object, display_names: object) -> list[str]:
    """Everything in these two tables that ComfyUI would refuse, ignore or misread."""
    if not isinstance(mappings, dict) or not mappings:
        return ["NODE_CLASS_MAPPINGS must be a dict with nodes in it"]
    found = [f"{name!r} is no name of a node" for name in mappings if not isinstance(name, str) or not name.strip()]
    if len(set(mappings.values())) < len(mappings):
        found.append("a class has two names")
    if not isinstance(display_names, dict) or set(display_names) - set(mappings):
        found.append("NODE_DISPLAY_NAME_MAPPINGS names nodes that are not there")
    elif len(set(display_names.values())) < len(display_names):
        found.append("two nodes look the same in the menu")
    made = {each for node in mappings.values() for each in getattr(node, "RETURN_TYPES", ())}
    for name, node in mappings.items():
        found += [f"{name}: {problem}" for problem in node_problems(node, made)]
    return found


def node_problems(node: type, made: set[str]) -> list[str]:
    """What breaks the contract in one node. `made`: the types that some node gives."""
    found = [f"{name} is missing" for name in ATTRIBUTES if not hasattr(node, name)]
    for name, kind in (ATTRIBUTES | OPTIONAL_ATTRIBUTES).items():
        if not isinstance(getattr(node, name, kind()), kind):
            found.append(f"{name} must be a {kind.__name__}")
    if not isinstance(inspect.getattr_static(node, "INPUT_TYPES", None), classmethod):
        return [*found, "INPUT_TYPES must be a class method"]
    if found:
        return found
    types = node.RETURN_TYPES
    found += [f"RETURN_TYPES has {each!r}, which is no name of a type" for each in types if not named_type(each)]
    for name in ("RETURN_NAMES", "OUTPUT_TOOLTIPS", "OUTPUT_IS_LIST"):
        if len(getattr(node, name, types)) != len(types):
            found.append(f"{name} must have one entry for each of RETURN_TYPES")
    inputs = node.INPUT_TYPES()
    if not isinstance(inputs, dict) or "required" not in inputs or set(inputs) - {"required", "optional", "hidden"}:
        return [*found, "INPUT_TYPES must give required, and may give optional and hidden"]
    for group in ("required", "optional"):
        for name, entry in inputs.get(group, {}).items():
            found += [f"input {name}: {problem}" for problem in input_problems(entry, made)]
    hidden = hidden_of(inputs)
    found += [f"hidden {name} must be one of {HIDDEN}" for name in hidden if hidden[name] not in HIDDEN]
    if set(inputs["required"]) & set(inputs.get("optional", {})):
        found.append("an input is both required and optional")
    return found + function_problems(node, inputs) + class_method_problems(node, inputs)


def hidden_of(inputs: dict) -> dict:
    return inputs.get("hidden", {})


def named_type(name: object) -> bool:
    return isinstance(name, str) and re.fullmatch(r"[A-Z][A-Z0-9_]*", name) is not None


def input_problems(entry: object, made: set[str]) -> list[str]:
    """What is wrong with one input: (type,) or (type, options), or a list of what can be chosen in place of a type."""
    if not isinstance(entry, tuple) or not 1 <= len(entry) <= 2:
        return ["must be a tuple of a type and its options"]
    kind, options = entry[0], entry[1] if len(entry) == 2 else {}
    if not isinstance(options, dict):
        return ["options must be a dict"]
    if isinstance(kind, list):
        return combo_problems(kind, options)
    if not named_type(kind):
        return [f"{kind!r} is no name of a type"]
    allowed = WIDGETS.get(kind, set()) | ANY_INPUT
    found = [f"{kind} has no option {option}" for option in options if option not in allowed]
    if not isinstance(options.get("tooltip", ""), str):
        found.append("a tooltip must be a text")
    if kind in WIDGETS:
        return found + default_problems(kind, options)
    if kind not in SOCKETS:
        if kind not in made:
            found.append(f"no node gives {kind}")
        if options.get("forceInput") is not True:
            found.append(f"{kind} has no widget, and needs forceInput")
    return found


def combo_problems(choices: list, options: dict) -> list[str]:
    found = [f"a list has no option {option}" for option in options if option not in WIDGETS["COMBO"] | ANY_INPUT]
    if not choices or not all(isinstance(each, str) for each in choices) or len(set(choices)) < len(choices):
        return [*found, "a list must hold texts, each once"]
    if options.get("default", choices[0]) not in choices:
        found.append(f"the default {options['default']!r} is not in the list")
    return found


def default_problems(kind: str, options: dict) -> list[str]:
    """Of a widget: the default is there, of its type and within its range."""
    if "default" not in options:
        return [f"{kind} needs a default"]
    found = []
    for name in ("default", "min", "max", "step") if kind in ("INT", "FLOAT") else ("default",):
        value = options.get(name)
        wrong = not isinstance(value, PYTHON_TYPES[kind]) or (isinstance(value, bool) and kind != "BOOLEAN")
        if name in options and wrong:
            found.append(f"{name} must be of type {kind}")
    if found or kind not in ("INT", "FLOAT"):
        return found
    if not options.get("min", options["default"]) <= options["default"] <= options.get("max", options["default"]):
        found.append(f"the default {options['default']} is outside of its range")
    if options.get("step", 1) <= 0:
        found.append("step must be above 0")
    if max(abs(options.get(name, 0)) for name in ("min", "max")) >= 2**64:
        found.append("the range goes beyond 64 bits")
    return found


def function_problems(node: type, inputs: dict) -> list[str]:
    """The function takes all inputs by name: those that may be left out have defaults."""
    function = getattr(node, node.FUNCTION, None)
    if not callable(function):
        return [f"the function {node.FUNCTION} is not there"]
    _, *parameters = inspect.signature(function).parameters.values()  # without self
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters)
    named = {each.name: each for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)}
    always, sometimes = {**inputs["required"], **hidden_of(inputs)}, inputs.get("optional", {})
    found = [f"{name} is no input" for name in named if name not in {**always, **sometimes}]
    if not takes_any:
        found += [f"the function does not take {name}" for name in {**always, **sometimes} if name not in named]
    for name in sometimes:
        if name in named and named[name].default is inspect.Parameter.empty:
            found.append(f"{name} may be left out, and has no default")
    return found


def class_method_problems(node: type, inputs: dict) -> list[str]:
    """IS_CHANGED and VALIDATE_INPUTS get constants alone: whatever a link may give has a default."""
    found = []
    names = {**inputs["required"], **inputs.get("optional", {}), **hidden_of(inputs)}
    for method in ("IS_CHANGED", "VALIDATE_INPUTS"):
        if not hasattr(node, method):
            continue
        if not isinstance(inspect.getattr_static(node, method), classmethod | staticmethod):
            found.append(f"{method} must be a class method")
            continue
        parameters = inspect.signature(getattr(node, method)).parameters.values()
        for each in parameters:
            if each.kind is each.VAR_KEYWORD:
                continue
            if each.name not in names and not (method == "VALIDATE_INPUTS" and each.name == "input_types"):
                found.append(f"{method} asks for {each.name}, which is no input")
            elif each.default is each.empty:
                found.append(f"{method} needs a default for {each.name}, which a link may give")
        takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters)
        taken = {each.name for each in parameters}
        if method == "IS_CHANGED" and not takes_any and set(names) - taken:
            found.append("IS_CHANGED gets all inputs, and does not take them")
    return found


def value_problem(kind: str, value: object) -> str | None:
    """Why a value is none of a type of the core; None where it is one, and for types of others."""
    if kind == "IMAGE":
        return tensor_problem(value, dimensions=4) or (None if value.shape[-1] == 3 else "an IMAGE has 3 channels")
    if kind == "MASK":
        return tensor_problem(value, dimensions=3)
    if kind in PYTHON_TYPES and not isinstance(value, PYTHON_TYPES[kind]):
        return f"{value!r} is no {kind}"
    return None


def tensor_problem(value: object, dimensions: int) -> str | None:
    if not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
        return "must be a tensor of float32"
    if value.ndim != dimensions or not value.numel():
        return f"must have {dimensions} dimensions, got {tuple(value.shape)}"
    if not (value.isfinite().all() and value.min() >= 0 and value.max() <= 1):
        return "must lie in 0 to 1"
    return None
