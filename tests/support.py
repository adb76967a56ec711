"""What several tests of the core share: tiny models with the same weights everywhere, and bundles made of them.

Importable without torch; what needs it imports it inside.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import subprocess
import time
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engines.bundle.manifest import sealed
from engines.spec.config import ModelConfig, TransformerConfig, VaeConfig

DATA = Path(__file__).parent / "data"
DEMO = Path(__file__).parents[1] / "var_export" / "data" / "demo"


def quickest(run, promise, tries=20):
    """The shortest of some runs in seconds; further ones only while none keeps the promise: other programs may run."""
    best = float("inf")
    for _ in range(tries):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
        if best <= promise:
            break
    return best


def refused(run, *words, kind):
    """The message with which `run` fails; it is one line and says these words."""
    with pytest.raises(kind) as caught:
        run()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    return message


def need_torch():
    """Skip the test that asks for what only PyTorch makes, where there is none; otherwise the module."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed here, and this test needs what it makes")
    from tests import traces

    traces.install()
    return torch


def tiny_config(name="tiny", *, patch_nums=(1, 2, 3), vae=None, **transformer):
    """A model of a few thousand weights; `vae` and keywords replace single sizes."""
    sizes = {"depth": 2, "width": 64, "heads": 2, "mlp_hidden": 128, "num_classes": 5} | transformer
    small = {"vocab_size": 64, "z_channels": 8, "ch": 32, "ch_mult": (1, 2), "num_res_blocks": 1} | (vae or {})
    return ModelConfig(name=name, patch_nums=patch_nums, vae=VaeConfig(**small), transformer=TransformerConfig(**sizes))


def one_block(config):
    """`config` with a single block of the transformer, which is quick to trace."""
    return replace(config, transformer=replace(config.transformer, depth=1))


def architectures():
    """Every combination of the choices that checkpoints differ in, and two odd ones, by name."""
    configs = {}
    for l2, shared, share, znorm in itertools.product((True, False), (True, False), (0, 1, 2, 4), (False, True)):
        name = f"{'l2' if l2 else 'fixed'}-{'shared' if shared else 'own'}-phi{share}{'-znorm' if znorm else ''}"
        configs[name] = tiny_config(
            name,
            # With five scales a scale stands exactly between two of four phis.
            patch_nums=(1, 2, 3, 4, 5) if share in (1, 4) else (1, 2, 3, 5),
            vae={"share_quant_resi": share, "using_znorm": znorm},
            heads=2 if l2 else 1,
            shared_aln=shared,
            attn_l2_norm=l2,
        )
    configs["no-phi"] = tiny_config("no-phi", patch_nums=(1, 2, 4), vae={"quant_resi": 0.0})
    configs["odd"] = tiny_config(
        "odd",
        patch_nums=(2, 3, 6),
        vae={
            "quant_conv_ks": 1, "quant_resi": 0.75, "share_quant_resi": 3, "num_res_blocks": 2,
            "ch_mult": (1, 1, 2), "using_sa": False, "using_mid_sa": False,
        },
        depth=3, heads=4, mlp_hidden=96,
    )  # fmt: skip
    return configs


def random_weights(shapes, seed=0):
    """Weights float32 by name from uniform numbers alone: the same bits on any machine and numpy."""
    weights = {}
    for name, shape in shapes.items():
        leaf = name.rsplit(".", 1)[-1]
        rng = np.random.RandomState(zlib.crc32(f"{seed}/{name}".encode()))
        unit = (rng.random_sample(shape) * 2 - 1).astype(np.float32)  # in [-1, 1)
        if leaf == "scale_mul_1H11":  # the last head lies beyond the clamp at log(100)
            value = np.linspace(1.0, 5.0, shape[1], dtype=np.float32).reshape(shape)
        elif "embedding" in name:
            value = unit * np.float32(1.7)
        elif leaf == "ada_gss" or "_emb" in name or leaf.startswith("pos_") or (leaf == "bias" and "ada_lin" in name):
            value = unit * np.float32(0.7)
        elif len(shape) >= 2:
            value = unit * np.float32((3 / np.prod(shape[1:])) ** 0.5)
        else:
            value = unit * np.float32(0.05) + np.float32("norm" in name and leaf == "weight")
        weights[name] = value
    return weights


