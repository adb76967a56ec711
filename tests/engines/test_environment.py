"""What can be done with what is installed, and the command that fixes the rest."""

import dataclasses

import pytest

from engines import environment
from engines.machine import machine

CPU = ("CPUExecutionProvider",)
FULL = {"onnxruntime": "1.25.0", "torch": "2.13.0+cpu", "onnx": "1.23.2", "onnxscript": "0.7", "safetensors": "0.8.0"}
EXPORT = [
    "torch>=2.9; extra == 'export'",
    'onnx>=1.19; extra == "export"',
    "numpy>=1.26",
    'huggingface_hub>=0.30; extra == "hub"',
]


@pytest.fixture(autouse=True)
def only_what_is_given(monkeypatch):
    monkeypatch.setattr(environment, "_version", lambda name: None)
    monkeypatch.setattr(environment.metadata, "requires", lambda name: EXPORT)


def capability(what, versions, available=CPU, problem=None):
    found = environment.capabilities({**dict.fromkeys(environment.PACKAGES), **versions}, available, problem)
    return next(c for c in found if c.what == what)


def test_all_is_there():
    assert capability("build bundles", FULL) == environment.Capability(
        "build bundles", True, "torch 2.13.0+cpu, onnx 1.23.2", None
    )
    assert capability(environment.RUN_ON_CPU, FULL).usable


@pytest.mark.parametrize(
    ("versions", "reason"),
    [
        ({"onnx": "1.23.2"}, "torch is not installed"),
        ({"torch": "2.8.1", "onnx": "1.23.2"}, "torch 2.8.1 is older than 2.9"),
        ({}, "torch is not installed, onnx is not installed"),
    ],
)
def test_what_is_missing_has_a_command(versions, reason):
    found = capability("build bundles", versions)
    assert (found.usable, found.reason, found.fix) == (False, reason, 'pip install "var-export[export]"')


def test_an_extra_is_known_without_metadata(monkeypatch):
    def unknown(name):
        raise environment.metadata.PackageNotFoundError

    monkeypatch.setattr(environment.metadata, "requires", unknown)
    assert not capability("build bundles", {"torch": "2.13"}).usable
    assert capability("build bundles", FULL).usable


def test_no_runtime():
    found = capability(environment.RUN_ON_CPU, {}, (), "No module named 'onnxruntime'")
    assert found.reason == "No module named 'onnxruntime'"
    assert found.fix == 'pip install "var-export[cpu]"'


def test_two_runtimes_are_one_too_many():
    both = {"onnxruntime": "1.25.0", "onnxruntime-gpu": "1.25.0"}
    (warning,) = environment.warnings(both, dataclasses.replace(machine(), quota=None))
    assert "pip uninstall onnxruntime onnxruntime-gpu" in warning
    assert environment.warnings(FULL, dataclasses.replace(machine(), quota=None)) == []


def test_a_container_with_less_than_its_cores():
    here = dataclasses.replace(machine(), quota=2.5, physical_cores=32)
    (warning,) = environment.warnings(FULL, here)
    assert "pass --threads 2" in warning


@pytest.mark.parametrize(
    ("version", "numbers"), [("2.13.0+cpu", (2, 13, 0)), ("1.20", (1, 20)), ("2.9.0a0+git1", (2, 9, 0)), ("x", ())]
)
def test_versions_compare_by_number(version, numbers):
    assert environment._numbers(version) == numbers
