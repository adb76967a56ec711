"""The nodes inside of ComfyUI itself, where there is one: its server on the CPU, asked over HTTP as its frontend asks.

VAR_EXPORT_COMFYUI names a clone of ComfyUI, VAR_EXPORT_COMFYUI_PYTHON the Python that runs it (this one by default).
"""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import copy_bundle

from engines import Pipeline
from engines.bundle.bundle import DEMO_BUNDLE
from tests.kept import ROOT
from tests.serving import eventually

CLONE = os.environ.get("VAR_EXPORT_COMFYUI")
FOLDER = ROOT / "integrations" / "comfyui"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CLONE is None, reason="VAR_EXPORT_COMFYUI names no clone of ComfyUI"),
]


class ComfyServer:
    """ComfyUI, listening."""

    def __init__(self, address: str, base: Path) -> None:
        self.address, self.base = address, base

    def ask(self, path: str, document: object = None):
        """The answer's JSON; of a refusal too."""
        data = None if document is None else json.dumps(document).encode()
        request = urllib.request.Request(f"{self.address}{path}", data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.loads(response.read() or b"null")
        except urllib.error.HTTPError as error:
            return json.loads(error.read())

    def started(self, workflow: dict) -> str:
        return self.ask("/prompt", {"prompt": workflow})["prompt_id"]

    def ended(self, key: str) -> dict:
        return eventually(lambda: self.ask(f"/history/{key}").get(key), seconds=120)

    def run(self, workflow: dict) -> dict:
        return self.ended(self.started(workflow))

    def pictures(self, ended: dict, node: str) -> np.ndarray:
        """What SaveImage or PreviewImage has written, (B, h, w, 3)."""
        pictures = []
        for image in ended["outputs"][node]["images"]:
            place = f"/view?filename={image['filename']}&subfolder={image['subfolder']}&type={image['type']}"
            with urllib.request.urlopen(f"{self.address}{place}", timeout=60) as response:
                pictures.append(np.asarray(Image.open(io.BytesIO(response.read())).convert("RGB")))
        return np.stack(pictures)


def said(ended: dict, kind: str) -> dict:
    """The message of this kind that ComfyUI sent while a workflow ran."""
    return dict(ended["status"]["messages"])[kind]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    base = tmp_path_factory.mktemp("comfyui")
    for name in ("custom_nodes", "models", "input", "output", "user"):
        (base / name).mkdir()
    (base / "custom_nodes" / "var-export").symlink_to(FOLDER)
    copy_bundle(DEMO_BUNDLE, base / "models" / "var_export" / "mine")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    python = os.environ.get("VAR_EXPORT_COMFYUI_PYTHON", sys.executable)
    options = ["--cpu", "--port", str(port), "--base-directory", str(base), "--disable-api-nodes"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    log = base / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [python, "main.py", *options], cwd=CLONE, env=environment, stdout=file, stderr=subprocess.STDOUT
        )
    try:
        listening = eventually(lambda: process.poll() is not None or "To see the GUI" in log.read_text(), seconds=120)
        assert listening and process.poll() is None, log.read_text()[-3000:]
        yield ComfyServer(f"http://127.0.0.1:{port}", base)
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def reference():
    with Pipeline.load(DEMO_BUNDLE) as pipeline:
        yield pipeline


def example(name: str, **changes: dict) -> dict:
    workflow = json.loads((FOLDER / "example_workflows" / name).read_text(encoding="utf-8"))
    for key, inputs in changes.items():
        workflow[key.removeprefix("node_")]["inputs"] |= inputs
    return workflow


def test_it_knows_the_nodes(server, comfy_nodes):
    known = server.ask("/object_info")
    for name, node in comfy_nodes.NODE_CLASS_MAPPINGS.items():
        assert known[name]["display_name"] == comfy_nodes.NODE_DISPLAY_NAME_MAPPINGS[name]
        assert known[name]["output"] == list(node.RETURN_TYPES)
        assert known[name]["output_name"] == list(node.RETURN_NAMES)
    assert known["VarExportLoadBundle"]["input"]["required"]["bundle"][0] == ["mine", "embedded demo"]
    assert sorted(server.ask("/workflow_templates")["var-export"]) == ["draw", "edit"]


def test_the_examples_give_the_pixels_of_the_pipeline(server, reference):
    ended = server.run(example("draw.json"))
    expected = reference.generate("parrot", seeds=[7, 8, 9, 10]).images
    np.testing.assert_array_equal(server.pictures(ended, "3"), expected)
    previews = [preview.images[0] for preview in reference.stream("parrot", seeds=7)]
    np.testing.assert_array_equal(server.pictures(ended, "5"), np.stack(previews))
    ended = server.run(example("edit.json"))
    dog, area = reference.generate("dog face", seeds=0).images[0], np.zeros((64, 64), bool)
    area[:32] = True
    edited = reference.edit(dog, area, "frog", seeds=[3, 4, 5, 6], composite=True).images
    np.testing.assert_array_equal(server.pictures(ended, "7"), edited)
    np.testing.assert_array_equal(server.pictures(ended, "10"), reference.reconstruct(edited))


def test_what_did_not_change_is_not_computed_again(server):
    mine = example("draw.json", node_1={"bundle": "mine"})
    server.run(mine)
    assert len(said(server.run(mine), "execution_cached")["nodes"]) == 5
    os.utime(server.base / "models" / "var_export" / "mine" / "weights.bin", (1, 1))
    ended = server.run(mine)
    assert said(ended, "execution_cached")["nodes"] == []
    assert ended["status"]["status_str"] == "success"


def test_what_is_wrong_is_shown_as_one_line(server):
    refused = server.ask("/prompt", {"prompt": example("draw.json", node_1={"path": "nowhere"})})
    (error,) = refused["node_errors"]["1"]["errors"]
    assert error["type"] == "custom_validation_failed" and "nowhere is no bundle" in error["details"]
    failed = said(server.run(example("draw.json", node_2={"class_name": "parot"})), "execution_error")
    assert failed["node_type"] == "VarExportDraw"
    assert failed["exception_message"].strip().startswith("no class is called 'parot': did you mean parrot")
    assert failed["exception_message"].strip().count("\n") == 0


def test_cancel_ends_a_drawing_and_the_next_one_works(server):
    key = server.started(example("draw.json", node_2={"count": 64, "seed": 1000}))
    time.sleep(0.5)
    server.ask("/interrupt", {})
    assert said(server.ended(key), "execution_interrupted")["node_type"].startswith("VarExport")
    assert server.run(example("draw.json", node_2={"seed": 12}))["status"]["status_str"] == "success"
