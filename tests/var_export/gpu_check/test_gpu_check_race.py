"""The rival: the reference in autocast, the same tokens however it is held, and compiled for every shape."""

import functools

import numpy as np
import pytest
import torch

from engines.spec.sampling import Sampling
from engines.spec.uniforms import uniforms
from tests.support import tiny_config
from var_export.gpu_check import race
from var_export.gpu_check.cases import CheckStep, StepJob
from var_export.gpu_check.race import Rival, sample_alike
from var_export.model.reference import Reference
from var_export.model.sampling import sample

pytestmark = pytest.mark.slow

CONFIG = tiny_config(patch_nums=(1, 2, 3, 4, 5, 6, 7, 8, 9, 10), depth=1, vae={"ch_mult": (1,)})
SAMPLING = Sampling(cfg=2.0, top_k=20, top_p=0.9)
CPU = torch.device("cpu")
COMPILER = functools.partial(torch.compile, backend="eager")
CLASSES, SEEDS = [0, 3], [5, 9]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rival(kind="eager", **more):
    reference = Reference.random(CONFIG)
    options = {"sampling": SAMPLING, "max_top_k": 64, "device": CPU, "dtype": torch.bfloat16}
    return Rival(reference, kind, **options | more)


@pytest.mark.parametrize(("top_k", "top_p"), [(20, 0.9), (1, 0.0), (0, 0.0), (0, 0.8)])
def test_the_sampler_of_a_batch_draws_what_the_references_does(top_k, top_p):
    generator = torch.Generator().manual_seed(3)
    logits, numbers = torch.randn(3, 5, 64, generator=generator), torch.rand(3, 5, generator=generator)
    settings = {
        "temperature": torch.full((3,), 0.8),
        "top_k": torch.full((3,), top_k),
        "top_p": torch.full((3,), top_p),
        "max_top_k": 64,
    }
    assert torch.equal(sample_alike(logits, numbers, **settings), sample(logits, numbers, **settings))


def test_it_draws_what_the_reference_draws():
    reference = Reference.random(CONFIG)
    settings = {"cfg": 2.0, "temperature": 1.0, "top_k": 20, "top_p": 0.9}
    with torch.autocast("cpu", torch.bfloat16):
        drawn = reference.generate(
            torch.tensor(CLASSES),
            torch.from_numpy(uniforms(SEEDS, CONFIG.num_tokens)),
            **{name: torch.full((2,), value) for name, value in settings.items()},
            max_top_k=64,
        )
    assert np.array_equal(rival().draw(CLASSES, SEEDS, 2.0), drawn.tokens.numpy())


def test_weights_in_half_precision_change_no_token():
    assert np.array_equal(rival("eager-half").draw(CLASSES, SEEDS, 2.0), rival().draw(CLASSES, SEEDS, 2.0))


def test_ten_scales_are_all_compiled():
    """PyTorch's own limit is 8 shapes of a function; what is beyond it would run uncompiled, and nobody would know."""
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    counters.clear()
    with race._all_shapes():
        compiled = rival("compiled-graphs", compiler=COMPILER)
        drawn = compiled.draw(CLASSES, SEEDS, 2.0)
    assert counters["stats"]["unique_graphs"] == CONFIG.num_scales + 1
    assert np.array_equal(drawn, rival("eager-half").draw(CLASSES, SEEDS, 2.0))
    torch.compiler.reset()


@pytest.fixture
def job(bundles, tmp_path, emulated):
    def make(kind, *, batches=(1,)):
        step = CheckStep(kind="race", model="d16", precision="fp16", backend="tensorrt", form="stepwise", rival=kind)
        return StepJob(step=step, out=tmp_path, folder=bundles / "d16-fp16", batches=batches, runs=2)

    return make


@pytest.fixture
def any_pipeline(monkeypatch, bundles):
    """The engines of ONNX Runtime's CPU in place of the GPU's."""
    from engines.draw.pipeline import Pipeline
    from var_export.gpu_check import hardware

    def open_pipeline(job, *, max_batch):
        return Pipeline.load(job.folder, backend="onnxruntime", threads=1, form=job.step.form, max_batch=max_batch)

    monkeypatch.setattr(hardware, "open_pipeline", open_pipeline)


def test_a_compiler_that_cannot_at_all_is_an_error(job, any_pipeline):
    def compiler(function, **options):
        raise RuntimeError("no C compiler")

    with pytest.raises(RuntimeError, match="no C compiler"):
        race.race_on(job("compiled"), lambda *_: None, device=CPU, dtype=torch.bfloat16, compiler=compiler)


def test_too_little_memory_for_one_batch_leaves_the_other(job, any_pipeline, monkeypatch):
    warm_up = Rival.warm_up

    def limited(self, batch, cfg):
        if batch == 2:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")
        return warm_up(self, batch, cfg)

    monkeypatch.setattr(Rival, "warm_up", limited)
    done = race.race_on(job("eager", batches=(1, 2)), lambda *_: None, device=CPU, dtype=torch.bfloat16)
    assert [row["problem"] for row in done["rows"]] == [None, "CUDA out of memory. Tried to allocate"]
