"""What `var-run` does once its options are parsed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engines.bundle.bundle import Bundle, default_bundle
from engines.bundle.labels import ClassNames
from engines.bundle.manifest import Manifest
from engines.cli.common import json_out, print_table, show, tell, version
from engines.cli.execute import Execution
from engines.cli.outputs import Naming, Target, class_naming, resolve
from engines.draw.request import check_tokens, make_request
from engines.errors import UsageError
from engines.fidelity.similarity import psnr
from engines.files.images import check_grid, load_square
from engines.files.jobs import Item, Job, Made, Sink, hash_of, make_job
from engines.files.npz import NpzRows
from engines.files.pictures import Grid, Pictures
from engines.spec.choices import ONNXRUNTIME
from engines.spec.uniforms import uniforms

if TYPE_CHECKING:
    from engines.cli.options import Options
    from engines.triton.client import RemotePipeline

SAMPLING = ("cfg", "top_k", "top_p", "temperature", "smooth")
"""Of a job's settings, those that `Pipeline.generate` takes."""
NO_CLASS = -1  # of an image that was not drawn from a class


def list_classes(options: Options) -> None:
    """Print index and label of every class."""
    with _source(options) as source:
        bundle = source.manifest
        names = names_of(bundle)
    if options.as_json:
        classes = [{"index": index, "label": names.label(index)} for index in range(names.num_classes)]
        json_out({"bundle": bundle.name, "classes": classes, "unconditional": names.unconditional})
    elif bundle.labels is None:
        show(f"{bundle.name} has the classes 0 to {names.num_classes - 1}, without labels")
    else:
        print_table([(index, names.label(index)) for index in range(names.num_classes)], ("class", "label"))


def generate(options: Options) -> None:
    """Draw images of classes, here or on a server."""
    with _source(options) as source:
        bundle = source.manifest
        names = names_of(bundle)
        classes = names.parse(options.classes)
        job = make_job(classes, seed=options.seed, count=options.count, settings=job_settings(options, bundle))
        target = target_of(options, bundle, job, class_naming(names))
        sampling = {name: job.settings[name] for name in SAMPLING}

        def produce(items: Sequence[Item]) -> Made:
            of_items, seeds = [item.class_id for item in items], [item.seed for item in items]
            if not options.preview:
                result = execution.source.generate(of_items, seeds=seeds, **sampling)
                execution.add_timings(result.timings)
                return Made(result.images, result.tokens)
            previews = list(execution.source.stream(of_items, seeds=seeds, **sampling))
            return Made(previews[-1].images, previews[-1].tokens, [preview.images for preview in previews])

        execution = Execution(options, source, job, produce)
        execution.run(lambda: sinks_of(options, bundle, job, target, names))


def decode_tokens(options: Options, path: Path) -> None:
    """Turn saved tokens into images."""
    bundle = open_bundle(options)
    names = names_of(bundle)
    saved = _load_tokens(path, bundle)
    tokens = saved["tokens"].astype(np.int64)
    settings = {**_runtime_settings(options, bundle), "tokens": path.name}
    classes, seeds = saved.get("classes"), saved.get("seeds")
    items = tuple(
        Item(
            index,
            NO_CLASS if classes is None else int(classes[index]),
            0 if seeds is None else int(seeds[index]),
            hash_of([bundle.build_key, _computes_on(options, bundle), row.tobytes().hex()]),
        )
        for index, row in enumerate(tokens)
    )
    job = Job(items, settings)
    many = "{index:05d}.png" if classes is None or seeds is None else class_naming(names).many
    naming = Naming(single=f"{literal(path.stem)}-decoded.png", many=many, folder=Path("decoded"))

    def produce(batch: Sequence[Item]) -> Made:
        rows = tokens[[item.index for item in batch]]
        return Made(execution.pipeline.decode(rows), rows)

    execution = Execution(options, bundle, job, produce)
    target = target_of(options, bundle, job, naming)
    execution.run(lambda: sinks_of(options, bundle, job, target, names))


