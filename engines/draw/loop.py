r"""The scale loop: condition, advance scale by scale, decode.

A `Workspace` owns every buffer that one batch shape needs and binds each scale's call once; running an
image then writes a few small inputs and starts the calls. It does not know which backend it drives.

    cond --> x, AdaLN vectors
               |
               v
      +--> step (scale k) --> tokens, logits
      |        |   \
      |        |    new keys and values, written behind the cached ones
      |        v
      +---- x, f_hat of scale k+1          after any scale: decode --> image
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from engines.backends.base import Array, Backend, Buffer, Call, Engine
from engines.draw.batch import ROW_INPUTS, SAMPLING_INPUTS, Batch, no_noise
from engines.errors import CancelledError
from engines.spec.config import ModelConfig, mixing, num_phi, phi_index
from engines.spec.contract import CACHE_DTYPES, TensorInfo

Stop = Callable[[], bool]


@dataclass
class Timings:
    """Seconds of one batch."""

    cond: float = 0.0
    scales: list[float] = field(default_factory=list)
    decode: float = 0.0
    total: float = 0.0

    @property
    def outside(self) -> float:
        """What the engines did not take."""
        return self.total - self.cond - sum(self.scales) - self.decode


@dataclass(frozen=True)
class ScaleView:
    """What one scale computed, for whoever compares engines; valid until the next scale runs."""

    scale: int
    images: slice
    """Which images of the request these are."""
    logits: Buffer
    """Guided logits float32 (B, L, V), before temperature; B counts padding too."""
    mixed: Buffer | None = None
    """Mixed codebook entries float32 (B, L, Z); None of a bundle without smoothing."""

    def read_logits(self) -> Array:
        """The logits of the images, float32 (B, L, V)."""
        return self._own(self.logits)

    def read_mixed(self) -> Array:
        """The mixed entries of the images, float32 (B, L, Z)."""
        assert self.mixed is not None, "a bundle without smoothing mixes nothing"
        return self._own(self.mixed)

    def _own(self, buffer: Buffer) -> Array:
        return buffer.read()[: self.images.stop - self.images.start]


class Constants:
    """What the scales need beside the weights, on the device once for all workspaces."""

    def __init__(
        self, backend: Backend, config: ModelConfig, arrays: Mapping[str, Array], *, smooth: bool = False
    ) -> None:
        """`arrays`: up_s, down_s and pos_s of each scale s, as the bundle stores them; `smooth`: as of the bundle."""
        last = config.num_scales - 1
        self.inputs: list[dict[str, Buffer]] = []
        for scale in range(config.num_scales):
            if scale == last:  # nothing follows: the smallest next scale, whose result nobody reads
                down = np.zeros((1, config.latent_size**2), np.float32)
                pos_next = np.zeros((1, 1, config.transformer.width), np.float32)
            else:
                down, pos_next = arrays[f"down_{scale + 1}"], arrays[f"pos_{scale + 1}"]
            inputs = {"up": arrays[f"up_{scale}"], "down": down, "pos_next": pos_next}
            if num_phi(config):
                inputs["phi_index"] = np.array([phi_index(config, scale)], np.int64)
            if smooth:
                inputs["mixing"] = np.array(mixing(config, scale), np.float32)
            self.inputs.append({name: backend.upload(np.asarray(value)) for name, value in inputs.items()})


class Workspace:
    """Buffers and prepared calls of the stepwise form, for B images in N rows."""

    def __init__(
        self,
        backend: Backend,
        config: ModelConfig,
        precision: str,
        engines: Mapping[str, Engine],
        constants: Constants,
        shape: tuple[int, int],
        *,
        smooth: bool = False,
    ) -> None:
        B, N = shape
        sizes, vae = config.transformer, config.vae
        self.config, self.shape, self._backend = config, shape, backend
        last = config.num_scales - 1
        lengths = config.scale_lengths
        make = backend.buffer

        self.adaln = make((N, sizes.depth, 6, sizes.width), "float32")
        self.head_adaln = make((N, 2, sizes.width), "float32")
        self.x = [make((N, length, sizes.width), "float32") for length in (*lengths, 1)]
        zeros = make((B, vae.z_channels, config.latent_size, config.latent_size), "float32")
        maps = [make(zeros.shape, "float32") for _ in range(2)]
        self.f_hat = [maps[scale % 2] for scale in range(last + 1)]
        self.tokens = [make((B, length), "int64") for length in lengths]
        self.drawn = [make((B, length), "int64") for length in lengths]
        logits = make((B, lengths[-1], vae.vocab_size), "float32")
        self.logits = [logits.shaped((B, length, vae.vocab_size)) for length in lengths]
        """Guided logits (B, L, V) float32 of each scale, in one place: valid until the next scale runs."""
        self.sampling = {name: make((B,), dtype) for name, dtype in SAMPLING_INPUTS.items()}
        self.rows = {name: make((N if name == "image_row" else B,), dtype) for name, dtype in ROW_INPUTS.items()}
        self.per_scale = [
            {
                "uniforms": make((B, length), "float32"),
                "guidance": make((B,), "float32"),
                "forced_tokens": make((B, length), "int64"),
                "forced_mask": make((B, length), "bool"),
            }
            for length in lengths
        ]
        self._smooth = make((B,), "bool") if smooth else None
        self.mixed = [make((B, length, vae.z_channels), "float32") for length in lengths] if smooth else []
        if self._smooth is not None:
            for inputs, length in zip(self.per_scale, lengths, strict=True):
                inputs |= {"smooth": self._smooth, "noise": make((B, length, vae.vocab_size), "float32")}
                inputs["noise"].write(no_noise(inputs["noise"].shape))

        # Keys and values of the last scale are never read again: all blocks write them to one place.
        per_token = (N, sizes.heads, sizes.head_dim)
        dtype = CACHE_DTYPES[precision]
        cache = {
            f"{kind}_{i}": make((config.scale_offsets[last], *per_token), dtype)
            for kind in "kv"
            for i in range(sizes.depth)
        }
        unread = {kind: make((lengths[last], *per_token), dtype) for kind in "kv"}

        self.calls: list[Call] = []
        for scale, length in enumerate(lengths):
            cached = config.scale_offsets[scale]
            past = {f"past_{name}": buffer.rows(0, cached) for name, buffer in cache.items()}
            new = {
                f"new_{name}": unread[name[0]] if scale == last else buffer.rows(cached, length)
                for name, buffer in cache.items()
            }
            inputs = {
                "x": self.x[scale],
                "adaln": self.adaln,
                "head_adaln": self.head_adaln,
                "f_hat": zeros if scale == 0 else self.f_hat[scale - 1],
                **past,
                **self.sampling,
                **self.rows,
                **self.per_scale[scale],
                **constants.inputs[scale],
            }
            outputs = {
                "tokens": self.tokens[scale],
                "drawn": self.drawn[scale],
                "f_hat_out": self.f_hat[scale],
                "x_next": self.x[scale + 1],
                "logits": self.logits[scale],
                **new,
            }
            if smooth:
                outputs["mixed"] = self.mixed[scale]
            self.calls.append(engines["step"].bind(inputs, outputs))

        self._started, self._done = ([backend.mark() for _ in range(last + 2)] for _ in range(2))
        self.image = make((B, config.image_size, config.image_size, 3), "uint8")
        self._decode = {id(f_hat): engines["decode"].bind({"f_hat": f_hat}, {"image": self.image}) for f_hat in maps}

    def begin(self, batch: Batch, cond: Sequence[Array]) -> None:
        """Write what the whole image needs: `cond` holds adaln, head_adaln and x of the batch's rows."""
        config = self.config
        for buffer, value in zip((self.adaln, self.head_adaln, self.x[0]), cond, strict=True):
            buffer.write(value)
        for name, buffer in self.sampling.items():
            buffer.write(getattr(batch, name))
        for name, buffer in self.rows.items():
            buffer.write(getattr(batch.rows, name))
        for scale, inputs in enumerate(self.per_scale):
            here = config.scale_slice(scale)
            inputs["uniforms"].write(batch.uniforms[:, here])
            inputs["guidance"].write(batch.cfg * np.float32(scale / (config.num_scales - 1)))
            if batch.forced_tokens is not None and batch.forced_mask is not None:
                inputs["forced_tokens"].write(batch.forced_tokens[:, here])
                inputs["forced_mask"].write(batch.forced_mask[:, here])
            else:
                inputs["forced_mask"].write(np.zeros(inputs["forced_mask"].shape, bool))
            if batch.noise is not None:
                inputs["noise"].write(batch.noise[:, here])
        if self._smooth is not None:
            self._smooth.write(batch.smooth)

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


