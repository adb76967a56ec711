"""`var-export evaluate SAMPLES` with Inception of random weights: what the library gives, ADM's features, one line."""

import importlib.util
import json
from types import SimpleNamespace

import numpy as np
import pytest
from support import need_torch, refused

from engines.errors import BackendError, CheckpointError, UsageError
from engines.evaluation.distances import Gaussian
from engines.evaluation.scores import inception_score, kid
from engines.packages import install_command

INSTALLED = importlib.util.find_spec("torch_fidelity") is not None
needs_library = pytest.mark.skipif(not INSTALLED, reason="torch-fidelity is not installed: the extra evaluate has it")


def images(seed, count, side=32):
    """Smooth random pictures: of noise alone, random weights say the same of all."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), np.uint8)
    return coarse.repeat(side // 4, 1).repeat(side // 4, 2)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of random weights under the names of torch-fidelity's Inception."""
    if not INSTALLED:
        pytest.skip("torch-fidelity is not installed: the extra evaluate has it")
    torch = need_torch()
    from var_export.inception import _network_class

    file = tmp_path_factory.mktemp("inception") / "weights.pth"
    with pytest.MonkeyPatch.context() as patch:  # the class loads its weights as it is made: here, none
        network_class = _network_class()
        patch.setattr(torch.nn.Module, "load_state_dict", lambda *_, **__: None)
        patch.setattr(torch, "load", lambda *_, **__: {})
        torch.manual_seed(0)
        network = network_class("inception-v3-compat", ["2048"], "none")
    torch.save({name: value.clone() for name, value in network.state_dict().items()}, file)
    return file


@pytest.fixture(scope="module")
def network(weights):
    from var_export.inception import Inception

    return Inception(weights)


@pytest.mark.slow
def test_activations(network):
    """Pooled features and logits are the library's own; the spatial ones are 7 channels of 17 x 17, channels last."""
    torch = need_torch()
    given = images(0, 3)
    found = network.activations([given[:2], given[2:]], 3)
    assert [each.shape for each in (found.pool, found.spatial, found.logits)] == [(3, 2048), (3, 2023), (3, 1008)]
    with torch.inference_mode():
        pool, logits = network._network(torch.from_numpy(given).permute(0, 3, 1, 2))
    np.testing.assert_allclose(found.pool, pool.numpy(), atol=1e-5)
    np.testing.assert_allclose(found.logits, logits.numpy(), atol=1e-5)
    seen = []
    hook = network._network.Mixed_6d.branch1x1.register_forward_hook(lambda *args: seen.append(args[2]))
    network.activations([given], 3)
    hook.remove()
    alone = network.activations([given[1:2]], 1)
    np.testing.assert_allclose(alone.pool, found.pool[1:2], rtol=1e-3, atol=1e-5, err_msg="whatever the batch")
    assert seen[0].shape == (3, 192, 17, 17)
    cells = found.spatial.reshape(3, 17, 17, 7)
    np.testing.assert_allclose(cells[1, 4, 9], seen[0][1, :7, 4, 9].numpy(), atol=1e-5)
    assert found.spatial.min() >= 0, "behind the activation, as TensorFlow's mixed_6/conv"
    assert np.ptp(found.pool, axis=0).max() > 0, "images differ"


