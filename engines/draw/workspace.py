"""Buffers and prepared calls: made once for a batch shape, then filled and run for every batch of that shape.

Which inputs and outputs there are, and of which shape and type, follows from the engine's table
(`engines.spec.contract`); which buffer is bound to which input of which scale is decided here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from engines.backends.base import Array, Backend, Buffer, Call, Engine
from engines.draw.batch import UNREAD, Batch, unread
from engines.spec.config import ModelConfig, mixing, phi_index
from engines.spec.contract import TensorInfo

_OF_A_SCALE = ("f_hat", "guidance")  # inputs of a step with one entry per image that still differ by scale


def _buffer(backend: Backend, info: TensorInfo, sizes: Mapping[str, int]) -> Buffer:
    """A buffer for a tensor whose varying dimensions have these sizes."""
    return backend.buffer(tuple(sizes[dim] if isinstance(dim, str) else dim for dim in info.shape), info.dtype)


class Constants:
    """What the scales need beside the weights, on the device once for all workspaces."""

    def __init__(self, backend: Backend, config: ModelConfig, step: Engine, arrays: Mapping[str, Array]) -> None:
        """`arrays`: up_s, down_s and pos_s of each scale s, as the bundle stores them."""
        taken = {info.name for info in step.inputs}
        last = config.num_scales - 1
        self.inputs: list[dict[str, Buffer]] = []
        """Of each scale, by the name of the step's input."""
        for scale in range(config.num_scales):
            if scale == last:  # nothing follows: the smallest next scale, whose result nobody reads
                down = np.zeros((1, config.latent_size**2), np.float32)
                pos_next = np.zeros((1, 1, config.transformer.width), np.float32)
            else:
                down, pos_next = arrays[f"down_{scale + 1}"], arrays[f"pos_{scale + 1}"]
            inputs = {
                "up": arrays[f"up_{scale}"],
                "down": down,
                "pos_next": pos_next,
                "phi_index": np.array([phi_index(config, scale)], np.int64),
                "mixing": np.array(mixing(config, scale), np.float32),
            }
            self.inputs.append(
                {name: backend.upload(np.asarray(value)) for name, value in inputs.items() if name in taken}
            )


