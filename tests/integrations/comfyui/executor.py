"""What ComfyUI does with nodes, as far as its documentation tells: loads a folder, checks a workflow, runs it, caches.

With stand-ins for the nodes of the core that the example workflows use.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import sys
from pathlib import Path
from types import ModuleType

import torch

from tests.integrations.comfyui.contract import PYTHON_TYPES, value_problem


def load_folder(path: str) -> ModuleType:
    """Import a folder of `custom_nodes` under the name that ComfyUI makes of its path."""
    name = str(path).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, Path(path) / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class RefusedWorkflowError(Exception):
    """A workflow was refused before anything ran; `args` are the reasons."""


class ComfyStandIn:
    """Runs workflows in API format, one after the other, and keeps what did not change in between."""

    def __init__(self, *tables: dict[str, type]) -> None:
        self.nodes = {name: node for table in tables for name, node in table.items()}
        self._objects: dict[tuple[str, str], object] = {}
        self._cached: dict[str, tuple] = {}

    def run(self, workflow: dict) -> tuple[dict[str, tuple], list[str]]:
        """Outputs by node, and the nodes that ran. Raises `RefusedWorkflowError`, and whatever a node raises."""
        workflow = json.loads(json.dumps(workflow))
        reasons = [f"{key}: {reason}" for key in workflow for reason in self._reasons(workflow, key)]
        if not any(getattr(self.nodes.get(each["class_type"]), "OUTPUT_NODE", False) for each in workflow.values()):
            reasons.append("there is no output node")
        if reasons:
            raise RefusedWorkflowError(*reasons)
        outputs: dict[str, tuple] = {}
        ran: list[str] = []
        with torch.inference_mode():
            for key, entry in workflow.items():
                if getattr(self.nodes[entry["class_type"]], "OUTPUT_NODE", False):
                    self._make(workflow, key, outputs, ran)
        self._cached = {self._signature(workflow, key): value for key, value in outputs.items()}
        return outputs, ran

    def _make(self, workflow: dict, key: str, outputs: dict[str, tuple], ran: list[str]) -> tuple:
        if key in outputs:
            return outputs[key]
        entry = workflow[key]
        node = self.nodes[entry["class_type"]]
        given = {
            name: self._make(workflow, value[0], outputs, ran)[value[1]] if isinstance(value, list) else value
            for name, value in entry["inputs"].items()
        }
        signature = self._signature(workflow, key)
        if signature in self._cached:
            outputs[key] = self._cached[signature]
            return outputs[key]
        made = self._objects.setdefault((key, entry["class_type"]), node())
        result = getattr(made, node.FUNCTION)(**given)
        result = result.get("result", ()) if isinstance(result, dict) else result
        assert isinstance(result, tuple) and len(result) == len(node.RETURN_TYPES), f"{key} returned {result!r:.80}"
        for kind, value in zip(node.RETURN_TYPES, result, strict=True):
            assert (problem := value_problem(kind, value)) is None, f"{key} gave {kind}: {problem}"
        outputs[key] = result
        ran.append(key)
        return result

    def _signature(self, workflow: dict, key: str) -> str:
        """What decides a node's outputs: its constants, what it says of outer changes, and all that it is made from."""
        entry = workflow[key]
        node = self.nodes[entry["class_type"]]
        constants = {name: value for name, value in entry["inputs"].items() if not isinstance(value, list)}
        changed = node.IS_CHANGED(**constants) if hasattr(node, "IS_CHANGED") else False
        links = {
            name: (self._signature(workflow, value[0]), value[1])
            for name, value in entry["inputs"].items()
            if isinstance(value, list)
        }
        return json.dumps([entry["class_type"], repr(changed), constants, links], sort_keys=True)

    def _reasons(self, workflow: dict, key: str) -> list[str]:
        """Why a node of a workflow would be refused."""
        entry = workflow[key]
        node = self.nodes.get(entry["class_type"])
        if node is None:
            return [f"there is no node {entry['class_type']}"]
        inputs = node.INPUT_TYPES()
        known = {**inputs["required"], **inputs.get("optional", {})}
        given = entry["inputs"]
        reasons = [f"required input is missing: {name}" for name in inputs["required"] if name not in given]
        reasons += [f"{name} is no input" for name in given if name not in known]
        constants = {name: value for name, value in given.items() if not isinstance(value, list)}
        method = getattr(node, "VALIDATE_INPUTS", None)
        asked = inspect.getfullargspec(method).args[1:] if method else []
        for name in known.keys() & given.keys() - set(asked):
            reasons += self._input_reasons(workflow, name, known[name], given[name])
        if method and not reasons:
            answer = method(**{name: value for name, value in constants.items() if name in asked})
            reasons += [] if answer is True else [answer]
        return reasons

    def _input_reasons(self, workflow: dict, name: str, known: tuple, value: object) -> list[str]:
        kind, options = known[0], known[1] if len(known) > 1 else {}
        if isinstance(value, list):
            source, index = value
            types = self.nodes[workflow[source]["class_type"]].RETURN_TYPES
            return [] if types[index] == kind else [f"{name}, {types[index]} != {kind}"]
        if isinstance(kind, list):
            return [] if value in kind else [f"value not in list: {name}: {value!r} not in {kind}"]
        if kind not in PYTHON_TYPES or options.get("forceInput"):
            return [f"{name} takes a link"]
        if not isinstance(value, PYTHON_TYPES[kind]):
            return [f"{name}: {value!r} is no {kind}"]
        if "min" in options and value < options["min"]:
            return [f"{name}: {value} smaller than min of {options['min']}"]
        if "max" in options and value > options["max"]:
            return [f"{name}: {value} bigger than max of {options['max']}"]
        return []


class ImageSink:
    """Stands for SaveImage and PreviewImage of the core: keeps what it was given."""

    OUTPUT_NODE, RETURN_TYPES, FUNCTION, CATEGORY = True, (), "take", "image"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE",)}, "optional": {"filename_prefix": ("STRING", {"default": "ComfyUI"})}}

    def take(self, images, filename_prefix="ComfyUI"):
        assert value_problem("IMAGE", images) is None
        return {"ui": {"images": [filename_prefix] * len(images)}}


class PreviewSink(ImageSink):
    """Stands for PreviewImage of the core."""


class SolidMaskStandIn:
    """Stands for SolidMask of the core: a mask of one value."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MASK",), "solid", "mask"

    @classmethod
    def INPUT_TYPES(cls):
        side = ("INT", {"default": 512, "min": 1, "max": 16384, "step": 1})
        value = ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01})
        return {"required": {"value": value, "width": side, "height": side}}

    def solid(self, value, width, height):
        return (torch.full((1, height, width), value, dtype=torch.float32),)


class MaskCompositeStandIn:
    """Stands for MaskComposite of the core, of its operations for `add`: a mask laid over another at a place."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MASK",), "combine", "mask"

    @classmethod
    def INPUT_TYPES(cls):
        place = ("INT", {"default": 0, "min": 0, "max": 16384, "step": 1})
        operations = (["multiply", "add", "subtract", "and", "or", "xor"],)
        masks = {"destination": ("MASK",), "source": ("MASK",)}
        return {"required": {**masks, "x": place, "y": place, "operation": operations}}

    def combine(self, destination, source, x, y, operation):
        assert operation == "add"
        laid = destination.clone()
        laid[:, y : y + source.shape[1], x : x + source.shape[2]] += source
        return (laid.clamp(0, 1),)


CORE = {
    "SaveImage": ImageSink,
    "PreviewImage": PreviewSink,
    "SolidMask": SolidMaskStandIn,
    "MaskComposite": MaskCompositeStandIn,
}
