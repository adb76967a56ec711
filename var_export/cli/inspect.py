"""`var-export inspect`: what is in a bundle, or how a picture was made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engines.cli.common import NamedPath, json_option, json_out, print_facts, print_table, refuse, show
from engines.words import counted, mebibytes
from var_export.cli.common import open_bundle

if TYPE_CHECKING:
    from engines.bundle.bundle import Bundle

SHORT_HASH = 16


@click.command()
@click.argument("what", metavar="[BUNDLE | PICTURE]", required=False, type=NamedPath(path_type=Path))
@click.option("--graphs", is_flag=True, help="Every input and output of every graph.")
@click.option("--layers", is_flag=True, help="Every layer of INT8 and how it is computed; those kept in FP32.")
@json_option
@click.pass_context
def inspect(context: click.Context, /, what: Path | None, graphs: bool, layers: bool, as_json: bool) -> None:
    """Show what is in a bundle, and whether its files are what was built; or how a picture of var-run was made.

    BUNDLE is the newest in bundles/ by default, else the embedded demo.
    """
    if what is not None and what.is_file():
        refuse(context, ("graphs", "layers"), f"is for bundles; {what} is none")
        _picture(what, as_json)
        return
    from engines.bundle.inspection import OK, describe, file_states, plan_states
    from engines.errors import BundleError

    opened = open_bundle(what, verify=False)
    states = file_states(opened)
    if as_json:
        json_out(describe(opened, states))
    else:
        _print(opened, states)
        _plan_table(opened)
        _layer_table(opened, layers)
        (_graph_tables if graphs else _graph_summary)(opened)
    changed = [name for name, state in states.items() if state != OK]
    if changed:
        raise BundleError(f"{opened.path}: {', '.join(changed)} changed since the build; copy it again, or build again")
    damaged = [plans for plans in opened.plans if set(plan_states(opened, plans).values()) != {OK}]
    if damaged:
        names, target = ", ".join(plans.name for plans in damaged), damaged[0].built_on.target
        raise BundleError(f"the plans {names} are damaged: var-export build {opened.path} --target {target}")


def _picture(picture: Path, as_json: bool) -> None:
    from engines.files.again import command_of, settings_of

    text = settings_of(picture)
    command = command_of(text)
    if as_json:
        json_out({"picture": str(picture), "settings": text, "command": command})
        return
    print_facts(text)
    show()
    if command is None:
        show("no command makes it again: a part of its tokens was given")
        return
    show("makes it again:")
    show(f"  {command}")


def _print(bundle: Bundle, states: dict[str, str]) -> None:
    c, s, t, v = bundle.config, bundle.sampling, bundle.config.transformer, bundle.config.vae
    recorded = bundle.provenance.get("checkpoint") or {}
    versions = bundle.provenance.get("versions") or {}
    quantised = bundle.provenance.get("quantisation") or {}
    named = sum(map(bool, bundle.labels or ()))  # a class may have no name
    lines = {
        "bundle": f"{bundle.path} ({mebibytes(bundle.total_bytes)})",
        "model": f"{bundle.name}, {c.image_size}x{c.image_size} pixels",
        "transformer": f"depth {t.depth}, width {t.width}, {t.heads} heads of {t.head_dim}, MLP {t.mlp_hidden}",
        "VQ-VAE": f"{v.vocab_size} codes of {v.z_channels} channels, width {v.ch} x {', '.join(map(str, v.ch_mult))}",
        "scales": f"{', '.join(map(str, c.patch_nums))} ({c.num_tokens} tokens)",
        "classes": f"{t.num_classes}, {counted(named, 'label') if named else 'no labels'}",
        "precision": bundle.precision,
        **({"quantised": _quantised(quantised)} if quantised else {}),
        "form": bundle.form,
        "target": bundle.target,
        "sampling": f"cfg {s.cfg:g}, {s.describe()} (top-k at most {bundle.max_top_k})"
        + (", can be smoothed" if bundle.smooth else ""),
        "checkpoint": f"{', '.join(recorded.get('files') or ['unknown'])}, "
        f"SHA-256 {str(recorded.get('sha256', 'unknown'))[:SHORT_HASH]}",
        "built with": ", ".join(f"{name} {version}" for name, version in versions.items()) or "unknown",
        "build key": bundle.build_key[:SHORT_HASH],
    }
    print_facts(lines)
    show()
    rows = [(name, e.size, e.sha256[:SHORT_HASH], states[name]) for name, e in bundle.files.items()]
    print_table(rows, ("file", "bytes", "SHA-256", "state"))
    show()


def _plan_table(bundle: Bundle) -> None:
    from engines.bundle.inspection import plan_states

    for plans in bundle.plans:
        built = plans.built_on
        show(f"plans {plans.name}: {plans}, {built.gpu or 'for GPUs that were not there'}, {built.system}")
        states = plan_states(bundle, plans)
        rows = [
            (graph, ":".join(map(str, plan.batch)), plan.profiles, plan.size, plan.sha256[:SHORT_HASH], states[graph])
            for graph, plan in plans.graphs.items()
        ]
        print_table(rows, ("plan", "batch", "profiles", "bytes", "SHA-256", "state"))
        show()


def _quantised(recorded: Mapping[str, Any]) -> str:
    options, images = recorded["options"], len(recorded["calibration"]["requests"]["seeds"])
    bounds = [f"{name} kept to {bound:g}" for name, bound in options["bounds"].items() if bound is not None]
    patterns = [*options["include"], *(f"not {pattern}" for pattern in options["exclude"])]
    return ", ".join(
        (f"level {options['level']}", *bounds, *patterns, f"{options['ranges']['method']} ranges of {images} images")
    )


def _layer_table(bundle: Bundle, every: bool) -> None:
    from engines.bundle.inspection import grouped, kept_in_fp32, kept_lines, quantised_layers

    layers, kept = quantised_layers(bundle), kept_in_fp32(bundle)
    for line in kept_lines(bundle) if every else ():
        show(line)
    if kept and not every:
        show(f"{len(kept)} layers are computed in FP32 (--layers lists them)")
    if every:
        if not layers:
            show(f"no layer is quantised: all{' others' if kept else ''} are in {bundle.precision}")
        else:
            print_table([(layer.name, layer.role, layer.way) for layer in layers], ("layer", "role", "computed"))
    elif layers:
        print_table(grouped(layers), ("graph", "role", "computed", "layers"))
        show("(--layers lists them by name)")
    if every or layers:
        show()


def _graph_summary(bundle: Bundle) -> None:
    from engines.spec.contract import GRAPHS

    rows = [(graph, *map(len, bundle.tensors(graph)), GRAPHS[graph].meaning) for graph in bundle.graphs]
    print_table(rows, ("graph", "inputs", "outputs", "meaning"))
    show("(--graphs lists the inputs and outputs)")


def _graph_tables(bundle: Bundle) -> None:
    from engines.bundle.inspection import folded
    from engines.spec.contract import GRAPHS

    for graph in bundle.graphs:
        show(f"{graph}: {GRAPHS[graph].meaning}")
        rows = []
        for kind, tensors in zip(("in", "out"), bundle.tensors(graph), strict=True):
            for info in folded(tensors):
                shape = f"({', '.join(map(str, info.shape))})"
                rows.append((kind, info.name, info.dtype, shape, info.meaning))
        print_table(rows, ("", "name", "dtype", "shape", "meaning"))
        show()
    show("B images, N rows (two per image with guidance), L tokens of this scale, M of the next, P cached tokens.")
