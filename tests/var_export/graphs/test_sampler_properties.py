"""The sampler of the step graph, as ONNX, and that of the reference, against the definition in float64."""

import functools

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from support import tiny_config

from engines.spec.contract import GraphSpec, TensorSpec
from engines.spec.uniforms import uniforms
from var_export.graphs.sampler import Mixer, Sampler
from var_export.graphs.trace import trace
from var_export.model.sampling import mixture, sample

EDGE = 1e-5  # of the cumulative probability: what float32 sums may be off by
LAST = np.float32(1 - 2**-24)  # the largest uniform number
SIZES = [(64, 64), (64, 16), (37, 11)]  # vocabulary, sorted list; prefix sums pad the last

SPEC = GraphSpec(
    "sampler",
    "",
    (
        TensorSpec("logits", "float32", ("B", "L", "V"), ""),
        TensorSpec("uniforms", "float32", ("B", "L"), ""),
        TensorSpec("temperature", "float32", ("B",), ""),
        TensorSpec("top_k", "int64", ("B",), ""),
        TensorSpec("top_p", "float32", ("B",), ""),
    ),
    (TensorSpec("tokens", "int64", ("B", "L"), ""),),
)


class Drawing(torch.nn.Module):
    """The sampler with the division by the temperature that the step graph does before it."""

    def __init__(self, listed, vocabulary):
        super().__init__()
        self.sampler = Sampler(listed, vocabulary)

    def forward(self, logits, uniforms, temperature, top_k, top_p):
        return self.sampler(logits / temperature[:, None, None], uniforms, top_k, top_p)[0]


