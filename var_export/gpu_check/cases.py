"""What there is to check: every model, precision, form and backend, as steps in the order in which they run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from engines.spec.choices import BOTH, FLOAT_PRECISIONS, FORMS, ONNXRUNTIME, PLAN_TARGETS

MODELS = ("demo", "d16")
CHECKED_BACKENDS = (*PLAN_TARGETS, ONNXRUNTIME)
"""In the order in which they are checked."""
RIVALS = ("eager", "eager-half", "compiled", "compiled-graphs")
"""How the PyTorch reference runs, see `race.py`."""
PROBES = ("gpu", *CHECKED_BACKENDS, "torch")
STATIC = ("d16", "fp16", "1")
"""Model, precision and batch of the one set of plans that is built for a single batch too, to compare sizes."""
BF16_SINCE = 8.0  # compute capability


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a user asks for."""

    models: tuple[str, ...] = MODELS
    precisions: tuple[str, ...] = FLOAT_PRECISIONS
    forms: tuple[str, ...] = FORMS
    backends: tuple[str, ...] = CHECKED_BACKENDS
    device: int = 0
    batches: tuple[int, ...] = (1, 8)
    runs: int = 20
    torch: bool = True

    @property
    def batch_range(self) -> str:
        """MIN:OPT:MAX images of one call of the plans."""
        return f"1:1:{max(self.batches)}"


@dataclass(frozen=True, kw_only=True)
class CheckStep:
    """One thing to do, in a process of its own."""

    kind: str
    """`probe`, `bundle`, `plans`, `verify`, `bench` or `race`."""
    model: str = ""
    precision: str = ""
    backend: str = ""
    form: str = ""
    """How images are drawn; bundles and plans may be of `both` forms."""
    batch: str = ""
    """Range of the plans; empty where there are none."""
    rival: str = ""

    @property
    def case(self) -> str:
        """What it is about, for people."""
        form = "" if self.form == BOTH else self.form
        single = "" if self.batch in ("",) or ":" in self.batch else f"(batch {self.batch} only)"
        return " ".join(filter(None, (self.model, self.precision, form, self.backend, single)))

    @property
    def name(self) -> str:
        """Unlike that of any other step of a run."""
        form = BOTH if self.form == BOTH and self.kind == "plans" else ""
        return " ".join(filter(None, (f"{self.kind}:", self.case, form, self.rival and f"against {self.rival}")))

    @property
    def slug(self) -> str:
        """`name` as a file's."""
        return "-".join("".join(c if c.isalnum() else " " for c in self.name).split())


@dataclass(frozen=True, kw_only=True)
class StepJob:
    """A step with all that its process needs to know."""

    step: CheckStep
    out: Path
    """Folder of the check."""
    folder: Path | None = None
    """Folder of the bundle whose engines are meant; None for a step that builds or probes."""
    device: int = 0
    batches: tuple[int, ...] = ()
    runs: int = 0

    def to_json(self) -> str:
        """`from_json` is the inverse."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> StepJob:
        """The inverse of `to_json`."""
        value = json.loads(text)
        paths = {name: value[name] and Path(value[name]) for name in ("out", "folder")}
        return cls(**value | paths | {"step": CheckStep(**value["step"]), "batches": tuple(value["batches"])})


@dataclass(frozen=True)
class Skipped:
    """Something that does not run, and why."""

    what: str
    reason: str


def bundle_folder(out: Path, step: CheckStep) -> Path:
    """Folder of the bundle, in both forms, that a step's engines come from."""
    return out / "bundles" / f"{step.model}-{step.precision}"


def plans_folder(out: Path, step: CheckStep) -> Path:
    """Of the bundle that a step's plans join: the one with both forms, or a part of it."""
    whole = bundle_folder(out, step)
    if step.form == BOTH:
        return whole
    batch = "" if ":" in step.batch else f"-batch{step.batch}"
    return whole.with_name(f"{whole.name}-{step.form}{batch}")


def why_not(backend: str, precision: str, capability: str) -> str | None:
    """Why a backend cannot run a precision on a GPU of this compute capability; None where it can."""
    if backend == "tensorrt-rtx":
        from engines.backends.tensorrt.options import RTX_CAPABILITIES

        if capability not in RTX_CAPABILITIES:
            known = ", ".join(RTX_CAPABILITIES)
            return f"TensorRT-RTX knows no compute capability {capability}, but {known}; use tensorrt"
    if precision != "bf16":
        return None
    if backend == ONNXRUNTIME:
        return "ONNX Runtime refuses BF16 convolutions at the graphs' opset 20"
    if float(capability) < BF16_SINCE:
        return f"BF16 needs compute capability {BF16_SINCE}, this GPU has {capability}"
    return None


def plan_steps(
    settings: Settings, problems: Mapping[str, str | None], capability: str
) -> tuple[list[CheckStep], list[Skipped]]:
    """All steps after the probes, in their order, and what is left out.

    Everything is built, verified and timed first; races with PyTorch, which take longest, come last. `problems` tells
    by probe why it cannot be used, None where it can; `capability` is the GPU's.
    """
    skipped = [Skipped(name, problems[name] or "") for name in settings.backends if problems[name]]
    usable = [name for name in settings.backends if not problems[name]]
    steps: list[CheckStep] = []
    raced: list[CheckStep] = []
    for model in settings.models:
        for precision in settings.precisions:
            able = []
            for backend in usable:
                reason = why_not(backend, precision, capability)
                if reason is None:
                    able.append(backend)
                else:
                    skipped.append(Skipped(f"{model} {precision} {backend}", reason))
            if able:
                steps.append(CheckStep(kind="bundle", model=model, precision=precision, form=BOTH))
            for backend in able:
                mine = _of_backend(settings, model, precision, backend)
                steps += mine
                raced += [step for step in mine if step.kind == "bench" and step.batch != STATIC[2]]
    if not settings.torch:
        skipped.append(Skipped("PyTorch on the GPU", "left out by --no-torch"))
    elif problems["torch"]:
        skipped.append(Skipped("PyTorch on the GPU", problems["torch"]))
    else:
        for rival in RIVALS:  # those that compile take long, and come last
            steps += [replace(step, kind="race", rival=rival) for step in raced]
    return steps, skipped


def _of_backend(settings: Settings, model: str, precision: str, backend: str) -> list[CheckStep]:
    """Plans where the backend needs any, then a check and a timing of each form."""
    planned = backend != ONNXRUNTIME
    batch = settings.batch_range if planned else ""
    steps = []

    def add(kind: str, form: str, batch: str) -> None:
        steps.append(CheckStep(kind=kind, model=model, precision=precision, backend=backend, form=form, batch=batch))

    if planned:
        add("plans", BOTH if len(settings.forms) > 1 else settings.forms[0], batch)
    for form in settings.forms:
        add("verify", form, batch)
        add("bench", form, batch)
    if planned and (model, precision) == STATIC[:2] and "stepwise" in settings.forms and batch != "1:1:1":
        for kind in ("plans", "verify", "bench"):
            add(kind, "stepwise", STATIC[2])
    return steps