def reconstruct(options: Options, path: Path) -> None:
    """Encode and decode one picture, and say how close it came."""
    bundle = open_bundle(options)
    image = load_square(path, bundle.config.image_size)
    settings = {**_runtime_settings(options, bundle), "image": path.name}
    key = hash_of([bundle.build_key, _computes_on(options, bundle), image.tobytes().hex()])
    job = Job((Item(0, NO_CLASS, 0, key),), settings)
    naming = Naming(single=f"{literal(path.stem)}-reconstructed.png", many="{index}.png", folder=Path("out"))
    names = names_of(bundle)

    def produce(_: Sequence[Item]) -> Made:
        images = execution.pipeline.reconstruct(image[None])
        similarity = psnr(images[0], image)
        execution.extra["psnr_db"] = similarity if math.isfinite(similarity) else None  # of equal images: none
        return Made(images)

    execution = Execution(options, bundle, job, produce)
    target = target_of(options, bundle, job, naming)
    execution.run(lambda: sinks_of(options, bundle, job, target, names))


@contextmanager
def _source(options: Options) -> Iterator[Bundle | RemotePipeline]:
    """What draws: the server where one was named, or a bundle."""
    if options.url is None:
        yield open_bundle(options)
        return
    from engines.triton.client import RemotePipeline

    with RemotePipeline(options.url) as remote:
        yield remote


def open_bundle(options: Options) -> Bundle:
    """The bundle, its files not verified yet: `Pipeline.load` does that if there is something to make."""
    if options.engine is not None:
        return Bundle.open(options.engine, verify=False)
    path, phrase = default_bundle()
    tell(f"using {phrase}")
    return Bundle.open(path, verify=False)


def names_of(bundle: Manifest) -> ClassNames:
    """The classes of a bundle."""
    return ClassNames(bundle.config.transformer.num_classes, bundle.labels)


def _runtime_settings(options: Options, bundle: Manifest) -> dict[str, Any]:
    return {
        "bundle": bundle.name,
        "build_key": bundle.build_key,
        "precision": bundle.precision,
        "provider": _computes_on(options, bundle),
    }


def _computes_on(options: Options, bundle: Manifest) -> str:
    """What pixels may depend on beside the bundle: ONNX Runtime's provider, whose plans are run, or a server."""
    if options.url is not None:
        return "triton"
    provider, backend = options.runtime.provider.lower(), options.runtime.backend
    if backend == ONNXRUNTIME or provider != "cpu":
        return provider
    usable = [plans.name for plans in bundle.plans if backend in (None, plans.built_on.target)]
    return usable[-1] if usable else provider


def job_settings(options: Options, bundle: Manifest) -> dict[str, Any]:
    """Everything that the pixels follow from beside class and seed, checked and with the bundle's defaults."""
    defaults = bundle.sampling
    cfg = defaults.cfg if options.cfg is None else options.cfg
    top_p = defaults.top_p if options.top_p is None else options.top_p
    temperature = defaults.temperature if options.temperature is None else options.temperature
    request = make_request(
        bundle,
        [0],
        seeds=0,
        cfg=cfg,
        temperature=temperature,
        top_k=options.top_k,
        top_p=top_p,
        smooth=options.smooth,
    )
    return {
        **_runtime_settings(options, bundle),
        "form": options.form or bundle.forms[0],
        "cfg": float(cfg),
        "top_k": int(request.sampling["top_k"][0]),
        "top_p": float(top_p),
        "temperature": float(temperature),
        "smooth": options.smooth,
    }


def target_of(options: Options, bundle: Manifest, job: Job, naming: Naming, side: int | None = None) -> Target:
    """Where the images go; `side`: the longer one of an image, where that is not the model's."""
    if options.npz is not None:
        return Target(())
    if options.grid:
        check_grid(len(job.items), side or bundle.config.image_size)
    target = resolve(options.out, job.items, names_of(bundle), naming, grid=options.grid)
    if options.preview and not target.paths:
        raise UsageError(f"--preview needs a file for each image, and --out {options.out} --grid is one for all")
    return target