def tiny_state(config, seed=0):
    """State dicts of the transformer and the VQ-VAE."""
    torch = need_torch()
    from var_export.model.transformer import VAR
    from var_export.model.vqvae import VQVAE

    with torch.device("meta"):
        modules = VAR(config), VQVAE(config)
    shapes = [{name: tuple(value.shape) for name, value in module.state_dict().items()} for module in modules]
    return tuple(
        {name: torch.from_numpy(value) for name, value in random_weights(each, seed).items()} for each in shapes
    )


def tiny_reference(config, seed=0):
    from var_export.model.reference import Reference

    return Reference.from_state(config, *tiny_state(config, seed))


def tiny_checkpoint(config, seed=0, **fields):
    from engines.spec.sampling import Sampling
    from var_export.checkpoint.load import Checkpoint

    var_state, vae_state = tiny_state(config, seed)
    known = {
        "config": config,
        "sampling": Sampling(cfg=2.0, top_k=20, top_p=0.9),
        "labels": None,
        "var_state": var_state,
        "vae_state": vae_state,
        "sha256": hashlib.sha256(f"{config}{seed}".encode()).hexdigest(),
        "sources": ("tiny",),
    }
    return Checkpoint(**known | fields)


def demo_checkpoint():
    need_torch()
    from var_export.checkpoint.load import demo_checkpoint

    return demo_checkpoint()


def demo_reference():
    checkpoint = demo_checkpoint()

    return checkpoint.reference()


def settings(count, *, cfg=0.0, temperature=1.0, top_k=0, top_p=0.0):
    """Sampling arrays of `count` images, as the reference takes them."""
    torch = need_torch()
    return {
        "cfg": torch.full((count,), cfg),
        "temperature": torch.full((count,), temperature),
        "top_k": torch.full((count,), top_k, dtype=torch.int64),
        "top_p": torch.full((count,), top_p),
    }


def eager(module):
    """A traced graph's module as a function: named arrays of the contract in, arrays in its order out."""
    import inspect

    torch = need_torch()

    def run(feeds):
        arguments = {name: None for name in inspect.signature(module.forward).parameters if name == "phi_index"}
        for name, array in feeds.items():
            group, _, index = name.rpartition("_")
            if index.isdigit():  # past_k_0, past_k_1 ... go in as one list
                arguments.setdefault(group, []).append(torch.from_numpy(array))
            else:
                arguments[name] = torch.from_numpy(array)
        with torch.inference_mode():
            values = module.eval()(**arguments)
        return [value.numpy() for value in (values if isinstance(values, tuple) else (values,))]

    return run


def clean_checkout(folder):
    """The checkout as git sees it, without what a run has left in it, copied into `folder`."""
    root = Path(__file__).parents[1]
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (root / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, folder / name)
    return folder


def copy_bundle(source, target):
    return Path(shutil.copytree(source, target))


def as_links(source, root):
    """A bundle laid out as hub caches do: each file a link into `blobs` beside it, by its content."""
    blobs, folder = root / "blobs", root / "snapshots" / "main"
    for made in (blobs, folder):
        made.mkdir(parents=True)
    for file in Path(source).iterdir():
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copyfile(file, blobs / digest)
        (folder / file.name).symlink_to(Path("../../blobs") / digest)
    return folder


def graphs_for_gpus(path):
    """Runs the graphs that plans are built from, which in FP16 are others than those for a CPU."""
    from engines.backends.onnxruntime.runner import RunnableGraph
    from engines.bundle.bundle import Bundle

    bundle = Bundle.open(path, verify=False)
    return lambda graph, load: RunnableGraph(load(bundle.graph_path(graph)), *bundle.tensors(graph))


def reseal(folder):
    """Make the manifest fit the files again, as if the bundle had been built so."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in manifest["files"]:
        data = (folder / name).read_bytes()
        manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    write_manifest(folder, manifest)


def write_manifest(folder, document):
    """Put a changed manifest in its place, with the digest that fits it."""
    (folder / "manifest.json").write_text(json.dumps(sealed(document)))
