"""The `config.pbtxt` of the two models, as protobuf text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engines.bundle.manifest import Manifest
from engines.spec.choices import CHECKS, Device
from engines.spec.config import ModelConfig
from engines.spec.contract import TensorSpec
from engines.triton.wire import FACTS, INPUTS, OUTPUTS, STREAM_OUTPUTS, dims_of, pack_facts

HEADER = "# Written by var-export"
SPARE_WORKERS = 8  # of the unary model, beyond what the streaming model holds: they bring the refusals


class Word(str):
    """An enumeration value: written without quotes."""

    __slots__ = ()


@dataclass(frozen=True, kw_only=True)
class Serving:
    """How the models serve."""

    name: str = "var"
    max_batch: int = 8
    queue_size: int = 64
    queue_seconds: float = 60.0
    instances: int = 1
    cache: bool = False
    backend: str | None = None
    provider: str = "cpu"
    device: Device | None = None
    threads: int | None = None
    precision_hint: str | None = None
    check: str = CHECKS[0]

    @property
    def stream_name(self) -> str:
        """Name of the streaming model."""
        return f"{self.name}_stream"


def unary_config(serving: Serving, bundle: Manifest) -> str:
    """Of the model that answers with one response."""
    # More than the streaming model holds in Triton's queue, in formed batches and in the engines: it is what refuses.
    workers = serving.queue_size + 4 * serving.instances * serving.max_batch + SPARE_WORKERS
    return pbtxt(
        {
            "name": serving.name,
            "backend": "python",
            "max_batch_size": serving.max_batch,
            "input": _tensors(INPUTS, bundle.config, optional=True),
            "output": _tensors(OUTPUTS, bundle.config),
            "instance_group": {"count": 1, "kind": Word("KIND_CPU")},
            **({"response_cache": {"enable": True}} if serving.cache else {}),
            "parameters": _parameters(stream_model=serving.stream_name, workers=workers, **{FACTS: pack_facts(bundle)}),
        }
    )


def stream_config(serving: Serving, bundle: Manifest, place: str) -> str:
    """Of the model that holds the engines. `place`: the bundle's folder, absolute or from the version's folder."""
    return pbtxt(
        {
            "name": serving.stream_name,
            "backend": "python",
            "max_batch_size": serving.max_batch,
            "model_transaction_policy": {"decoupled": True},
            "input": _tensors(INPUTS, bundle.config, optional=True),
            "output": _tensors(STREAM_OUTPUTS, bundle.config),
            "instance_group": {"count": serving.instances, "kind": Word("KIND_CPU")},
            "dynamic_batching": dynamic_batching(serving),
            "model_warmup": [_warmup(batch) for batch in sorted({1, serving.max_batch})],
            "parameters": _parameters(
                unary_model=serving.name,
                bundle=place,
                backend=serving.backend or "",
                provider=serving.provider,
                device="" if serving.device is None else serving.device,
                threads=serving.threads or "",
                precision_hint=serving.precision_hint or "",
                check=serving.check,
            ),
        }
    )


def dynamic_batching(serving: Serving) -> dict[str, Any]:
    """Joined batches from a bounded queue, whose requests do not wait for ever."""
    return {
        "default_queue_policy": {
            "timeout_action": Word("REJECT"),
            "default_timeout_microseconds": round(serving.queue_seconds * 1e6),
            "allow_timeout_override": True,
            "max_queue_size": serving.queue_size,
        },
    }


def tensor_entry(name: str, dtype: str, dims: Sequence[int]) -> dict[str, Any]:
    """An input or output of a configuration; `dtype` is Triton's name, as requests spell it."""
    return {"name": name, "data_type": Word("TYPE_STRING" if dtype == "BYTES" else f"TYPE_{dtype}"), "dims": list(dims)}


def pbtxt(message: Mapping[str, Any]) -> str:
    """A message in protobuf's text format, under our header."""
    return "\n".join([HEADER, *_lines(message, "")]) + "\n"


def _tensors(tensors: Sequence[TensorSpec], model: ModelConfig, **more: bool) -> list[dict[str, Any]]:
    return [tensor_entry(tensor.name, tensor.dtype, dims_of(tensor, model)) | more for tensor in tensors]


def _parameters(**values: object) -> list[dict[str, Any]]:
    return [{"key": key, "value": {"string_value": str(value)}} for key, value in values.items()]


def _warmup(batch: int) -> dict[str, Any]:
    zero = {"data_type": Word("TYPE_INT64"), "dims": [1], "zero_data": True}
    return {"name": f"class_0_times_{batch}", "batch_size": batch, "inputs": {"key": "class", "value": zero}}


def _lines(message: Mapping[str, Any], indent: str) -> Iterator[str]:
    for name, value in message.items():
        repeated = value if isinstance(value, list) and value and isinstance(value[0], Mapping) else [value]
        for item in repeated:
            if isinstance(item, Mapping):
                yield f"{indent}{name} {{"
                yield from _lines(item, indent + "  ")
                yield f"{indent}}}"
            else:
                yield f"{indent}{name}: {_scalar(item)}"


def _scalar(value: object) -> str:
    """Protobuf's text format writes numbers, flags, strings and lists as JSON does."""
    return value if isinstance(value, Word) else json.dumps(value, ensure_ascii=False)
