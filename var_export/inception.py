"""Inception-v3, by which FID and its like see images: the network of torch-fidelity, and weights from a file.

    images uint8 --> resized as TensorFlow 1 does, 299 x 299 --> Inception --> pooled, spatial features, logits

The network and its resizing are torch-fidelity's, which follow the TensorFlow graph that ADM's evaluator runs.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import tempfile
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from engines.errors import CheckpointError, UsageError
from engines.evaluation.scores import Activations
from engines.progress import Progress, Steps, silent
from var_export.checkpoint.files import read_tensors

_PACKAGE = "torch_fidelity"
_LAYERS = ("2048", "logits_unbiased")
_SPATIAL = 7
"""Channels of the spatial features: 7 x 17 x 17 are about as many as the pooled ones."""


class Inception:
    """The network with its weights; give it batches of images.

    sFID's features are the first 7 channels behind the first 1 x 1 convolution of the fifth block of 17 x 17 cells
    (`mixed_6/conv` in TensorFlow, `Mixed_6d.branch1x1` here), which torch-fidelity computes and does not give out.
    """

    def __init__(self, weights: Path | None) -> None:
        """`weights`: a state dict as torch-fidelity ships it; by default torch-fidelity downloads its own.

        Raises `CheckpointError` where the file is no such state dict, `UsageError` where the download fails, and
        `ImportError` where torch-fidelity is not installed.
        """
        network = _network_class()

        def make(path: str | None) -> Any:
            return network("inception-v3-compat", list(_LAYERS), path)

        if weights is None:
            try:
                self._network = make(None)
            except OSError as error:  # URLError is one
                raise UsageError(
                    f"cannot download the weights of Inception ({error}): fetch them where there is a network "
                    "(torch-fidelity's release v0.2.0 has them), and name the file with --weights"
                ) from error
        else:
            self._network = _with_weights(weights, make)
        self._network.eval()  # which torch-fidelity 0.3 leaves to its caller
        self._spatial: torch.Tensor
        self._network.Mixed_6d.branch1x1.register_forward_hook(self._keep)

    def activations(self, batches: Iterable[NDArray[np.uint8]], count: int, progress: Progress = silent) -> Activations:
        """What the network says of images.

        Args:
            batches: uint8 (b, h, w, 3), RGB, of any size; each batch of one.
            count: how many there are, for the progress.
            progress: told how far it is.
        """
        parts: list[tuple[torch.Tensor, ...]] = []
        done = 0
        for images in batches:
            progress("Inception", Steps(done, count))
            with torch.inference_mode():
                pool, logits = self._network(torch.from_numpy(images.copy()).permute(0, 3, 1, 2))
            # In the order of ADM's statistics: cells first, channels last.
            parts.append((pool, self._spatial.permute(0, 2, 3, 1).flatten(1), logits))
            done += len(images)
        return Activations(*(torch.cat(each).numpy() for each in zip(*parts, strict=True)))

    def _keep(self, _: object, __: object, output: torch.Tensor) -> None:
        self._spatial = output[:, :_SPATIAL].clone()


def _network_class() -> Any:
    """torch-fidelity's Inception-v3, without the rest of that package. Raises `ImportError` where it is missing.

    The package imports torchvision for data sets that it knows, and a torchvision of PyPI does not load beside the CPU
    build of PyTorch. The network needs none of it. So its module is loaded past the package's own `__init__`.
    """
    if _PACKAGE not in sys.modules:
        found = importlib.util.find_spec(_PACKAGE)
        if found is None or found.submodule_search_locations is None:
            raise ModuleNotFoundError(f"No module named {_PACKAGE!r}", name=_PACKAGE)
        package = types.ModuleType(_PACKAGE)
        package.__path__ = list(found.submodule_search_locations)
        sys.modules[_PACKAGE] = package
        try:
            module = importlib.import_module(f"{_PACKAGE}.feature_extractor_inceptionv3")
        finally:
            del sys.modules[_PACKAGE]  # who imports it later gets the whole one
    else:
        module = importlib.import_module(f"{_PACKAGE}.feature_extractor_inceptionv3")
    return module.FeatureExtractorInceptionV3


def _with_weights(file: Path, make: Any) -> Any:
    """The network with the weights of a file, which is read as checkpoints are: pickles that ask for code are refused.

    torch-fidelity loads any pickle, so it gets a copy that holds the tensors alone.
    """
    tensors = read_tensors(file)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "weights.pth"
        torch.save(tensors, copy)
        try:
            return make(str(copy))
        except (RuntimeError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{file} does not hold the weights of Inception-v3 under torch-fidelity's names: give the file "
                "weights-inception-2015-12-05-6726825d.pth of its release v0.2.0"
            ) from error