class Workspace:
    """Buffers and prepared calls of the stepwise form, for B images in N rows."""

    def __init__(
        self,
        backend: Backend,
        config: ModelConfig,
        engines: Mapping[str, Engine],
        constants: Constants,
        shape: tuple[int, int],
    ) -> None:
        """`engines`: of the graphs step and decode."""
        self.config, self.shape = config, shape
        step, lengths = engines["step"], config.scale_lengths
        infos = {info.name: info for info in (*step.inputs, *step.outputs)}

        def make(name: str, **sizes: int) -> Buffer:
            return _buffer(backend, infos[name], {"B": shape[0], "N": shape[1], **sizes})

        def make_scales(name: str) -> list[Buffer]:
            return [make(name, L=length) for length in lengths]

        varying = {info.name: [dim for dim in info.shape if isinstance(dim, str)] for info in step.inputs}
        self.whole = {
            name: make(name) for name, dims in varying.items() if dims in (["B"], ["N"]) and name not in _OF_A_SCALE
        }
        """Inputs that are the same for all scales: AdaLN vectors, sampling, rows."""
        self.per_scale = [
            {name: make(name, L=length) for name, dims in varying.items() if dims == ["B", "L"] or name == "guidance"}
            for length in lengths
        ]
        """Inputs that each scale has its own of, written before the first: uniforms, forced tokens, noise, guidance."""
        for inputs in self.per_scale:
            if "noise" in inputs:
                inputs["noise"].write(unread("noise", inputs["noise"].shape, "float32"))
        self.x = [make("x", L=length) for length in (*lengths, 1)]
        self._empty, *maps = (make("f_hat") for _ in range(3))
        self.f_hat = [maps[scale % 2] for scale in range(config.num_scales)]
        self.tokens, self.drawn = make_scales("tokens"), make_scales("drawn")
        logits = make("logits", L=lengths[-1])
        self.logits = [logits.shaped((shape[0], length, config.vae.vocab_size)) for length in lengths]
        """Guided logits (B, L, V) float32 of each scale, in one place: valid until the next scale runs."""
        self.mixed = make_scales("mixed") if "mixed" in infos else []

        blocks = [f"{kind}_{i}" for kind in "kv" for i in range(config.transformer.depth)]
        self._cache = {name: make(f"past_{name}", P=config.scale_offsets[-1]) for name in blocks}
        # Keys and values of the last scale are never read again: all blocks write them to one place.
        self._unread = {kind: make(f"new_{kind}_0", L=lengths[-1]) for kind in "kv"}

        self.calls: list[Call] = [
            step.bind(self._step_inputs(scale) | constants.inputs[scale], self._step_outputs(scale))
            for scale in range(config.num_scales)
        ]
        self._started, self._done = ([backend.mark() for _ in range(config.num_scales + 1)] for _ in range(2))
        self.image = _buffer(backend, engines["decode"].outputs[0], {"B": shape[0]})
        self._decode = {id(f_hat): engines["decode"].bind({"f_hat": f_hat}, {"image": self.image}) for f_hat in maps}

    def _step_inputs(self, scale: int) -> dict[str, Buffer]:
        cached = self.config.scale_offsets[scale]
        past = {f"past_{name}": buffer.rows(0, cached) for name, buffer in self._cache.items()}
        f_hat = self.f_hat[scale - 1] if scale else self._empty
        return {"x": self.x[scale], "f_hat": f_hat, **past, **self.whole, **self.per_scale[scale]}

    def _step_outputs(self, scale: int) -> dict[str, Buffer]:
        """New keys and values go right behind the cached ones: appending copies nothing."""
        cached, length = self.config.scale_offsets[scale], self.config.scale_lengths[scale]
        outputs = {
            "tokens": self.tokens[scale],
            "drawn": self.drawn[scale],
            "f_hat_out": self.f_hat[scale],
            "x_next": self.x[scale + 1],
            "logits": self.logits[scale],
        }
        for name, buffer in self._cache.items():
            is_last = scale == self.config.num_scales - 1
            outputs[f"new_{name}"] = self._unread[name[0]] if is_last else buffer.rows(cached, length)
        return outputs | ({"mixed": self.mixed[scale]} if self.mixed else {})

    def begin(self, batch: Batch, cond: Mapping[str, Array]) -> None:
        """Write what the whole image needs. `cond`: outputs of the cond graph for the batch's rows, by name."""
        config, values = self.config, batch.inputs | dict(cond)
        self.x[0].write(values["x"])
        for name, buffer in self.whole.items():
            buffer.write(values[name])
        for scale, inputs in enumerate(self.per_scale):
            inputs["guidance"].write(values["cfg"] * np.float32(scale / (config.num_scales - 1)))
            for name, array in batch.per_token.items():
                inputs[name].write(array[:, config.scale_slice(scale)])

    def advance(self, scale: int) -> None:
        """Start one scale."""
        self._started[scale].record()
        self.calls[scale].run()
        self._done[scale].record()

    def wait(self, scale: int) -> None:
        """Until the work of `scale` is done; at once on a backend whose calls return when theirs is."""
        self._done[scale].since(self._started[scale])

    def decode(self, scale: int) -> Array:
        """The image (B, h, w, 3) uint8 as it stands after `scale`."""
        self._started[-1].record()
        self._decode[id(self.f_hat[scale])].run()
        self._done[-1].record()
        return self.image.read()

    def seconds(self) -> tuple[list[float], float]:
        """What each scale, and the last decode, took; valid after `decode`."""
        *scales, decode = (done.since(started) for started, done in zip(self._started, self._done, strict=True))
        return scales, decode

    @staticmethod
    def read_maps(maps: Sequence[Buffer]) -> Array:
        """Token maps of some scales, from `tokens` or `drawn`, side by side: int64 (B, tokens)."""
        return np.concatenate([buffer.read() for buffer in maps], axis=1)


class GraphWorkspace:
    """Buffers and the prepared call of a graph that runs on its own, for one batch shape (B, N)."""

    def __init__(self, backend: Backend, engine: Engine, shape: tuple[int, int]) -> None:
        self.shape, sizes = shape, dict(zip("BN", shape, strict=True))
        self._inputs, self._outputs = (
            {info.name: _buffer(backend, info, sizes) for info in infos} for infos in (engine.inputs, engine.outputs)
        )
        self._call = engine.bind(self._inputs, self._outputs)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name; an input that is given fewer entries than the batch holds is padded with its last one.

        Inputs that this graph does not have are ignored; those of `UNREAD` may be left out.
        """
        for name, buffer in self._inputs.items():
            if name in UNREAD and name not in inputs:
                continue
            value = inputs[name]
            missing = buffer.shape[0] - len(value)
            buffer.write(np.concatenate([value, np.repeat(value[-1:], missing, axis=0)]) if missing else value)
        self._call.run()
        return {name: buffer.read() for name, buffer in self._outputs.items()}
