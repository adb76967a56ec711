"""What is planned on which GPU, in which order; and the small parts around it."""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from engines.bundle.bundle import Bundle
from engines.errors import BackendError, BundleError
from engines.spec.choices import FLOAT_PRECISIONS, FORMS, TARGETS
from var_export.gpu_check import building, hardware
from var_export.gpu_check.cases import (
    CHECKED_BACKENDS,
    MODELS,
    PROBES,
    RIVALS,
    CheckStep,
    Settings,
    StepJob,
    plan_steps,
)
from var_export.gpu_check.report import case_of
from var_export.gpu_check.store import Record, Store

NO_PROBLEM = dict.fromkeys(PROBES)


def kinds(steps):
    return [step.kind for step in steps]


def test_the_matrix_is_that_of_the_project():
    settings = Settings()
    assert (settings.precisions, settings.forms) == (FLOAT_PRECISIONS, FORMS)
    assert set(settings.backends) == set(CHECKED_BACKENDS) == set(TARGETS)
    assert ("demo", *building.RANDOM) == MODELS
    assert building.RANDOM["d16"].transformer.depth == 16


def test_an_rtx_card():
    """RTX 4090: both products; races last; one set of plans for a single batch."""
    settings = Settings(backends=("tensorrt", "tensorrt-rtx"))
    steps, skipped = plan_steps(settings, NO_PROBLEM, "8.9")
    assert skipped == []
    assert kinds(steps).count("bundle") == 6
    assert kinds(steps).count("plans") == 12 + 2
    assert kinds(steps).count("verify") == kinds(steps).count("bench") == 24 + 2
    races = steps[-24 * 4 :]
    assert kinds(steps).count("race") == kinds(races).count("race") == len(races)
    assert [step.rival for step in races[::24]] == list(RIVALS)
    assert len({step.name for step in steps}) == len({step.slug for step in steps}) == len(steps)
    assert kinds(steps)[:6] == ["bundle", "plans", "verify", "bench", "verify", "bench"]


def test_a_server_card_has_no_tensorrt_rtx():
    steps, skipped = plan_steps(Settings(), NO_PROBLEM, "9.0")
    assert {step.backend for step in steps} == {"", "tensorrt", "onnxruntime"}
    assert "TensorRT-RTX knows no compute capability 9.0" in skipped[0].reason
    assert not any(step.precision == "bf16" and step.backend == "onnxruntime" for step in steps)


def test_a_jetson_without_cuda_in_pytorch():
    problems = NO_PROBLEM | {"tensorrt-rtx": "not installed", "onnxruntime": "no CUDA", "torch": "no CUDA build"}
    steps, skipped = plan_steps(Settings(), problems, "8.7")
    assert {step.backend for step in steps} == {"", "tensorrt"}
    assert "race" not in kinds(steps)
    assert [(s.what, s.reason) for s in skipped] == [
        ("tensorrt-rtx", "not installed"),
        ("onnxruntime", "no CUDA"),
        ("PyTorch on the GPU", "no CUDA build"),
    ]


def test_a_turing_card_has_no_bf16():
    steps, skipped = plan_steps(Settings(models=("demo",), backends=("tensorrt",)), NO_PROBLEM, "7.5")
    assert {step.precision for step in steps} == {"fp32", "fp16"}
    assert skipped[0].reason == "BF16 needs compute capability 8.0, this GPU has 7.5"


def test_onnxruntime_needs_no_plans():
    steps, _ = plan_steps(Settings(models=("d16",), backends=("onnxruntime",), torch=False), NO_PROBLEM, "8.9")
    assert "plans" not in kinds(steps)
    assert {step.batch for step in steps} == {""}


def test_one_batch_alone_is_not_built_twice():
    steps, _ = plan_steps(Settings(batches=(1,), backends=("tensorrt",)), NO_PROBLEM, "8.9")
    assert {step.batch for step in steps if step.kind == "plans"} == {"1:1:1"}


def test_a_job_travels():
    job = StepJob(step=CheckStep(kind="bench", model="d16"), out=Path("a"), folder=Path("b"), batches=(1, 8), runs=3)
    assert StepJob.from_json(job.to_json()) == job
    assert StepJob.from_json(replace(job, folder=None).to_json()).folder is None


