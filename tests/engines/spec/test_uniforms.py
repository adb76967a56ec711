import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.errors import UsageError
from engines.spec.uniforms import MAX_SEED, noise, uniforms

SEEDS = st.integers(0, MAX_SEED)
WORD = 2**64


def philox(key, counter, second=0):
    """Four 64-bit words of Philox 4x64-10, after the paper (Salmon et al., SC'11)."""
    keys, words = [key, 0], [counter, second, 0, 0]
    for turn in range(10):
        if turn:
            keys = [(keys[0] + 0x9E3779B97F4A7C15) % WORD, (keys[1] + 0xBB67AE8584CAA73B) % WORD]
        high0, low0 = divmod(0xD2E7470EE14C6C93 * words[0], WORD)
        high1, low1 = divmod(0xCA5A826395121157 * words[2], WORD)
        words = [high1 ^ words[1] ^ keys[0], low1, high0 ^ words[3] ^ keys[1], low0]
    return words


@pytest.mark.parametrize(
    ("seed", "first", "at_679"),
    [
        (0, [193722, 4052523, 1869415, 9469306, 8428531, 4657448], 1828156),
        (1, [5093026, 14238970, 2619506, 521879, 15103998, 873533], 1457459),
        (MAX_SEED, [3941665, 12034477, 6898410, 12014894, 5874745, 12799180], 9002884),
    ],
)
def test_stream_of_a_seed_never_changes(seed, first, at_679):
    """Recorded numbers, times 2^24: images made by an earlier version can be made again."""
    numbers = uniforms([seed], 680)[0] * 2**24
    assert numbers[:6].tolist() == first
    assert numbers[679] == at_679


@given(SEEDS)
def test_stream_is_philox(seed):
    words = [word for block in range(1, 4) for word in philox(seed, block)]
    wanted = [(word >> 40) / 2**24 for word in words]
    assert uniforms([seed], 12)[0].tolist() == wanted


@given(SEEDS, st.integers(0, 300), st.integers(0, 300))
def test_a_shorter_table_is_the_beginning_of_a_longer_one(seed, a, b):
    short, long = sorted((a, b))
    np.testing.assert_array_equal(uniforms([seed], short), uniforms([seed], long)[:, :short])


@given(st.lists(SEEDS, min_size=1, max_size=8))
def test_a_row_depends_on_its_own_seed_alone(seeds):
    table = uniforms(seeds, 20)
    assert table.shape == (len(seeds), 20)
    for row, seed in zip(table, seeds, strict=True):
        np.testing.assert_array_equal(row, uniforms([seed], 20)[0])


def test_numbers_lie_in_0_to_1_and_are_spread_evenly():
    table = uniforms(range(100), 2000)
    assert table.dtype == np.float32
    assert table.min() >= 0
    assert table.max() < 1
    np.testing.assert_array_equal(table * 2**24, np.floor(table * 2**24))
    counts = np.bincount((table * 64).astype(int).ravel(), minlength=64)
    expected = table.size / 64
    assert ((counts - expected) ** 2 / expected).sum() < 63 + 5 * np.sqrt(2 * 63)
    neighbours = np.corrcoef(table[:-1].ravel(), table[1:].ravel())[0, 1]  # seeds S and S+1
    assert abs(neighbours) < 0.01


def test_seeds_may_be_an_array():
    seeds = np.array([3, MAX_SEED], np.uint64)
    np.testing.assert_array_equal(uniforms(seeds, 5), uniforms([3, MAX_SEED], 5))


def test_no_seeds_give_an_empty_table():
    assert uniforms([], 7).shape == (0, 7)


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(UsageError, match=r"0 to 2\^64 - 1"):
        uniforms([0, seed], 3)


# --- noise of smoothing ---------------------------------------------------------------------------------------------


@given(SEEDS)
def test_noise_is_philox_from_another_place(seed):
    """Two numbers of each word, the lower half first; the last bit is set, which keeps 0 and 1 out."""
    words = [word for block in range(1, 4) for word in philox(seed, block, 1)]
    halves = [half for word in words for half in (word % 2**32, word >> 32)]
    wanted = [((half >> 8) | 1) / 2**24 for half in halves]
    assert noise([seed], 3, 5)[0].ravel().tolist() == wanted[:15]


@given(st.lists(SEEDS, min_size=1, max_size=4), st.integers(0, 9), st.integers(1, 9))
def test_noise_of_a_token_depends_on_seed_and_place_alone(seeds, tokens, vocabulary):
    table = noise(seeds, tokens, vocabulary)
    assert table.shape == (len(seeds), tokens, vocabulary)
    assert table.dtype == np.float32
    for row, seed in zip(table, seeds, strict=True):
        np.testing.assert_array_equal(row, noise([seed], 12, vocabulary)[0, :tokens])


def test_noise_is_uniform_and_its_gumbel_numbers_are_finite():
    table = noise([7], 100, 4096)[0]
    assert 0 < table.min() < 1e-5 < 1 - 1e-5 < table.max() < 1
    counts, _ = np.histogram(table, bins=64, range=(0, 1))
    assert abs(counts / table.size * 64 - 1).max() < 0.06
    extremes = np.array([2**-24, 1 - 2**-24], np.float32)  # the ends of its range
    assert np.isfinite(-np.log(-np.log(extremes))).all()
    gumbel = -np.log(-np.log(table.astype(np.float64)))
    assert gumbel.mean() == pytest.approx(0.5772, abs=0.01)
    assert gumbel.std() == pytest.approx(np.pi / 6**0.5, abs=0.01)


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1])
def test_noise_of_no_seed_is_refused(seed):
    with pytest.raises(UsageError, match="2\\^64"):
        noise([seed], 1, 1)
