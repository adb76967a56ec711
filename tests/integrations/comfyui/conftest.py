"""The nodes as ComfyUI loads them, a demo that is open, and a stand-in for ComfyUI's own modules."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
from support import need_torch

from tests.kept import ROOT

FOLDER = ROOT / "integrations" / "comfyui"


@pytest.fixture(scope="session")
def comfy_nodes():
    """The module that ComfyUI has after it has imported the folder."""
    need_torch()
    from tests.integrations.comfyui.executor import load_folder

    return load_folder(str(FOLDER))


@pytest.fixture(scope="session")
def node(comfy_nodes):
    """Makes a node by the name that workflows hold, and calls its function: what a workflow's run does to one node."""

    def call(name, *given, **inputs):
        made = comfy_nodes.NODE_CLASS_MAPPINGS[f"VarExport{name}"]()
        return getattr(made, made.FUNCTION)(*given, **inputs)

    return call


@pytest.fixture(scope="session")
def demo(node):
    """The embedded demo as the wire of type VAR_PIPELINE carries it."""
    (pipeline,) = node("LoadBundle", bundle="embedded demo", threads=1)
    return pipeline


@pytest.fixture
def comfy(monkeypatch, tmp_path):
    """ComfyUI's modules that the nodes look for, with what they were told: `bars`, and `cancel_at` for Cancel."""
    told = SimpleNamespace(bars=[], asked=0, cancel_at=None, models=tmp_path / "models", added=[])

    class InterruptProcessingException(Exception):
        pass

    class ProgressBar:
        def __init__(self, total, node_id=None):
            self.seen = []
            told.bars.append(self)

        def update_absolute(self, value, total=None, preview=None):
            self.seen.append((value, total))

    def throw_exception_if_processing_interrupted():
        told.asked += 1
        if told.asked == told.cancel_at:
            raise InterruptProcessingException

    told.Interrupted = InterruptProcessingException
    management = SimpleNamespace(throw_exception_if_processing_interrupted=throw_exception_if_processing_interrupted)
    utils = SimpleNamespace(ProgressBar=ProgressBar)
    paths = SimpleNamespace(
        models_dir=str(told.models),
        folder_names_and_paths={},
        get_folder_paths=lambda name: paths.folder_names_and_paths[name][0],
    )
    told.paths = paths
    package = ModuleType("comfy")
    modules = {"comfy": package, "comfy.model_management": management, "comfy.utils": utils, "folder_paths": paths}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return told