@pytest.mark.slow
@pytest.mark.timeout(600)  # Fréchet distances of 2,048 features
def test_the_command(call, weights, network, tmp_path):
    pytest.importorskip("jinja2", reason="the extra report is not installed")
    pytest.importorskip("matplotlib", reason="the extra report is not installed")
    own, other = images(0, 20), images(1, 24, 16)
    np.savez(tmp_path / "own.npz", arr_0=own)
    seen = network.activations([other], 24)
    pool, spatial = Gaussian.of(seen.pool), Gaussian.of(seen.spatial)
    statistics = {"mu": pool.mean, "sigma": pool.covariance, "mu_s": spatial.mean, "sigma_s": spatial.covariance}
    np.savez(tmp_path / "adm.npz", **statistics)
    np.savez(tmp_path / "images.npz", arr_0=other)
    found = {}
    for name in ("adm", "images"):
        arguments = ("--reference", tmp_path / f"{name}.npz", "--weights", weights)
        code, out, err = call("evaluate", tmp_path / "own.npz", *arguments, "--json")
        assert code == 0, err
        found[name] = json.loads(out)
    mine = network.activations([own], 20)
    assert found["images"]["kid"] == pytest.approx(kid(mine.pool, seen.pool)[0], rel=1e-3)
    assert found["adm"]["inception_score"] == pytest.approx(inception_score(mine.logits)[0], rel=1e-4)
    for name in ("fid", "sfid", "inception_score"):
        assert found["adm"][name] == pytest.approx(found["images"][name], rel=1e-3)
        assert found["adm"][name] > 0
    assert found["adm"]["precision"] is None
    assert 0 <= found["images"]["precision"] <= 1
    assert found["adm"]["fid"] != pytest.approx(found["adm"]["sfid"], rel=0.01)
    page = tmp_path / "page.html"
    code, out, err = call("evaluate", tmp_path / "own.npz", "--weights", weights, "--html", page)
    assert code == 0, err
    assert "Inception Score" in out
    assert "FID" not in out
    assert "Inception Score" in page.read_text()


@pytest.mark.slow
def test_weights_that_are_none(weights, tmp_path):
    torch = need_torch()
    from var_export.inception import Inception

    torch.save({"a": torch.zeros(3)}, tmp_path / "other.pth")
    torch.save({"a": SimpleNamespace()}, tmp_path / "code.pth")
    (tmp_path / "text.pth").write_text("no")
    for name, word in (("other", "torch-fidelity's names"), ("code", "refused"), ("text", "neither a torch")):
        refused(lambda name=name: Inception(tmp_path / f"{name}.pth"), word, f"{name}.pth", kind=CheckpointError)


@needs_library
def test_no_network(monkeypatch):
    need_torch()
    from urllib.error import URLError

    from var_export import inception

    def offline(*_):
        raise URLError("no network")

    monkeypatch.setattr(inception, "_network_class", lambda: offline)
    refused(lambda: inception.Inception(None), "no network", "--weights", kind=UsageError)


@pytest.mark.parametrize("missing", ["torch_fidelity", "torch"])
def test_without_the_library(call, tmp_path, monkeypatch, missing):
    need_torch()
    np.savez(tmp_path / "own.npz", arr_0=images(0, 20))
    from var_export import inception

    def lacks():
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.setattr(inception, "_network_class", lacks)
    code, out, err = call("evaluate", tmp_path / "own.npz")
    assert (code, out) == (BackendError.exit_code, "")
    assert err.splitlines()[-1].endswith(install_command("evaluate"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("own.npz", "--between", "own.npz", "own.npz"), ("SAMPLES, or two sets",)),
        (("own.npz", "--tokens", "own.npz", "own.npz"), ("--tokens is for --between",)),
        (("own.npz", "--threads", "1"), ("--threads is for --between",)),
        (("--between", "own.npz", "own.npz", "--reference", "own.npz"), ("--reference is for SAMPLES",)),
        (("own.npz", "--reference", "missing.npz"), ("missing.npz",)),
        (("tokens.npz",), ("has tokens and no images", "--npz")),
        (("one.npz",), ("1 images", "draw more")),
    ],
)
def test_mistakes_are_one_line(call, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    np.savez("own.npz", arr_0=images(0, 20))
    np.savez("one.npz", arr_0=images(0, 1))
    np.savez("tokens.npz", tokens=np.zeros((20, 14), np.int64))
    code, out, err = call("evaluate", *arguments)
    assert (code, out) == (2, "")
    last = err.splitlines()[-1]
    assert last.startswith("Error: ")
    assert all(word in last for word in words)
