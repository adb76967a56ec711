"""What `var-run` does once its options are parsed."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engines.bundle.bundle import Bundle, default_bundle
from engines.bundle.labels import ClassNames
from engines.bundle.manifest import Manifest
from engines.cli.common import json_out, print_table, show, tell
from engines.cli.execute import ImageRun, Opened
from engines.cli.options import RANDOM, DrawOptions, FleetOptions, OutputOptions, Seed, SourceOptions
from engines.cli.outputs import Naming, class_naming
from engines.cli.sinks import NO_CLASS, ImageSinks, names_of
from engines.draw.collaboration import check_sizes, joint_manifest, refiner_facts
from engines.draw.request import make_request
from engines.draw.results import ImageSource, Stop
from engines.errors import UsageError
from engines.files.drawing import draw_items
from engines.files.jobs import ImageJob, Item, Made, combinations, hash_of, make_job, shard_of
from engines.foreign import read_arrays
from engines.judging.similarity import psnr
from engines.pictures.grids import Layout
from engines.pictures.images import load_square
from engines.spec.arrays import check_tokens
from engines.spec.choices import ONNXRUNTIME, OPENVINO, OPENVINO_DEVICES, STEPWISE
from engines.spec.presets import PRESETS
from engines.spec.sampling import OPTIONS
from engines.words import printable

if TYPE_CHECKING:
    from engines.draw.collaboration import Collaboration
    from engines.draw.pipeline import Pipeline

MIXED = "mixed"
"""What computes the images of a job whose workers may differ: they are none of any one backend's."""
MOST_COLUMNS = 16  # of a grid with one for each class


def list_classes(source: SourceOptions) -> None:
    """Print index and label of every class."""
    with opening(source) as opened:
        manifest = opened.manifest
    names = names_of(manifest)
    if source.as_json:
        classes = [{"index": index, "label": names.label(index)} for index in range(names.num_classes)]
        json_out({"bundle": manifest.name, "classes": classes, "unconditional": names.unconditional})
    elif manifest.labels is None:
        show(f"{manifest.name} has the classes 0 to {names.num_classes - 1}, without labels")
    else:
        print_table([(index, names.label(index)) for index in range(names.num_classes)], ("class", "label"))


def generate(
    classes: Sequence[str],
    request: DrawOptions,
    output: OutputOptions,
    source: SourceOptions,
    fleet: FleetOptions | None = None,
) -> None:
    """Draw images of classes: here, on a server, or on a cluster."""
    fleet = fleet or FleetOptions()
    with opening(source, request.form) as opened:
        names = names_of(opened.manifest)
        if request.preset is not None:
            PRESETS[request.preset].check(request.preset, names.num_classes)
        settings = job_settings(request, source, opened.manifest) | ({"provider": MIXED} if fleet.mixed else {})
        arguments = job_arguments(names.parse(classes), request, settings)
        job = job_of(arguments, request)
        layout = layout_of(job, request.sampling.sweep, names)
        output = with_grid_of_sweep(output, layout, job, opened.manifest.config.image_size)
        sinks = ImageSinks(output, opened.manifest, job, class_naming(names, job), layout=layout)

        def produce(pipeline: ImageSource, items: Sequence[Item], stop: Stop | None) -> Made:
            return draw_items(pipeline, items, settings, preview=output.previews is not None, stop=stop)

        if fleet.ray is not None:
            from engines.cli.fleet import FleetRun

            backend = backend_of(settings["provider"], opened.manifest)
            run = FleetRun(source, opened, job, sinks, fleet, backend=backend, preview=output.previews is not None)
            run.store_at(output, arguments)
            run.run(seed_remark(request.seed))
            return
        ImageRun(source, opened, job, sinks, produce).run(seed_remark(request.seed))


def job_of(arguments: Mapping[str, Any], request: DrawOptions) -> ImageJob:
    """The job that a request asks for, or the shard of it. `arguments`: see `job_arguments`."""
    job = make_job(**arguments)
    return job if request.shard is None else shard_of(job, request.shard)