@functools.cache
def session(vocabulary, listed):
    config = tiny_config(vae={"vocab_size": vocabulary})
    model = trace(Drawing(listed, vocabulary), SPEC, config, "fp32")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        ir.serde.serialize_model(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def draw_onnx(logits, uniforms, temperature, top_k, top_p, listed):
    """Logits (B, L, V), uniforms (B, L), the rest (B,) -> (B, L)."""
    feeds = {
        "logits": logits,
        "uniforms": uniforms,
        "temperature": np.asarray(temperature, np.float32),
        "top_k": np.asarray(top_k, np.int64),
        "top_p": np.asarray(top_p, np.float32),
    }
    return session(logits.shape[-1], listed).run(None, feeds)[0]


def draw_reference(logits, uniforms, temperature, top_k, top_p, listed):
    return sample(
        torch.from_numpy(logits),
        torch.from_numpy(uniforms),
        temperature=torch.tensor(temperature, dtype=torch.float32),
        top_k=torch.tensor(top_k),
        top_p=torch.tensor(top_p, dtype=torch.float32),
        max_top_k=listed,
    ).numpy()


@pytest.fixture(params=[draw_onnx, draw_reference], ids=["onnx", "reference"])
def draw(request):
    return request.param


def one(draw, logits, u, *, temperature=1.0, top_k=0, top_p=0.0, listed=64):
    """Draws (L,) from one distribution (V,) with the numbers `u` (L,)."""
    u = np.atleast_1d(np.asarray(u, np.float32))
    logits = np.broadcast_to(np.asarray(logits, np.float32), (1, len(u), len(logits))).copy()
    return draw(logits, u[None], [temperature], [top_k], [top_p], listed)[0]


# --- the definition ---------------------------------------------------------------------------------------------


def order_of(logits, temperature, top_k, top_p, listed):
    """Tokens that may be drawn before top-p, in the order of the inverse CDF, and their weights in float64."""
    z = logits / np.float32(temperature)  # in float32, where equal values are ties
    assert z.dtype == np.float32
    weights = np.exp(z.astype(np.float64) - z.max())
    if top_k == 0 and top_p in (0, 1):
        return np.arange(len(z)), weights
    order = sorted(range(len(z)), key=lambda i: (-z[i], i))[: top_k or listed]
    return np.array(order), weights[order]


def probabilities(logits, temperature, top_k, top_p, listed, slack=0.0):
    """Tokens in order and their probabilities after top-p; `slack` widens or narrows the nucleus."""
    order, weights = order_of(logits, temperature, top_k, top_p, listed)
    if 0 < top_p < 1:
        before = (np.cumsum(weights) - weights) / weights.sum()
        weights = np.where((before < top_p + slack) | (np.arange(len(order)) == 0), weights, 0)
    return order, weights / weights.sum()


def is_right(token, u, logits, temperature, top_k, top_p, listed):
    """Whether `token` is what `u` draws, or lies beyond an edge of the CDF that `u` is within EDGE of."""
    for slack in (0.0, EDGE, -EDGE):
        order, p = probabilities(logits, temperature, top_k, top_p, listed, slack)
        place = np.flatnonzero(order == token)
        if len(place) and p[place[0]] > 0:
            above = p[: place[0] + 1].sum()
            if above - p[place[0]] - EDGE <= u <= above + EDGE:
                return True
    return False


def exact(u, logits, temperature, top_k, top_p, listed):
    """What the numbers `u` draw."""
    order, p = probabilities(logits, temperature, top_k, top_p, listed)
    return order[np.minimum(np.searchsorted(np.cumsum(p), u, side="right"), np.flatnonzero(p)[-1])]


# --- properties -------------------------------------------------------------------------------------------------


def make_logits(kind, seed, size):
    rng = np.random.RandomState(seed)
    values = {
        "normal": lambda: rng.standard_normal(size) * 3,
        "flat": lambda: rng.standard_normal(size) * 0.01,
        "peaked": lambda: rng.standard_normal(size) * 30,
        "ties": lambda: rng.randint(-3, 3, size),
        "constant": lambda: np.full(size, rng.standard_normal() * 100),
        "extreme": lambda: rng.choice([-1e4, 0.0, 1e4], size),
        "one": lambda: np.where(np.arange(size) == rng.randint(size), 20.0, -1e4),
    }[kind]()
    return np.asarray(values, np.float32)


KINDS = st.sampled_from(["normal", "flat", "peaked", "ties", "constant", "extreme", "one"])
CASES = st.fixed_dictionaries(
    {
        "size": st.sampled_from(SIZES),
        "kind": KINDS,
        "seed": st.integers(0, 2**31),
        "temperature": st.sampled_from([0.01, 0.5, 1.0, 1.7, 100.0]),
        "top_k": st.integers(0, 64),
        "top_p": st.one_of(st.sampled_from([0.0, 1.0, 1e-6, 0.999999]), st.floats(0.001, 0.999)),
    }
)
WHOLE = {"size": (64, 64), "kind": "one", "seed": 5, "temperature": 1.0, "top_k": 0, "top_p": 0.0}


@pytest.mark.slow
@given(CASES)
@example(WHOLE)
@hypothesis_settings(max_examples=150, deadline=None)
def test_every_draw_follows_the_definition(case):
    vocabulary, listed = case["size"]
    chosen = case["temperature"], min(case["top_k"], listed), float(np.float32(case["top_p"])), listed
    logits = make_logits(case["kind"], case["seed"], vocabulary)
    u = np.random.RandomState(case["seed"]).random_sample(40).astype(np.float32)
    u = np.concatenate((u[u < 1], np.float32([0, LAST])))
    wanted = exact(u, logits, *chosen)
    for draw in (draw_onnx, draw_reference):
        drawn = one(draw, logits, u, temperature=chosen[0], top_k=chosen[1], top_p=chosen[2], listed=listed)
        for token, number, expected in zip(drawn, u, wanted, strict=True):
            if token != expected:
                assert is_right(token, number, logits, *chosen), f"{draw.__name__} drew {token} with {number!r}"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["normal", "flat", "peaked"])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.0), (20, 0.0), (0, 0.8), (20, 0.8), (1, 0.0)])
def test_tokens_come_as_often_as_they_should(draw, kind, top_k, top_p):
    logits, temperature = make_logits(kind, 3, 64), 1.3
    u = uniforms(range(400), 100).reshape(-1)  # 40,000 numbers
    drawn = one(draw, logits, u, temperature=temperature, top_k=top_k, top_p=top_p)
    order, p = probabilities(logits, temperature, top_k, top_p, 64)
    counts = np.bincount(drawn, minlength=64)
    wanted = np.zeros(64)
    wanted[order] = p * len(u)
    assert counts[wanted == 0].sum() == 0
    often = wanted > 5
    chi_square = ((counts - wanted)[often] ** 2 / wanted[often]).sum()
    freedom = often.sum() - 1
    assert chi_square <= freedom + 5 * np.sqrt(2 * freedom) + 1e-9