def sinks_of(
    options: Options, bundle: Manifest, job: Job, target: Target, names: ClassNames, side: int | None = None
) -> tuple[list[Sink], list[Sequence[Path]]]:
    """What stores the images, and the files that there will be, those of a kind together; `side` as of `target_of`."""
    config = bundle.config
    replacing = {"overwrite": options.overwrite, "restart": len(job.items) == 1}  # one image: who asks again wants it
    shared = {"Software": f"var-run {version()}", **{key: str(value) for key, value in job.settings.items()}}

    def text(item: Item) -> Mapping[str, str]:
        if item.class_id == NO_CLASS:
            return shared
        label = names.label(item.class_id) if item.class_id <= names.unconditional else ""
        of_item = {"class": str(item.class_id), "label": label, "seed": str(item.seed)}
        return {key: value for key, value in {**shared, **of_item}.items() if key not in ("classes", "count")}

    sinks: list[Sink] = []
    files: list[Sequence[Path]] = []
    if target.paths:
        pictures = Pictures(job, target.paths, text, folder=target.folder, previews=options.preview, **replacing)
        sinks.append(pictures)
        files += [target.paths, pictures.previews]
    if target.grid:
        longer = side or config.image_size
        sinks.append(Grid(job, target.grid, shared, files=target.paths, side=longer, **replacing))
        files.append([target.grid])
    if options.npz:
        shape = (config.image_size, config.image_size, 3)
        arrays = {"arr_0": (shape, np.dtype(np.uint8))}
        sinks.append(NpzRows(job, options.npz, arrays, lambda _, made: {"arr_0": made.images}, **replacing))
        files.append([options.npz])
    if options.save_tokens:
        sinks.append(_token_rows(job, options.save_tokens, config.num_tokens, replacing))
        files.append([options.save_tokens])
    return sinks, files


def _token_rows(job: Job, path: Path, num_tokens: int, replacing: Mapping[str, bool]) -> NpzRows:
    arrays: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
        "tokens": ((num_tokens,), np.dtype(np.int64)),
        "uniforms": ((num_tokens,), np.dtype(np.float32)),
        "seeds": ((), np.dtype(np.uint64)),
        "classes": ((), np.dtype(np.int64)),
    }

    def rows(items: Sequence[Item], made: Made) -> dict[str, NDArray[Any]]:
        if made.tokens is None:
            raise AssertionError("images without tokens")
        seeds = [item.seed for item in items]
        return {
            "tokens": made.tokens,
            "uniforms": uniforms(seeds, num_tokens),
            "seeds": np.array(seeds, np.uint64),
            "classes": np.array([item.class_id for item in items], np.int64),
        }

    return NpzRows(job, path, arrays, rows, **replacing)


def _load_tokens(path: Path, bundle: Manifest) -> dict[str, NDArray[Any]]:
    """The arrays of a --save-tokens file, checked: `tokens` (B, T), and where they are, `classes` and `seeds` (B,)."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            saved = {name: archive[name] for name in ("tokens", "classes", "seeds") if name in archive.files}
    except FileNotFoundError:
        raise UsageError(f"cannot read {path}: there is no such file") from None
    except (OSError, ValueError, EOFError, AttributeError, TypeError, KeyError) as error:
        raise UsageError(f"cannot read {path}: it is no .npz file of tokens") from error
    tokens = saved.get("tokens")
    wanted = bundle.config.num_tokens
    if tokens is None:
        raise UsageError(f"{path} has no array called tokens: --save-tokens writes such files")
    if tokens.ndim != 2 or tokens.shape[1] != wanted or not len(tokens):
        raise UsageError(f"{path}: tokens have shape {tokens.shape}, and {bundle.name} needs (images, {wanted})")
    check_tokens(tokens, bundle.config)
    for name in ("classes", "seeds"):
        if name in saved and (saved[name].shape != (len(tokens),) or not np.issubdtype(saved[name].dtype, np.integer)):
            raise UsageError(f"{path}: {name} must be one integer per image")
    return saved


def literal(name: str) -> str:
    """`name` as a part of a pattern."""
    return name.replace("{", "{{").replace("}", "}}")
