"""Whole workflows as ComfyUI runs them, and what stays loaded from one run to the next."""

from __future__ import annotations

import json
import os
import sys
from typing import NamedTuple

import numpy as np
import pytest
from support import copy_bundle, need_torch

from engines import Pipeline
from engines.bundle.bundle import DEMO_BUNDLE
from tests.kept import ROOT

torch = need_torch()

from tests.integrations.comfyui.executor import CORE, ComfyStandIn, RefusedWorkflowError  # noqa: E402

EXAMPLES = ROOT / "integrations" / "comfyui" / "example_workflows"


def example(name):
    return json.loads((EXAMPLES / name).read_text(encoding="utf-8"))


@pytest.fixture
def comfyui(comfy_nodes):
    return ComfyStandIn(CORE, comfy_nodes.NODE_CLASS_MAPPINGS)


class Loads(NamedTuple):
    loaded: list[str]
    closed: list[str]


@pytest.fixture
def loads(monkeypatch, comfy_nodes):
    """The paths that `Pipeline.load` was called with, from a shelf that is empty; `closed` has those closed since."""
    pipelines = sys.modules[f"{comfy_nodes.__name__}.pipelines"]
    shelf = pipelines.PipelineShelf()
    monkeypatch.setattr(pipelines, "_SHELF", shelf)
    loaded, closed, real, close = [], [], Pipeline.load.__func__, Pipeline.close

    def load(cls, path, **options):
        loaded.append(path)
        return real(cls, path, **options)

    def tell(pipeline):
        closed.append(str(pipeline.bundle.path))
        close(pipeline)

    monkeypatch.setattr(Pipeline, "load", classmethod(load))
    monkeypatch.setattr(Pipeline, "close", tell)
    yield Loads(loaded, closed)
    shelf.clear()
    assert sorted(closed) == sorted(loaded), "what was opened is closed once"


def test_every_example_is_here():
    assert {file.name for file in EXAMPLES.iterdir()} == {"draw.json", "edit.json"}


@pytest.mark.slow
def test_the_example_that_draws(comfyui):
    outputs, ran = comfyui.run(example("draw.json"))
    assert sorted(ran) == ["1", "2", "3", "4", "5"]
    with Pipeline.load(DEMO_BUNDLE) as pipeline:
        expected = pipeline.generate("parrot", seeds=[7, 8, 9, 10]).images
        previews = [preview.images[0] for preview in pipeline.stream("parrot", seeds=7)]
    np.testing.assert_array_equal((outputs["2"][0] * 255).round().numpy(), expected)
    np.testing.assert_array_equal((outputs["4"][0] * 255).round().numpy(), np.stack(previews))


def test_the_example_that_edits(comfyui):
    outputs, _ = comfyui.run(example("edit.json"))
    dog, edited, again = (outputs[key][0] for key in ("2", "6", "9"))
    assert edited.shape == again.shape == (4, 64, 64, 3)
    assert torch.equal(edited[:, 36:], dog[:, 36:].expand(4, -1, -1, -1)), "the lower half is kept"
    assert (edited[:, :32] - dog[:, :32]).abs().mean() > 0.02
    assert (again - edited).abs().mean() < 0.05


@pytest.mark.slow
def test_a_second_run_computes_what_changed(comfyui, loads):
    workflow = example("draw.json")
    comfyui.run(workflow)
    outputs, ran = comfyui.run(workflow)
    assert ran == []
    workflow["2"]["inputs"]["seed"] = 8
    changed, ran = comfyui.run(workflow)
    assert ran == ["2", "3"]
    assert not torch.equal(changed["2"][0][0], outputs["2"][0][0])
    assert len(loads.loaded) == 1


@pytest.mark.slow
def test_the_bundle_is_loaded_anew_when_its_folder_changes(comfyui, loads, tmp_path):
    folder = copy_bundle(DEMO_BUNDLE, tmp_path / "bundle")
    workflow = example("draw.json")
    workflow["1"]["inputs"]["path"] = str(folder)
    outputs, _ = comfyui.run(workflow)
    assert comfyui.run(workflow)[1] == []
    os.utime(folder / "weights.bin", (1, 1))
    again, ran = comfyui.run(workflow)
    assert sorted(ran) == ["1", "2", "3", "4", "5"], "all that is made with it runs again"
    assert torch.equal(again["2"][0], outputs["2"][0])
    (folder / "plans" / "of-a-gpu").mkdir(parents=True)
    (folder / "plans" / "of-a-gpu" / "step.plan").touch()
    assert len(comfyui.run(workflow)[1]) == 5, "so it does when plans were built"
    os.utime(folder / "plans" / "of-a-gpu" / "step.plan", (1, 1))
    assert len(comfyui.run(workflow)[1]) == 5, "and when they were built anew"
    assert loads == ([str(folder)] * 4, [str(folder)] * 3)


def test_two_models_stay_loaded_and_a_third_takes_the_place_of_the_oldest(loads, node, tmp_path):
    chosen = []
    for name in ("a", "b", "c"):
        copy_bundle(DEMO_BUNDLE, tmp_path / name)
        chosen += node("LoadBundle", bundle="embedded demo", path=str(tmp_path / name), threads=1)
    names = [str(tmp_path / name) for name in ("a", "b", "c")]
    assert loads == (names, names[:1])
    images = [node("Draw", each, class_name="0", seed=0, count=1)[0] for each in (chosen[1], chosen[2], chosen[0])]
    assert loads == ([*names, names[0]], names[:2]), "what was dropped is loaded again when a node asks for it"
    assert torch.equal(images[0], images[2])


def wrong(key, **inputs):
    workflow = example("edit.json")
    workflow[key]["inputs"] |= inputs
    return workflow


@pytest.mark.parametrize(
    ("workflow", "reason"),
    [
        (wrong("1", bundle="gone"), "not in list"),
        (wrong("1", path="nowhere"), "nowhere is no bundle"),
        (wrong("2", count=65), "bigger than max of 64"),
        (wrong("2", cfg=-2.0), "smaller than min of -1"),
        (wrong("2", steps=20), "steps is no input"),
        (wrong("2", pipeline=["2", 0]), "IMAGE != VAR_PIPELINE"),
        (wrong("9", tokens=["6", 0]), "IMAGE != VAR_TOKENS"),
        (wrong("6", fit="squash"), "not in list"),
    ],
)
def test_a_wrong_workflow_is_refused_before_it_runs(comfyui, loads, workflow, reason):
    with pytest.raises(RefusedWorkflowError, match=reason):
        comfyui.run(workflow)
    assert loads.loaded == []
