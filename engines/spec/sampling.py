"""The sampling options of an image: the one table of what each is called, holds, allows and means.

Requests, batches, graphs, golden runs, both command lines and Triton read it: a field of `Sampling` is an option of
`Pipeline.generate`, of `var-run`, of a request to a server, and an input of the graphs unless the scale loop alone
obeys it. `var_export/model/sampling.py` says what they do to a draw, and `var_export/graphs/sampler.py` does it in a
graph.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from engines.errors import UsageError
from engines.spec.config import check_types

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_DTYPES = {"float": "float32", "int": "int64", "bool": "bool"}


@dataclass(frozen=True, kw_only=True)
class SamplingOption:
    """One row of the table."""

    name: str
    """In Python, JSON, golden runs, requests to a server and graphs alike."""
    kind: str
    """`float`, `int` or `bool`."""
    meaning: str
    """For the table of graph inputs, Triton's, and `--help`."""
    low: float = -math.inf
    high: float = math.inf
    remedy: str = ""
    """What to do instead of a value outside of the range."""
    usual: tuple[float, float] | None = None
    """The range in which models draw what they learned; None: every value does."""
    per_scale: bool = False
    """Whether a step takes what the loop makes of it (cfg becomes `guidance`), instead of the value itself."""
    opt_in: bool = False
    """Whether only the graphs of a bundle that was built for it take it. No bundle recommends it."""
    by_loop: bool = False
    """Whether the scale loop alone obeys it: no graph takes it, and no bundle knows of it."""

    @property
    def dtype(self) -> str:
        """Numpy's name for the type of a batch's values."""
        return _DTYPES[self.kind]

    @property
    def flag(self) -> str:
        """The option of a command line."""
        return "--" + self.name.replace("_", "-")

    def holds(self, value: Any) -> Any:
        """Whether a value, or each of an array, lies in the range."""
        return (value >= self.low) & (value <= self.high)

    def warning(self, value: float) -> str | None:
        """What to say of a value that is allowed and rarely meant; None where there is nothing to say."""
        if self.usual is None or self.usual[0] <= value <= self.usual[1]:
            return None
        return f"{self.flag} {value:g} is unusual, and pictures suffer: {self.usual[0]:g} to {self.usual[1]:g} is usual"

    def refusal(self, value: object) -> UsageError:
        """Says which values there are, and what to do instead of `value`."""
        allowed = f"lie in {self.low:g} to {self.high:g}" if self.high < math.inf else f"be {self.low:g} or more"
        return UsageError(f"{self.name} must {allowed}, got {value}" + (f"; {self.remedy}" if self.remedy else ""))


def _option(default: float, meaning: str, **columns: Any) -> Any:
    return dataclasses.field(default=default, metadata={"meaning": meaning, **columns})


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How an image is drawn from what the transformer says; the official ImageNet values unless given.

    A bundle recommends one, and a job of `var-run` fixes one. Raises `UsageError` on values that cannot be.
    """

    # Beyond 1000, differences of logits leave what float32 can tell apart.
    cfg: float = _option(4.0, "guidance; 0 is none, and half the work", low=0, high=1000, usual=(0, 10), per_scale=True)
    # Below 0.0001, quotients of logits overflow.
    temperature: float = _option(
        1.0,
        "divides the logits; above 0",
        low=1e-4,
        usual=(0.2, 2),
        remedy="for the most likely token at each place use top_k 1",
    )
    top_k: int = _option(900, "most likely tokens kept; 0 keeps all", low=0)
    top_p: float = _option(0.95, "probability mass kept; 0 and 1 keep all", low=0, high=1)
    smooth: bool = _option(False, "mixes codebook entries: softer; of bundles built with --smooth", opt_in=True)
    cfg_scales: int = _option(0, "guidance in so many first scales; 0 is all", low=0, by_loop=True)

    def __post_init__(self) -> None:
        check_types(self, "sampling.")
        for option in OPTIONS:
            if not option.holds(value := getattr(self, option.name)):
                raise UsageError(f"sampling.{option.refusal(value)}")
            if option.kind == "float":  # as JSON may have it without a point
                object.__setattr__(self, option.name, float(value))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types: what a manifest holds of it."""
        return {option.name: getattr(self, option.name) for option in IN_GRAPHS}

    def fitted(self, max_top_k: int) -> Sampling:
        """The same with what a bundle can do that sorts so many tokens."""
        return dataclasses.replace(self, top_k=min(self.top_k, max_top_k))

    def describe(self) -> str:
        """For people, what decides a draw beside the guidance: `temperature 1, top-k 900, top-p 0.95`."""
        options = [option for option in RECOMMENDED if not option.per_scale]
        return ", ".join(f"{option.flag[2:]} {getattr(self, option.name):g}" for option in options)


OPTIONS = tuple(
    SamplingOption(name=entry.name, kind=str(entry.type), **entry.metadata) for entry in dataclasses.fields(Sampling)
)
IN_GRAPHS = tuple(option for option in OPTIONS if not option.by_loop)
"""What graphs take, or make `guidance` of, and manifests hold."""
RECOMMENDED = tuple(option for option in IN_GRAPHS if not option.opt_in)
"""What a bundle recommends, and its golden run was drawn with."""

if TYPE_CHECKING:
    PerImage = float | Sequence[float] | NDArray[Any] | None
    PerImageFlag = bool | Sequence[bool] | NDArray[np.bool_] | None


class SamplingOptions(TypedDict, total=False):
    """`Sampling` as keywords of `Pipeline.generate`: each a value for all images, or one per image.

    None, and what is left out, is what the bundle recommends.
    """

    cfg: PerImage
    temperature: PerImage
    top_k: PerImage
    top_p: PerImage
    smooth: PerImageFlag
    cfg_scales: PerImage
