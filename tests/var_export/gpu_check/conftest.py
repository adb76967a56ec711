"""A GPU check without a GPU: the emulated CUDA and TensorRT, a tiny model as d16, and steps in this process."""

import functools
import json
import shutil

import pytest
import torch

import engines.backends.cuda
from calib.keys import code_digest
from engines.backends.tensorrt import library
from engines.errors import BackendError
from tests.emulation import HostCuda, HostTensorRT, HostTensorRTX
from tests.kept import made_once
from tests.support import tiny_config
from var_export.cli.common import torch_threads
from var_export.cli.main import main
from var_export.gpu_check import building, hardware, isolation, race, steps, worker
from var_export.gpu_check.cases import CheckStep, StepJob

# Little to trace; heads of 64 channels, as the cache's alignment wants.
VAE = {"ch_mult": (1,), "using_sa": False, "using_mid_sa": False}
TINY = tiny_config("var-d16-256-random", depth=1, width=128, heads=2, vae=VAE)
QUICK = ("--model", "d16", "--precision", "fp32,fp16", "--backend", "tensorrt", "--runs", "2", "--batch", "1,2")


@pytest.fixture(scope="session")
def bundles():
    """The tiny model's bundles. Shared: copy them before changing a file."""

    def make(folder):
        with pytest.MonkeyPatch.context() as patch, torch_threads(1):
            patch.setattr(building, "RANDOM", {"d16": TINY})
            for precision in ("fp32", "fp16"):
                step = CheckStep(kind="bundle", model="d16", precision=precision, form="both")
                building.bundle(StepJob(step=step, out=folder), lambda line, done=None: None)

    return made_once("gpu-check", f"{code_digest(())} {TINY}", make) / "bundles"


@pytest.fixture
def emulated(monkeypatch, tmp_path):
    """The modules `cuda` and `tensorrt` of a machine with one GPU, in host memory; returns them by name."""
    cuda = HostCuda(name="Emulated GPU", capability=(8, 9))
    modules = {"cuda": cuda, "tensorrt": HostTensorRT(cuda), "tensorrt-rtx": HostTensorRTX(cuda)}
    monkeypatch.setattr(engines.backends.cuda, "import_cuda_runtime", lambda: cuda)
    monkeypatch.setattr(library, "load", lambda name: library.Library(library.FLAVOURS[name], modules[name]))
    monkeypatch.setattr(building, "RANDOM", {"d16": TINY})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hardware, "gpus", lambda: [])
    monkeypatch.setattr(steps, "code_digest", lambda *names: "this code")
    return modules


@pytest.fixture
def in_process(monkeypatch):
    """Steps run here; returns the names of those that ran. `before` is called with each job."""

    def run(job, *, log, tell):
        run.before(job)
        if job.step.kind != "probe":
            run.steps.append(job.step.name)
        outcome = isolation.Outcome()

        def send(message):
            outcome.take(json.loads(json.dumps(message)), tell)

        worker.perform(StepJob.from_json(job.to_json()), send)
        return outcome

    run.steps, run.before = [], lambda job: None
    monkeypatch.setattr(isolation, "run", run)
    return run


@pytest.fixture
def torch_on_cpu(monkeypatch):
    """PyTorch races on the CPU, in BF16, and compiles for nothing but shapes."""

    def raced(job, tell):
        compiler = functools.partial(torch.compile, backend="eager")
        return race.race_on(job, tell, device=torch.device("cpu"), dtype=torch.bfloat16, compiler=compiler)

    monkeypatch.setattr(race, "race_on_gpu", raced)
    monkeypatch.setattr(hardware, "_probe_torch", lambda device: {"torch": "2.13.0", "cuda": "13.0"})
    with torch_threads(1):
        yield


@pytest.fixture
def no_torch_gpu(monkeypatch):
    def refuse(device):
        raise BackendError("PyTorch was built without CUDA")

    monkeypatch.setattr(hardware, "_probe_torch", refuse)


@pytest.fixture
def out(tmp_path, bundles):
    """A folder for a check that finds its bundles there."""
    shutil.copytree(bundles, tmp_path / "out/bundles")
    return tmp_path / "out"


@pytest.fixture
def check(capsys, out):
    """Run `var-export gpu-check` there; returns exit code, stdout, stderr, document and page."""

    def run(*options, quick=QUICK):
        code = main(["gpu-check", *quick, "--out", str(out), *map(str, options)])
        captured = capsys.readouterr()
        document = json.loads((out / "gpu-check.json").read_text()) if (out / "gpu-check.json").exists() else None
        page = (out / "gpu-check.md").read_text() if document else None
        return code, captured.out, captured.err, document, page

    return run
