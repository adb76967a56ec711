"""Buffers and prepared calls: made once for a batch shape, then filled and run for every batch of that shape.

Which inputs and outputs there are, and of which shape and type, follows from the engine's table
(`engines.spec.contract`); which buffer is bound to which input of which scale is decided here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from engines.backends.base import Array, Backend, Buffer, Call, Engine
from engines.draw.batch import UNREAD, Batch, unread
from engines.spec.config import ModelConfig, mixing, phi_index
from engines.spec.contract import TensorInfo

_OF_A_SCALE = ("f_hat", "guidance")  # inputs of a step with one entry per image that still differ by scale
_PLACES = ("cond_row", "uncond_row")  # inputs with one entry per image that depend on which rows there are


def _buffer(backend: Backend, info: TensorInfo, sizes: Mapping[str, int]) -> Buffer:
    """A buffer for a tensor whose varying dimensions have these sizes."""
    return backend.buffer(tuple(sizes[dim] if isinstance(dim, str) else dim for dim in info.shape), info.dtype)


def _calls(
    backend: Backend, engine: Engine, inputs: dict[str, Buffer], outputs: dict[str, Buffer], images: int
) -> list[Call]:
    """What computes all images of these buffers: one call, or several that take a part of the images each."""
    pixels = (inputs | outputs).get("image")
    most = None if pixels is None else backend.images_at_once(engine.name, pixels.shape[1])
    if most is None or most >= images:
        return [engine.bind(inputs, outputs)]

    def part(buffers: Mapping[str, Buffer], start: int) -> dict[str, Buffer]:
        return {name: buffer.rows(start, min(most, images - start)) for name, buffer in buffers.items()}

    return [engine.bind(part(inputs, start), part(outputs, start)) for start in range(0, images, most)]


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


@dataclass
class RowSet:
    """What depends on the rows that the transformer computes: their buffers, and the calls that these are bound to."""

    whole: dict[str, Buffer]
    """Inputs that are the same for all scales: AdaLN vectors, and where the rows of an image are."""
    x: list[Buffer]
    """Input of each scale, and what the last one makes for none."""
    cache: dict[str, Buffer]
    """Keys and values of all scales but the last, (P, N, H, d), by block."""
    unread: dict[str, Buffer]
    """Where all blocks write keys and values of the last scale, which are never read again."""
    calls: dict[int, Call] = field(default_factory=dict)
    """By scale."""

    def fewer(self, count: int, whole: dict[str, Buffer]) -> RowSet:
        """A set of `count` rows in the same memory, with inputs of its own."""

        def begin(buffer: Buffer, axis: int) -> Buffer:
            return buffer.shaped((*buffer.shape[:axis], count, *buffer.shape[axis + 1 :]))

        cache, unread = (
            {name: begin(buffer, 1) for name, buffer in each.items()} for each in (self.cache, self.unread)
        )
        return RowSet(whole, [begin(buffer, 0) for buffer in self.x], cache, unread)


class Workspace:
    """Buffers and prepared calls of the stepwise form, for B images in N rows.

    Where guidance ends before the last scale, the rows that nothing reads any more are left out from there on: what
    the others have cached moves together in its own memory, and calls that are bound to fewer rows go on with it.
    """

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
        self._backend, self._constants, self._step = backend, constants, engines["step"]
        step, lengths = engines["step"], config.scale_lengths
        self._infos = infos = {info.name: info for info in (*step.inputs, *step.outputs)}
        make = self._make

        def make_scales(name: str) -> list[Buffer]:
            return [make(name, L=length) for length in lengths]

        varying = {info.name: [dim for dim in info.shape if isinstance(dim, str)] for info in step.inputs}
        self._of_rows = [name for name, dims in varying.items() if dims == ["N"] or name in _PLACES]
        apart = (*_OF_A_SCALE, *_PLACES)
        self.whole = {name: make(name) for name, dims in varying.items() if dims == ["B"] and name not in apart}
        """Inputs that are the same for all scales, whatever the rows: sampling."""
        self.per_scale = [
            {name: make(name, L=length) for name, dims in varying.items() if dims == ["B", "L"] or name == "guidance"}
            for length in lengths
        ]
        """Inputs that each scale has its own of, written before the first: uniforms, forced tokens, noise, guidance."""
        for inputs in self.per_scale:
            if "noise" in inputs:
                inputs["noise"].write(unread("noise", inputs["noise"].shape, "float32"))
        self._empty, *maps = (make("f_hat") for _ in range(3))
        self.f_hat = [maps[scale % 2] for scale in range(config.num_scales)]
        self.tokens, self.drawn = make_scales("tokens"), make_scales("drawn")
        logits = make("logits", L=lengths[-1])
        self.logits = [logits.shaped((shape[0], length, config.vae.vocab_size)) for length in lengths]
        """Guided logits (B, L, V) float32 of each scale, in one place: valid until the next scale runs."""
        self.mixed = make_scales("mixed") if "mixed" in infos else []

        blocks = [f"{kind}_{i}" for kind in "kv" for i in range(config.transformer.depth)]
        self._all_rows = RowSet(
            whole={name: make(name) for name in self._of_rows},
            x=[make("x", L=length) for length in (*lengths, 1)],
            cache={name: make(f"past_{name}", P=config.scale_offsets[-1]) for name in blocks},
            unread={kind: make(f"new_{kind}_0", L=lengths[-1]) for kind in "kv"},
        )
        self._bind(self._all_rows, range(config.num_scales))
        self._rows = self._all_rows
        self._fewer: dict[int, RowSet] = {}
        """Sets of fewer rows by their number: those of the last batch that needed any."""
        self._passing: Buffer | None = None
        """Where the keys of one block pass through while they move together."""
        self._leaving: dict[int, tuple[RowSet, Array]] = {}
        """Of the batch: the scales from which on fewer rows go on, in which set, and which of those before, (n,)."""
        self._started, self._done = ([backend.mark() for _ in range(config.num_scales + 1)] for _ in range(2))
        self.image = _buffer(backend, engines["decode"].outputs[0], {"B": shape[0]})
        self._decode = {
            id(f_hat): _calls(backend, engines["decode"], {"f_hat": f_hat}, {"image": self.image}, shape[0])
            for f_hat in maps
        }

    @property
    def calls(self) -> list[Call]:
        """The calls of all scales, for all rows."""
        return [self._all_rows.calls[scale] for scale in range(self.config.num_scales)]

    def _make(self, name: str, **sizes: int) -> Buffer:
        return _buffer(self._backend, self._infos[name], {"B": self.shape[0], "N": self.shape[1], **sizes})

    def _bind(self, rows: RowSet, scales: Iterable[int]) -> None:
        """Prepare the calls of these scales, unless they are."""
        for scale in scales:
            if scale not in rows.calls:
                inputs = self._step_inputs(rows, scale) | self._constants.inputs[scale]
                rows.calls[scale] = self._step.bind(inputs, self._step_outputs(rows, scale))

    def _step_inputs(self, rows: RowSet, scale: int) -> dict[str, Buffer]:
        cached = self.config.scale_offsets[scale]
        past = {f"past_{name}": buffer.rows(0, cached) for name, buffer in rows.cache.items()}
        f_hat = self.f_hat[scale - 1] if scale else self._empty
        own = self.whole | self.per_scale[scale] | rows.whole
        return {"x": rows.x[scale], "f_hat": f_hat, **past, **own}

    def _step_outputs(self, rows: RowSet, scale: int) -> dict[str, Buffer]:
        """New keys and values go right behind the cached ones: appending copies nothing."""
        cached, length = self.config.scale_offsets[scale], self.config.scale_lengths[scale]
        outputs = {
            "tokens": self.tokens[scale],
            "drawn": self.drawn[scale],
            "f_hat_out": self.f_hat[scale],
            "x_next": rows.x[scale + 1],
            "logits": self.logits[scale],
        }
        for name, buffer in rows.cache.items():
            is_last = scale == self.config.num_scales - 1
            outputs[f"new_{name}"] = rows.unread[name[0]] if is_last else buffer.rows(cached, length)
        return outputs | ({"mixed": self.mixed[scale]} if self.mixed else {})

    def begin(self, batch: Batch, cond: Mapping[str, Array]) -> None:
        """Write what the whole image needs. `cond`: outputs of the cond graph for the batch's rows, by name."""
        config, values = self.config, batch.inputs | dict(cond)
        self._rows = self._all_rows
        self._rows.x[0].write(values["x"])
        for name, buffer in (self.whole | self._rows.whole).items():
            buffer.write(values[name])
        for scale, inputs in enumerate(self.per_scale):
            ramp = values["cfg"] * np.float32(scale / (config.num_scales - 1))
            inputs["guidance"].write(np.where(batch.guided(scale), ramp, np.float32(0)))
            for name, array in batch.per_token.items():
                inputs[name].write(array[:, config.scale_slice(scale)])
        self._plan_rows(batch, cond)

    def _plan_rows(self, batch: Batch, cond: Mapping[str, Array]) -> None:
        """Find the scales from which on fewer rows are read, and prepare for these."""
        self._leaving, last_scale = {}, self.config.num_scales - 1
        if not batch.sampling["cfg_scales"].any():
            return
        rows, kept = batch.rows, np.arange(self.shape[1])
        planned: dict[int, RowSet] = {}
        for scale in range(1, last_scale + 1):
            read = rows.read(batch.guided(scale))
            count = self._step.shape_for(self.shape[0], int(read.sum()))[1]
            if count >= len(read):
                continue
            stay = np.sort(np.argsort(~read, kind="stable")[:count])  # where an engine has a least size, others too
            rows, kept = rows.only(stay), kept[stay]
            there = self._fewer.get(count) or self._all_rows.fewer(
                count, {name: self._make(name, N=count) for name in self._of_rows}
            )
            inputs = {name: array[kept] for name, array in cond.items()} | vars(rows)
            for name, buffer in there.whole.items():
                buffer.write(inputs[name])
            planned[count], self._leaving[scale] = there, (there, stay)
        for scale, (there, _) in self._leaving.items():
            self._bind(there, range(scale, min((s for s in self._leaving if s > scale), default=last_scale + 1)))
        if planned:
            self._fewer = planned
            self._passing = self._passing or self._make("past_k_0", P=self.config.scale_offsets[-1])

    def _leave(self, scale: int) -> None:
        """Go on with fewer rows: move together what the others have cached, and their inputs of this scale."""
        (there, stay), cached = self._leaving[scale], self.config.scale_offsets[scale]
        assert self._passing is not None
        for name, buffer in self._rows.cache.items():
            home = there.cache[name].rows(0, cached)
            passing = self._passing.shaped(home.shape)
            passing.gather(buffer.rows(0, cached), stay.tolist(), axis=1)
            home.gather(passing, range(cached), axis=0)
        for place, row in enumerate(stay.tolist()):
            if place != row:  # in order: no row is written before it has moved
                there.x[scale].rows(place, 1).gather(self._rows.x[scale].rows(row, 1), [0], axis=0)
        self._rows = there

    def advance(self, scale: int) -> None:
        """Start one scale."""
        self._started[scale].record()
        if scale in self._leaving:
            self._leave(scale)
        self._rows.calls[scale].run()
        self._done[scale].record()

    def wait(self, scale: int) -> None:
        """Until the work of `scale` is done; at once on a backend whose calls return when theirs is."""
        self._done[scale].since(self._started[scale])

    def decode(self, scale: int) -> Array:
        """The image (B, h, w, 3) uint8 as it stands after `scale`."""
        self._started[-1].record()
        for call in self._decode[id(self.f_hat[scale])]:
            call.run()
        self._done[-1].record()
        return self.image.read()

    def seconds(self) -> tuple[list[float], float]:
        """What each scale, and the last decode, took; valid after `decode`."""
        *scales, decode = map(self.seconds_of, range(len(self._started)))
        return scales, decode

    def seconds_of(self, scale: int) -> float:
        """What a scale took, once its results were read."""
        return self._done[scale].since(self._started[scale])

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
        self._calls = _calls(backend, engine, self._inputs, self._outputs, shape[0])

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
        for call in self._calls:
            call.run()
        return {name: buffer.read() for name, buffer in self._outputs.items()}
