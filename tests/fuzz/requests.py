"""Requests with something wrong: arguments of `Pipeline`, and what a server reads off the wire."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from engines.bundle.manifest import sealed
from engines.draw.pipeline import Pipeline
from engines.spec.sampling import OPTIONS
from engines.triton.serving.service import Service
from engines.triton.wire import pack_facts, read_parameters, read_preview_scales, unpack_facts
from tests.bundles import shared_bundle
from tests.fuzz import odd

KINDS = ("generate", "generate", "stream", "edit", "encode", "decode", "wire", "facts", "service")


class Requests:
    """The class of cases about requests."""

    def __init__(self, folder: Path) -> None:
        self.pipeline = Pipeline.load(shared_bundle("tiny-fp32"), threads=1, max_batch=2, check="never")
        self.service = Service(self.pipeline, lambda *counted: None)
        config = self.pipeline.config
        self.size, self.tokens, self.cells = config.image_size, config.num_tokens, config.latent_size
        self.honest = self.pipeline.generate([1], seeds=3).images
        self.facts = json.loads(pack_facts(self.pipeline.bundle.manifest))

    def run(self, rng: np.random.Generator) -> tuple[str, str]:
        """One case, see `tests.fuzz.bundles`."""
        kind = odd.pick(rng, KINDS)
        try:
            getattr(self, f"_{kind}")(rng)
        finally:
            assert np.array_equal(self.pipeline.generate([1], seeds=3).images, self.honest), "the next picture differs"
        return kind, "answered"

    def _argument(self, rng):
        return odd.pick(
            rng,
            [
                odd.value(rng),
                odd.value(rng),
                1,
                0,
                [1],
                "1",
                10**5000,
                np.array(3),
                np.float32(np.nan),
                np.zeros(0),
                np.zeros((2, 2)),
                np.array(["a", None], object),
                b"x",
                {1, 2},
                1j,
                object(),
                range(3),
                np.uint64(2**63),
                np.datetime64("2020"),
                (),
                [[1, 2], [3]],
                [None],
                lambda: 1,
                "all," * 1000,
                "9" * 6000,
                "a" * 10**6,
            ],
        )

    def _array(self, rng):
        shape = odd.pick(
            rng,
            [
                (1, self.size, self.size, 3),
                (self.size, self.size, 3),
                (1, self.tokens),
                (0, self.tokens),
                (2, self.tokens),
                (self.cells, self.cells),
                (self.size, self.size),
                (1, self.cells, self.cells),
                (),
                (0,),
                (1, 1, 1, 1, 1),
            ],
        )
        kind = odd.pick(rng, ["uint8", "int64", "bool", "float32", "object", "uint64", "U2"])
        array = np.zeros(shape, kind)
        if array.size and kind in ("int64", "uint64") and rng.random() < 0.5:
            array.reshape(-1)[0] = odd.pick(rng, [2**40, 63, 64, 1])
        return array if rng.random() < 0.8 else self._argument(rng)

    def _sampling(self, rng):
        chosen = [option.name for option in OPTIONS if rng.random() < 0.3]
        return {name: self._argument(rng) for name in chosen}

    def _classes(self, rng):
        return self._argument(rng) if rng.random() < 0.5 else 1

    def _generate(self, rng):
        more = {} if rng.random() < 0.7 else {"forced": (self._array(rng), self._array(rng))}
        seeds = self._argument(rng) if rng.random() < 0.4 else 3
        result = self.pipeline.generate(self._classes(rng), seeds=seeds, **more, **self._sampling(rng))
        assert result.images.dtype == np.uint8

    def _stream(self, rng):
        scales = odd.pick(rng, [None, [0], [[0], [1]], self._argument(rng), self._argument(rng)])
        list(self.pipeline.stream(self._classes(rng), seeds=3, preview_scales=scales, **self._sampling(rng)))

    def _edit(self, rng):
        self.pipeline.edit(
            self._array(rng), self._array(rng), odd.pick(rng, [None, 1, self._argument(rng)]), seeds=self._argument(rng)
        )

    def _encode(self, rng):
        self.pipeline.encode(self._array(rng))

    def _decode(self, rng):
        self.pipeline.decode(self._array(rng))

    def _wire(self, rng):
        text = odd.pick(rng, [*odd.TEXTS, "0,1,2", "{}", "[" * 10**5, '{"a":' * 10**4, '{"preview_scales": "0"}', None])
        if rng.random() < 0.5:
            read_preview_scales(text, 4)
        else:
            read_parameters(text)

    def _facts(self, rng):
        document = odd.edited(rng, self.facts)
        text = json.dumps(sealed(document) if rng.random() < 0.7 else document)
        facts = unpack_facts(
            text if rng.random() < 0.7 else odd.damaged(rng, text.encode()).decode("latin-1"), "a server"
        )
        json.dumps(facts.to_dict())

    def _service(self, rng):
        asked = [Asked(self, rng) for _ in range(int(rng.integers(1, 4)))]
        asked.append(Asked(self, None))
        self.service.run(asked)
        for each in asked:
            assert each.finals == 1, (each.error, each.given)
            assert each.error is None or (each.error[0] == "INVALID_ARG" and each.error[1].isprintable()), each.error
        assert asked[-1].error is None, asked[-1].error
        assert np.array_equal(asked[-1].image, self.honest)


class Asked:
    """A request of the streaming model; without `rng` the honest one."""

    def __init__(self, cases, rng):
        self.given, self.parameters, self.finals, self.error, self.image = {}, {}, 0, None, None
        if rng is None:
            self.given = {"class": np.array([[1]]), "seed": np.array([[3]], np.uint64)}
            return
        for name in ("class", "label", "seed", *(option.name for option in OPTIONS)):
            if rng.random() < 0.4:
                kind = {"class": "int64", "label": "object", "seed": "uint64"}.get(name, "float32")
                shape = odd.pick(rng, [(1, 1), (1, 1), (1, 1), (2, 1), (1, 2), (0, 1), (1,)])
                self.given[name] = np.full(shape, odd.pick(rng, [0, 1, 3, 99, 2**40]), kind)
                if name == "label":
                    text = odd.pick(rng, odd.TEXTS).encode("utf-8", "surrogatepass")
                    self.given[name] = np.full(shape, odd.pick(rng, [text, b"\xff", b"1", 7]), object)
        if rng.random() < 0.5:
            self.parameters["preview_scales"] = odd.pick(rng, odd.TEXTS)

    def tensor(self, name):
        return self.given.get(name)

    def parameter(self, name):
        return self.parameters.get(name)

    def cancelled(self):
        return False

    def send(self, outputs, *, final):
        self.finals += final
        self.image = outputs["image"]

    def fail(self, code, message):
        self.finals += 1
        self.error = (code, message)
