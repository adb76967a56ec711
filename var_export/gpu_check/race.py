"""The PyTorch reference on the GPU in turns with an engine, A B A B: the same classes, seeds and guidance.

Four rivals, each from the class to pixels on the host, FP16 by autocast as the official demo does:

    eager            as the official demo: weights in FP32, which autocast converts wherever they are used
    eager-half       linear and convolution weights stored in FP16: the same results without the conversion
    compiled         those, with transformer and decoder compiled for every shape
    compiled-graphs  and launched as CUDA graphs; of its own, since PyTorch has known crashes with growing caches

All sample the whole batch at once, and let cuDNN choose its convolutions by trial.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from engines.bundle.bundle import Bundle
from engines.errors import OutOfMemoryError
from engines.fidelity.speed import race
from engines.progress import Progress
from engines.spec.sampling import Sampling
from var_export.gpu_check import building, hardware
from var_export.gpu_check.cases import StepJob
from var_export.live import draw_with
from var_export.model.reference import Reference
from var_export.model.sampling import sample

MODES = {"compiled": "default", "compiled-graphs": "reduce-overhead"}
"""The mode of torch.compile, by the kind of rival that is compiled."""
SHAPES = 64  # compiled per function, at most; PyTorch's default of 8 would leave the larger scales uncompiled
WARMUP = 4  # runs: CUDA graphs of PyTorch are recorded in the second


def sample_alike(logits: Tensor, uniforms: Tensor, *, max_top_k: int, **sampling: Tensor) -> Tensor:
    """`sample` for images that share their settings: all in one pass, where that goes image by image."""
    B, L, V = logits.shape
    one = {name: value[:1] for name, value in sampling.items()}
    return sample(logits.reshape(1, B * L, V), uniforms.reshape(1, B * L), max_top_k=max_top_k, **one).view(B, L)


class Rival(Reference):
    """The reference on one device in autocast; see the module for its `kind`."""

    sample = staticmethod(sample_alike)

    def __init__(
        self,
        reference: Reference,
        kind: str,
        *,
        sampling: Sampling,
        max_top_k: int,
        device: torch.device,
        dtype: torch.dtype,
        compiler: Callable[..., Any] = torch.compile,
    ) -> None:
        """Moves the reference to the device; `compiler` is for the compiled kinds."""
        super().__init__(reference.vae.to(device), reference.var.to(device))
        self.sampling, self.max_top_k, self.device, self.dtype, self.mode = (
            sampling,
            max_top_k,
            device,
            dtype,
            MODES.get(kind),
        )
        if kind != "eager":
            for module in (*self.vae.modules(), *self.var.modules()):
                if isinstance(module, nn.Linear | nn.Conv2d):
                    module.to(dtype)
        if self.mode is not None:
            options = {"mode": self.mode, "dynamic": False}
            self.var.forward = compiler(self.var.forward, **options)  # type: ignore[method-assign]
            self.vae.decode = compiler(self.vae.decode, **options)  # type: ignore[method-assign]

    def draw(self, classes: Sequence[int], seeds: Sequence[int], cfg: float) -> NDArray[np.int64]:
        """Tokens (B, T) of images that are drawn all the way to pixels on the host."""
        sampling = replace(self.sampling, cfg=cfg)
        draw = draw_with(self, sampling, self.max_top_k, device=self.device, autocast=self.dtype)
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return draw(classes, seeds)

    def warm_up(self, batch: int, cfg: float) -> float:
        """Run until nothing is compiled or recorded any more; the seconds of the first run."""
        seeds = range(batch)
        start = time.perf_counter()
        self.draw(self.classes(seeds), seeds, cfg)
        first = time.perf_counter() - start
        for _ in range(WARMUP - 1):
            self.draw(self.classes(seeds), seeds, cfg)
        return first

    def classes(self, seeds: Sequence[int]) -> list[int]:
        """A class for each seed."""
        return [seed % self.config.transformer.num_classes for seed in seeds]


def race_on_gpu(job: StepJob, tell: Progress) -> dict[str, Any]:
    """Race one rival with one engine, at every batch size, with the bundle's guidance."""
    device = torch.device("cuda", job.device)
    torch.cuda.set_device(device)
    torch.backends.cudnn.benchmark = True
    return race_on(job, tell, device=device, dtype=torch.float16)


def race_on(
    job: StepJob,
    tell: Progress,
    *,
    device: torch.device,
    dtype: torch.dtype,
    compiler: Callable[..., Any] = torch.compile,
) -> dict[str, Any]:
    """What `race_on_gpu` does, on any device of PyTorch's."""
    assert job.folder is not None
    tell("loading the PyTorch reference")
    bundle = Bundle.open(job.folder, verify=False)
    cfg, on_gpu = bundle.sampling.cfg, device.type == "cuda"
    rows: list[dict[str, Any]] = []
    with _all_shapes() if job.step.rival in MODES else contextlib.nullcontext():
        rival = Rival(
            building.checkpoint_of(job.step.model).reference(),
            job.step.rival,
            sampling=bundle.sampling,
            max_top_k=bundle.max_top_k,
            device=device,
            dtype=dtype,
            compiler=compiler,
        )
        with hardware.open_pipeline(job, max_batch=max(job.batches)) as pipeline:
            for batch in job.batches:
                row: dict[str, Any] = {"batch": batch, "cfg": cfg, "pairs": job.runs, "problem": None}
                rows.append(row)
                try:
                    tell(f"batch {batch}: warm-up")
                    first = rival.warm_up(batch, cfg)
                    for _ in range(hardware.WARMUP):
                        pipeline.generate([0] * batch, seeds=0, cfg=cfg)
                    tell(f"batch {batch}: {job.runs} pairs")
                    requests = (range(pair * batch, (pair + 1) * batch) for pair in range(job.runs))
                    if on_gpu:
                        torch.cuda.reset_peak_memory_stats(device)
                    measured = race(
                        functools.partial(rival.draw, cfg=cfg),
                        lambda classes, seeds: pipeline.generate(classes, seeds=seeds, cfg=cfg).tokens,
                        ((rival.classes(seeds), seeds) for seeds in requests),
                    )
                    memory = torch.cuda.max_memory_allocated(device) if on_gpu else None
                    row |= measured.to_dict() | {"first_run_seconds": first, "torch_memory": memory}
                except (torch.OutOfMemoryError, OutOfMemoryError) as error:
                    row["problem"] = " ".join(str(error).split())[:300]
            return {
                "runtime": pipeline.describe_runtime(),
                "torch": torch.__version__,
                "device": str(device),
                "dtype": str(dtype).removeprefix("torch."),
                "mode": rival.mode,
                "rows": rows,
            }


def _all_shapes() -> contextlib.AbstractContextManager[Any]:
    """Every scale is compiled, or it is an error: beyond 8 shapes PyTorch would go on without compiling them."""
    from torch._dynamo import config

    patched: contextlib.AbstractContextManager[Any] = config.patch(
        recompile_limit=SHAPES, fail_on_recompile_limit_hit=True
    )
    return patched