def ask(stop: Stop | None) -> None:
    """Raises `CancelledError` where the caller wants no more."""
    if stop is not None and stop():
        raise CancelledError("stopped: the caller wants no more")


def advance(space: Workspace, scale: int, stop: Stop | None) -> None:
    """Start one scale, unless the caller wants no more."""
    if stop is not None and scale > 1:
        space.wait(scale - 2)  # a GPU would take the calls of all scales at once, and the question come too early
    ask(stop)
    space.advance(scale)


class GraphWorkspace:
    """Buffers and the prepared call of a graph that runs on its own, for one batch shape."""

    def __init__(self, backend: Backend, engine: Engine, shape: tuple[int, int]) -> None:
        varying = dict(zip("BN", shape, strict=True))

        def make(infos: tuple[TensorInfo, ...]) -> dict[str, Buffer]:
            return {
                info.name: backend.buffer(
                    tuple(varying[d] if isinstance(d, str) else d for d in info.shape), info.dtype
                )
                for info in infos
            }

        self.shape = shape
        self._inputs, self._outputs = make(engine.inputs), make(engine.outputs)
        self._call = engine.bind(self._inputs, self._outputs)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name; an input that is given fewer entries than the batch holds is padded with its last one.

        `noise` may be left out where no image is smoothed: nothing reads it then.
        """
        for name, buffer in self._inputs.items():
            if name == "noise" and name not in inputs:
                continue
            value = inputs[name]
            missing = buffer.shape[0] - len(value)
            buffer.write(np.concatenate([value, np.repeat(value[-1:], missing, axis=0)]) if missing else value)
        self._call.run()
        return {name: buffer.read() for name, buffer in self._outputs.items()}
