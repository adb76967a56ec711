"""A pipeline without a model: pixels follow from class, seed and cfg, and from nothing else.

`install` puts it where `var-run` looks. Run as a program, this file is `var-run` with the fake inside and
`FAKE_DELAY` seconds per batch, for tests that kill it.
"""

import os
import sys
import time
from pathlib import Path
from typing import ClassVar

import numpy as np

from engines.bundle.bundle import Bundle
from engines.bundle.held import HeldFiles
from engines.bundle.manifest import Manifest
from engines.draw.loop import Timings
from engines.draw.pipeline import Pipeline
from engines.draw.results import Preview, Result
from engines.spec.config import ModelConfig, TransformerConfig, VaeConfig
from engines.spec.sampling import Sampling

SIDE = 8
LABELS = ("parrot", "crane", "t-shirt", "great white shark, white shark", "crane", "7-up")
CONFIG = ModelConfig(
    name="fake",
    patch_nums=(1, 2, 4),
    vae=VaeConfig(vocab_size=64, z_channels=4, ch=32, ch_mult=(1, 2)),
    transformer=TransformerConfig(depth=1, width=64, heads=1, mlp_hidden=64, num_classes=len(LABELS)),
)


def bundle(*, build_key="a1" * 32, labels=LABELS, form="both", max_top_k=64):
    facts = Manifest(
        name="fake-fp32",
        config=CONFIG,
        precision="fp32",
        form=form,
        target="onnxruntime",
        max_top_k=max_top_k,
        smooth=False,
        sampling=Sampling(cfg=1.0, top_k=20, top_p=0.5),
        labels=labels,
        build_key=build_key,
        golden_key="",
    )
    return Bundle(Path("fake-bundle"), facts, HeldFiles(Path("fake-bundle"), ()))


def image_of(class_id, seed, cfg=1.0):
    """(SIDE, SIDE, 3) uint8."""
    rng = np.random.default_rng([class_id, seed, int(cfg * 1000)])
    return rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)


def tokens_of(class_id, seed):
    """(T,) int64."""
    return np.random.default_rng([class_id, seed]).integers(0, 64, CONFIG.num_tokens)


class FakePipeline:
    made: ClassVar = []  # (class, seed) of every image, over all instances
    loads: ClassVar = []
    interrupt_at = None  # raise KeyboardInterrupt when so many images were made

    def __init__(self, **options):
        self.options = options
        self.max_batch = options["max_batch"]
        self.closed = False

    @classmethod
    def load(cls, path=None, *, provider="cpu", threads=None, form=None, max_batch=8, **others):
        pipeline = cls(provider=provider, threads=threads, form=form, max_batch=max_batch)
        cls.loads.append(pipeline)
        return pipeline

    def generate(
        self,
        classes,
        *,
        seeds=0,
        cfg=None,
        temperature=None,
        top_k=None,
        top_p=None,
        smooth=False,
        cfg_scales=0,
        forced=None,
        stop=None,
    ):
        for _ in range(CONFIG.num_scales):
            assert stop is None or not stop()
            time.sleep(float(os.environ.get("FAKE_DELAY", "0")) / CONFIG.num_scales)
        assert len(classes) <= self.options["max_batch"]
        for pair in zip(classes, seeds, strict=True):
            if self.interrupt_at is not None and len(self.made) >= self.interrupt_at:
                raise KeyboardInterrupt
            self.made.append(pair)
        pairs = list(zip(classes, seeds, strict=True))
        guidance = cfg if isinstance(cfg, list) else [cfg] * len(pairs)
        images = np.stack([image_of(*pair, of_image) for pair, of_image in zip(pairs, guidance, strict=True)])
        tokens = np.stack([tokens_of(c, s) for c, s in pairs])
        timings = Timings(cond=0.01, scales=[0.1, 0.2, 0.3], decode=0.05, total=0.7)
        return Result(images, tokens, tokens, np.array(classes, np.int64), np.array(seeds, np.uint64), timings)

    def stream(self, classes, *, seeds=0, preview_scales=None, **sampling):
        result = self.generate(classes, seeds=seeds, **sampling)
        for scale in range(3):
            images = result.images if scale == 2 else np.full_like(result.images, 50 * scale)
            yield Preview(scale, images, result.tokens, scale == 2, np.arange(len(images)))

    def decode(self, tokens):
        return np.stack([np.full((SIDE, SIDE, 3), row[0], np.uint8) for row in tokens])

    def reconstruct(self, images):
        return images // 2

    def describe_runtime(self):
        return {"onnxruntime": "0.fake", "provider": self.options["provider"]}

    def close(self):
        self.closed = True


def install(setattr_, fake_bundle=None):
    """Use `monkeypatch.setattr` or plain `setattr`."""
    FakePipeline.made, FakePipeline.loads, FakePipeline.interrupt_at = [], [], None
    chosen = fake_bundle or bundle()
    setattr_(Pipeline, "load", FakePipeline.load)
    setattr_(Bundle, "open", classmethod(lambda cls, path, verify=True: chosen))
    return FakePipeline


def names(folder="."):
    return sorted(path.name for path in Path(folder).iterdir())


def error_of(result):
    """The message of a run that must have been refused with one line."""
    code, out, err = result
    lines = [line for line in err.splitlines() if not line.startswith("using ")]
    assert (code, out, len(lines)) == (2, "", 1), result
    assert lines[0].startswith("Error: ")
    return lines[0]


if __name__ == "__main__":
    install(setattr)
    from engines.cli.run import main

    sys.exit(main())