def job_arguments(classes: Sequence[int], request: DrawOptions, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What `make_job` is called with for the whole job that a request asks for."""
    seed = request.seed.value if request.seed else 0
    own = {"classes": classes, "settings": settings, "sweep": request.sampling.sweep}
    return {**own, "seed": seed, "count": request.count, "order": request.order}


def layout_of(job: ImageJob, sweep: Mapping[str, Sequence[Any]], names: ClassNames) -> Layout:
    """How the images of a job lie in a grid: what is swept in rows and columns, else a column for each class."""
    classes, count = job.settings["classes"], job.settings["count"]
    if not sweep or job.shard is not None:  # which shows none
        return Layout(len(classes) if count > 1 and 1 < len(classes) <= MOST_COLUMNS else None)
    *slow, fast = sweep
    above = tuple(f"{fast.replace('_', '-')} {value:g}" for value in sweep[fast])
    rows = job.items[:: len(above)]
    several = len(classes) * count > 1 or not slow
    beside = tuple(
        ", ".join(
            [
                *([f"{names.short_label(item.class_id)}, seed {item.seed}"] if several else []),
                *(f"{name.replace('_', '-')} {item.sampling[name]:g}" for name in slow),
            ]
        )
        for item in rows
    )
    return Layout(len(above), above, beside)


def with_grid_of_sweep(output: OutputOptions, layout: Layout, job: ImageJob, side: int) -> OutputOptions:
    """The options with a grid, where something is swept and it can be shown in one; `side`: of an image, in pixels."""
    shows = bool(layout.above) and output.npz is None and job.shard is None and layout.fits(len(job.items), side)
    return dataclasses.replace(output, grid=output.grid or shows)


def seed_remark(seed: Seed | None) -> str | None:
    """A line about a seed that nobody named."""
    if seed is None:
        return f"seed 0, as always: --seed 1, or --seed {RANDOM}, draws others"
    return f"seed {seed.value}: --seed {seed.value} draws this again" if seed.drawn else None


def decode_tokens(path: Path, output: OutputOptions, source: SourceOptions) -> None:
    """Turn saved tokens into images."""
    opened = open_local(source)
    manifest = opened.manifest
    saved = _load_tokens(path, manifest)
    tokens = saved["tokens"].astype(np.int64)
    classes, seeds = saved.get("classes"), saved.get("seeds")
    items = tuple(
        Item(
            index,
            NO_CLASS if classes is None else int(classes[index]),
            0 if seeds is None else int(seeds[index]),
            hash_of([manifest.build_key, _computes_on(source, manifest), row.tobytes().hex()]),
        )
        for index, row in enumerate(tokens)
    )
    job = _fixed_job(items, {**_runtime_settings(source, manifest), "tokens": printable(path.name)})
    many = "{index:05d}.png" if classes is None or seeds is None else class_naming(names_of(manifest), job).many
    naming = Naming(single=f"{literal(path.stem)}-decoded.png", many=many, folder=Path("decoded"))

    def produce(pipeline: Pipeline, batch: Sequence[Item], _: Stop | None) -> Made:
        rows = tokens[[item.index for item in batch]]
        return Made(pipeline.decode(rows), rows)

    ImageRun(source, opened, job, ImageSinks(output, manifest, job, naming), produce).run()


def reconstruct(path: Path, output: OutputOptions, source: SourceOptions) -> None:
    """Encode and decode one picture, here or on a server, and say how close it came."""
    with opening(source) as opened:
        manifest = opened.manifest
        image = load_square(path, manifest.config.image_size)
        key = hash_of([manifest.build_key, _computes_on(source, manifest), image.tobytes().hex()])
        job = _fixed_job(
            (Item(0, NO_CLASS, 0, key),), {**_runtime_settings(source, manifest), "image": printable(path.name)}
        )
        naming = Naming(single=f"{literal(path.stem)}-reconstructed.png", many="{index}.png", folder=Path("out"))

        def produce(pipeline: ImageSource, _: Sequence[Item], _stop: Stop | None) -> Made:
            images = pipeline.reconstruct(image[None])
            quality = psnr(images[0], image)
            execution.extra["psnr_db"] = None if math.isinf(quality) else quality
            return Made(images)

        execution = ImageRun(source, opened, job, ImageSinks(output, manifest, job, naming), produce)
        execution.run()


def _fixed_job(items: tuple[Item, ...], settings: Mapping[str, Any]) -> ImageJob:
    """A job of exactly these images, none more."""
    return ImageJob(items, {**settings, "count": len(items)}, hash_of([item.key for item in items]))


@contextmanager
def opening(source: SourceOptions, form: str | None = None) -> Iterator[Opened[Any]]:
    """The server where one was named, or a bundle here."""
    if source.url is None:
        yield open_local(source, form) if source.refine is None else _open_both(source)
        return
    from engines.triton.client import RemotePipeline

    with RemotePipeline(source.url) as remote:
        yield Opened(remote.manifest, remote.url, lambda: remote)


def open_local(source: SourceOptions, form: str | None = None) -> Opened[Pipeline]:
    """A bundle here. Its files are not verified before there is something to make: `Pipeline.load` does that."""
    path = source.bundle
    if path is None:
        path, phrase = default_bundle()
        tell(f"using {phrase}")
    bundle = Bundle.open(path, verify=False)
    return Opened(bundle.manifest, str(bundle.path), lambda: _load(source, bundle.path, form))


def _load(source: SourceOptions, bundle: Path, form: str | None) -> Pipeline:
    from engines.draw.pipeline import Pipeline

    return Pipeline.load(
        bundle, form=form, max_batch=source.batch, check=source.check, tell=tell, **vars(source.runtime)
    )


def _open_both(source: SourceOptions) -> Opened[Collaboration]:
    """The bundle that drafts, and what draws with it and with that which refines."""
    assert source.refine is not None and source.refine_from is not None
    refine, refine_from = source.refine, source.refine_from
    drafter, refiner = open_local(source, STEPWISE), Bundle.open(refine, verify=False).manifest
    check_sizes(drafter.manifest, refiner, refine_from)

    def load() -> Collaboration:
        from engines.draw.collaboration import Collaboration

        return Collaboration(
            drafter.load,
            partial(_load, source, refine, STEPWISE),
            refine_from=refine_from,
            sequential=source.sequential,
        )

    return Opened(joint_manifest(drafter.manifest, refiner), drafter.place, load)


def _runtime_settings(source: SourceOptions, manifest: Manifest) -> dict[str, Any]:
    refined = {}
    if source.refine is not None:
        refiner = Bundle.open(source.refine, verify=False).manifest
        refined = refiner_facts(refiner, source.refine_from or 0)
        refined["refiner_provider"] = _computes_on(source, refiner)
    return {
        "bundle": manifest.name,
        "build_key": manifest.build_key,
        "precision": manifest.precision,
        "provider": _computes_on(source, manifest),
        **refined,
    }


def _computes_on(source: SourceOptions, manifest: Manifest) -> str:
    """What pixels may depend on beside the bundle: ONNX Runtime's provider, OpenVINO's device, plans, or a server."""
    if source.url is not None:
        return "triton"
    runtime = source.runtime
    provider, backend = runtime.provider.lower(), runtime.asked_for()
    usable = [plans.name for plans in manifest.plans if backend in (None, plans.built_on.target)]
    if backend is None and provider == "cpu" and not usable and not importlib.util.find_spec("onnxruntime"):
        backend = OPENVINO  # as `engines.backends.for_bundle` decides
    if backend == OPENVINO:
        usual = (None, OPENVINO_DEVICES[0])
        chosen = [str(word) for word in (runtime.device, runtime.precision_hint) if word not in usual]
        return " ".join([OPENVINO, *chosen])
    if backend == ONNXRUNTIME or provider != "cpu":
        return provider
    return usable[-1] if usable else provider


def backend_of(computes_on: str, manifest: Manifest) -> str | None:
    """The backend that computes on what a job's `provider` says; None where each worker may choose."""
    if computes_on == MIXED:
        return None
    plans = {each.name: each.built_on.target for each in manifest.plans}
    return plans.get(computes_on) or (OPENVINO if computes_on.split()[0] == OPENVINO else ONNXRUNTIME)


def job_settings(request: DrawOptions, source: SourceOptions, manifest: Manifest) -> dict[str, Any]:
    """Everything that the pixels follow from beside class, seed and what is swept, checked, with the bundle's defaults.

    What is unusual is told.
    """
    chosen, form = request.sampling, request.form or manifest.forms[0]
    if source.refine is not None:
        form = STEPWISE
    for cell in combinations(chosen.sweep):
        make_request(manifest, [0], seeds=0, **{**chosen.one, **cell}).check_form(form, manifest.config)
    values: Any = {name: (value,) for name, value in chosen.one.items()} | chosen.sweep
    warnings = [option.warning(value) for option in OPTIONS for value in values.get(option.name, ())]
    for warning in filter(None, warnings):
        tell(warning)
    defaults: Any = dataclasses.asdict(manifest.sampling.fitted(manifest.max_top_k))
    return {
        **_runtime_settings(source, manifest),
        "form": form,
        **(defaults | chosen.one),
    }


def _load_tokens(path: Path, manifest: Manifest) -> dict[str, NDArray[Any]]:
    """The arrays of a --save-tokens file, checked: `tokens` (B, T), and where they are, `classes` and `seeds` (B,)."""
    wanted = manifest.config.num_tokens

    def accept(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        if name == "tokens" and (len(shape) != 2 or shape[1] != wanted or not shape[0]):
            raise UsageError(f"{path}: tokens have shape {shape}, and {manifest.name} needs (images, {wanted})")

    saved = read_arrays(path, ("tokens", "classes", "seeds"), accept, what=".npz file of tokens", optional=True)
    if "tokens" not in saved:
        raise UsageError(f"{path} has no array called tokens: --save-tokens writes such files")
    tokens = saved["tokens"]
    check_tokens(tokens, manifest.config)
    for name in ("classes", "seeds"):
        if name in saved and (saved[name].shape != (len(tokens),) or not np.issubdtype(saved[name].dtype, np.integer)):
            raise UsageError(f"{path}: {name} must be one integer per image")
    return saved


def literal(name: str) -> str:
    """`name` as a part of a pattern."""
    return name.replace("{", "{{").replace("}", "}}")