def test_top_k_1_is_greedy(draw):
    for kind in ("normal", "flat", "peaked", "extreme", "constant", "ties"):
        logits = make_logits(kind, 7, 64)
        drawn = one(draw, logits, [0, 0.3, 0.9, LAST], top_k=1)
        assert (drawn == logits.argmax()).all(), kind  # numpy's argmax takes the lowest index, too


def test_tiny_top_p_is_greedy(draw):
    logits = make_logits("normal", 7, 64)
    for top_k in (0, 30):
        assert (one(draw, logits, [0, 0.5, LAST], top_k=top_k, top_p=1e-6) == logits.argmax()).all()


def test_ties_at_the_edge_keep_exactly_k_lowest_index_first(draw):
    logits = np.zeros(64, np.float32)
    logits[[9, 40]] = 1.0
    logits[50:] = -1.0  # 9 and 40 lead, then 48 ties
    u = (np.arange(1000) + 0.5) / 1000
    for k, wanted in (
        (2, {9, 40}),
        (3, {9, 40, 0}),
        (5, {9, 40, 0, 1, 2}),
        (11, {9, 40, *range(9)}),
        (12, {9, 40, *range(9), 10}),
    ):
        assert set(one(draw, logits, u, top_k=k).tolist()) == wanted
    assert set(one(draw, np.full(64, 3.5), u, top_k=4).tolist()) == {0, 1, 2, 3}


def test_more_probable_tokens_come_first_in_the_list(draw):
    logits = np.log(np.array([0.1, 0.4, 0.2, 0.3] + [1e-9] * 60))
    assert one(draw, logits, [0.05, 0.39, 0.41, 0.69, 0.71, 0.89, 0.91, 0.99], top_k=4).tolist() == [
        1,
        1,
        3,
        3,
        2,
        2,
        0,
        0,
    ]


def test_without_top_k_and_top_p_the_vocabulary_keeps_its_order(draw):
    logits = np.log(np.array([0.1, 0.4, 0.2, 0.3] + [1e-9] * 60))
    for listed in (64, 16):  # the sorted list plays no part
        drawn = one(draw, logits, [0.05, 0.09, 0.11, 0.49, 0.51, 0.69, 0.71, 0.99], listed=listed)
        assert drawn.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    flat = one(draw, np.zeros(64), (np.arange(64) + 0.5) / 64, listed=16)
    assert flat.tolist() == list(range(64))


def test_top_p_1_keeps_everything(draw):
    """The contract: 0 and 1 keep all, so no token outside of the list is lost either."""
    flat = one(draw, np.zeros(64), (np.arange(64) + 0.5) / 64, top_p=1.0, listed=64)
    assert sorted(flat.tolist()) == list(range(64))
    with_list = one(draw, np.zeros(64), (np.arange(16) + 0.5) / 16, top_k=16, top_p=1.0, listed=16)
    assert sorted(with_list.tolist()) == list(range(16))


@pytest.mark.parametrize("top_k", [0, 64, 5])
def test_the_first_and_the_last_number_draw_the_first_and_the_last_token(draw, top_k):
    logits = np.linspace(2, -2, 64)
    first, last = one(draw, logits, [0, LAST], top_k=top_k)
    assert first == 0
    assert last == (top_k or 64) - 1


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.0), (64, 0.0), (64, 0.9), (0, 0.9)])
def test_a_token_without_probability_is_never_drawn(draw, top_k, top_p):
    """Half of the logits underflow to 0; sums of the others round differently at every place."""
    rng = np.random.RandomState(11)
    logits = np.where(rng.random_sample((1, 2000, 64)) < 0.5, rng.standard_normal((1, 2000, 64)) * 2, -1e4)
    logits = logits.astype(np.float32)
    for number in (0.0, 2.0**-24, LAST, np.float32(1 - 2**-23)):
        u = np.full((1, 2000), number, np.float32)
        drawn = draw(logits, u, [1.0], [top_k], [top_p], 64)
        picked = np.take_along_axis(logits, drawn[..., None], -1)
        assert (picked > -1e4).all(), f"{(picked <= -1e4).sum()} of 2000 with {number!r}"