def test_a_damaged_record_is_no_record(tmp_path):
    store, step = Store(tmp_path), CheckStep(kind="bench", model="d16")
    record = Record(step=step, key="k" * 64, started="now", seconds=1.0, result={})
    store.save(record)
    assert store.load(step, record.key) == record
    assert store.load(step, "k" * 12 + "x" * 52) is None
    assert case_of(record.to_dict()) == "d16"
    next(tmp_path.iterdir()).write_text("{")
    assert store.load(step, record.key) is None


@pytest.mark.slow
def test_a_part_of_a_bundle(bundles, tmp_path):
    source, folder = bundles / "d16-fp16", tmp_path / "part"
    building.narrow(source, folder, "stepwise")
    part = Bundle.open(folder)
    assert part.forms == ("stepwise",)
    assert (folder / "weights.bin").stat().st_size == (source / "weights.bin").stat().st_size
    assert not (folder / "fused.onnx").exists()
    with pytest.raises(BundleError, match="no fused graph"):
        part.graph_path("fused")
    before = (folder / "manifest.json").stat().st_mtime_ns
    building.narrow(source, folder, "stepwise")
    assert (folder / "manifest.json").stat().st_mtime_ns == before
    (folder / "step.onnx").unlink()
    building.narrow(source, folder, "stepwise")
    Bundle.open(folder)


def test_without_pytorch_a_bundle_that_was_copied_serves(out, monkeypatch, emulated):
    monkeypatch.setitem(__import__("sys").modules, "var_export.build", None)
    job = StepJob(step=CheckStep(kind="bundle", model="d16", precision="fp16", form="both"), out=out)
    done = building.bundle(job, lambda line, done=None: None)
    assert (done["reused"], done["name"]) == (True, "var-d16-256-random")
    bf16 = replace(job, step=replace(job.step, precision="bf16"))
    with pytest.raises(BackendError, match=r"or copy .*d16-bf16 from another machine's check"):
        building.bundle(bf16, lambda line, done=None: None)
    (out / "bundles/d16-fp32").rename(out / "bundles/d16-bf16")
    with pytest.raises(BackendError, match="holds fp32, both, not bf16, both"):
        building.bundle(bf16, lambda line, done=None: None)


SMI = """NVIDIA GeForce RTX 4090, 580.95, P8, 210 MHz, 3105 MHz, 405 MHz, 33, 18.70 W, 450.00 W, 0 %, 2 MiB, 24564 MiB
Orin (nvgpu), 540.4.0, [N/A], [N/A], [N/A], [N/A], [N/A], [N/A], [N/A], [N/A], [N/A], [N/A]
a line of something else
"""


def test_what_nvidia_smi_says(monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess((), 0, SMI))
    first, second = hardware.gpus()
    assert (first["name"], first["driver_version"], first["power.limit"]) == (
        *("NVIDIA GeForce RTX 4090", "580.95", "450.00 W"),
    )
    assert second["clocks.sm"] == "[N/A]"
    assert hardware.system()["driver"] == "580.95"


@pytest.mark.parametrize("error", [FileNotFoundError("nvidia-smi"), subprocess.TimeoutExpired("nvidia-smi", 20)])
def test_without_nvidia_smi(monkeypatch, error):
    def missing(*_, **__):
        raise error

    says = {
        "/proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19\nGCC",
        "/etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081\nmore",
    }
    monkeypatch.setattr(subprocess, "run", missing)
    monkeypatch.setattr(hardware, "system_file", lambda path: says.get(path, ""))
    assert hardware.system() == {
        "driver": "535.104.05",
        "nvidia_smi": [],
        "jetson": "# R36 (release), REVISION: 4.3, GCID: 38968081",
        "power_mode": None,
    }


def test_a_driver_module_that_is_open_or_of_a_jetson(monkeypatch):
    says = "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build"
    monkeypatch.setattr(hardware, "system_file", lambda path: says)
    assert hardware._kernel_module() == "540.4.0"
