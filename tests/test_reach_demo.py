"""What the FP32 engine must reach on real weights: the demo model against the live reference, 50 images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from engines.draw.pipeline import Pipeline
from engines.spec.uniforms import uniforms
from var_export.checkpoint.load import demo_checkpoint
from var_export.model.reference import Drawn

pytestmark = pytest.mark.slow
IMAGES = 50


@dataclass
class Race:
    classes: list[int]
    uniforms: np.ndarray
    reference: Drawn
    forced: object
    free: object
    top_k: int
    top_p: float
    encoded: tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def race(demo_fp32_bundle) -> Race:
    checkpoint = demo_checkpoint()
    reference = checkpoint.reference()
    rng = np.random.default_rng(2024)
    classes = rng.integers(0, 171, IMAGES).tolist()
    seeds = rng.integers(0, 2**63, IMAGES).tolist()
    numbers = uniforms(seeds, checkpoint.config.num_tokens)
    sampling = checkpoint.sampling
    drawn = reference.generate(
        torch.tensor(classes),
        torch.from_numpy(numbers),
        cfg=torch.full((IMAGES,), sampling.cfg),
        temperature=torch.ones(IMAGES),
        top_k=torch.full((IMAGES,), sampling.top_k),
        top_p=torch.full((IMAGES,), sampling.top_p),
        max_top_k=900,
        keep_logits=True,
    )
    with Pipeline.load(demo_fp32_bundle) as pipeline:
        forced = pipeline.generate(classes, seeds=seeds, forced=drawn.tokens.numpy())
        free = pipeline.generate(classes, seeds=seeds)
        encoded = (pipeline.encode(drawn.image.numpy()), reference.encode(drawn.image).numpy())
    return Race(classes, numbers, drawn, forced, free, sampling.top_k, sampling.top_p, encoded)


def test_differing_draws_lie_on_the_edge_they_crossed(race):
    logits = torch.cat(race.reference.logits, dim=1).double()
    tokens = race.reference.tokens.numpy()
    differing = np.argwhere(race.forced.drawn != tokens)
    assert len(differing) <= 0.001 * tokens.size
    for image, place in differing:
        order = logits[image, place].argsort(descending=True, stable=True)[: race.top_k]
        mass = logits[image, place][order].softmax(0)
        mass = mass * ((mass.cumsum(0) - mass) < race.top_p)
        edges = (mass.cumsum(0) / mass.sum()).numpy()
        ranks = [int((order == int(t)).nonzero()) for t in (tokens[image, place], race.forced.drawn[image, place])]
        crossed = edges[min(ranks) : max(ranks)]
        assert np.abs(crossed - race.uniforms[image, place]).max() <= 1e-5


def test_free_running_images(race):
    same = (race.free.tokens == race.reference.tokens.numpy()).all(axis=1)
    assert same.sum() >= 48
    error = np.abs(race.free.images[same].astype(int) - race.reference.image.numpy()[same])
    assert error.max() <= 1


def test_encoder_tokens(race):
    engine, reference = race.encoded
    assert (engine == reference).mean() >= 0.999