def test_images_do_not_influence_each_other(draw):
    rng = np.random.RandomState(4)
    B, L = 7, 33
    logits = (rng.standard_normal((B, L, 64)) * 3).astype(np.float32)
    u = rng.random_sample((B, L)).astype(np.float32)
    temperature = np.float32([1.0, 0.3, 2.0, 1.0, 1.0, 5.0, 1.0]).tolist()
    top_k = [0, 1, 10, 0, 64, 0, 30]
    top_p = np.float32([0.0, 0.0, 0.5, 0.7, 1.0, 0.0, 0.99]).tolist()
    together = draw(logits, u, temperature, top_k, top_p, 64)
    for b in range(B):
        part = slice(b, b + 1)
        alone = draw(logits[part], u[part], temperature[part], top_k[part], top_p[part], 64)
        np.testing.assert_array_equal(together[part], alone)
    order = rng.permutation(B)
    shuffled = draw(
        logits[order],
        u[order],
        [temperature[b] for b in order],
        [top_k[b] for b in order],
        [top_p[b] for b in order],
        64,
    )
    np.testing.assert_array_equal(shuffled, together[order])


def test_a_list_longer_than_the_vocabulary_is_the_vocabulary():
    logits = torch.zeros(1, 64, 64)
    u = (torch.arange(64).float()[None] + 0.5) / 64
    drawn, _ = Sampler(900, 64)(logits, u, torch.tensor([0]), torch.tensor([0.9999]))
    assert len(set(drawn[0].tolist())) >= 63


# --- smoothing --------------------------------------------------------------------------------------------------------


def mix_traced(logits, noise, gain, tau, temperature, top_k, top_p, listed):
    """As the step graph computes it, with a codebook that shows the weights."""
    V = logits.shape[-1]
    z = torch.from_numpy(logits) / torch.tensor(temperature)[:, None, None]
    _, least = Sampler(listed, V)(z, torch.zeros(z.shape[:2]), torch.tensor(top_k), torch.tensor(top_p))
    weights, heaviest = Mixer(torch.eye(V))(
        z, least, torch.from_numpy(noise), torch.tensor([gain]), torch.tensor([tau])
    )
    np.testing.assert_array_equal(heaviest, weights.argmax(-1))
    return weights.numpy()


def mix_reference(logits, noise, gain, tau, temperature, top_k, top_p, listed):
    return mixture(
        torch.from_numpy(logits),
        torch.from_numpy(noise),
        gain=gain,
        tau=tau,
        temperature=torch.tensor(temperature),
        top_k=torch.tensor(top_k),
        top_p=torch.tensor(top_p),
        max_top_k=listed,
    ).numpy()


@pytest.mark.slow
@hypothesis_settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from(SIZES),
    top_k=st.sampled_from([0, 1, 3, 11]),
    top_p=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    temperature=st.sampled_from([0.5, 1.0, 1.7]),
    ratio=st.sampled_from([0.0, 0.4, 1.0]),
)
@pytest.mark.parametrize("mix", [mix_traced, mix_reference])
def test_a_mixture_is_the_gumbel_softmax_of_what_is_kept(mix, seed, size, top_k, top_p, temperature, ratio):
    """As `gumbel_softmax_with_rng` gives it, on logits of minus infinity where the official sampler left them out."""
    vocabulary, listed = size
    rng = np.random.RandomState(seed)
    logits = rng.normal(0, 3, (1, 4, vocabulary)).astype(np.float32)
    noise = rng.uniform(2**-24, 1 - 2**-24, logits.shape).astype(np.float32)
    gain, tau = 1 + ratio, max(0.27 * (1 - 0.95 * ratio), 0.005)
    weights = mix(logits, noise, gain, tau, [temperature], [top_k], [top_p], listed)

    z = logits[0].astype(np.float64) / temperature
    for row, of_row, mixed in zip(z, noise[0].astype(np.float64), weights[0], strict=True):
        everything = top_k == 0 and top_p in (0.0, 1.0)
        count = vocabulary if everything else min(top_k or listed, listed)
        order = np.argsort(-row)[:count]
        if 0 < top_p < 1:
            p = np.exp(row[order] - row[order].max())
            before = (np.cumsum(p) - p) / p.sum()
            if abs(before - top_p).min() < EDGE:
                continue  # rounding decides
            order = order[before < top_p]
        scores = np.full(vocabulary, -np.inf)
        scores[order] = (row[order] * gain - np.log(-np.log(of_row[order]))) / tau
        wanted = np.exp(scores - scores.max())
        np.testing.assert_allclose(mixed, wanted / wanted.sum(), atol=2e-3)  # scores of float32 over 0.0135
        assert set(np.flatnonzero(mixed)) <= set(order)
        assert mixed.sum() == pytest.approx(1, abs=1e-5)
