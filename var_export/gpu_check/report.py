"""The document of a check as a Markdown page: the verdict first, then the machine, then the tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from engines.judging.figures import KINDS, judged_figures
from engines.machine import Machine
from var_export.gpu_check.cases import RIVALS, CheckStep

Entry = Mapping[str, Any]
STATE = ("pstate", "clocks.sm", "clocks.max.sm", "clocks.mem", "temperature.gpu", "power.draw", "power.limit")
"""What the page shows of nvidia-smi's fields."""
VERDICTS = {"running": "RUNNING", "interrupted": "INTERRUPTED"}


def page(document: Entry) -> str:
    """The whole page."""
    steps = document["steps"]
    notes = [(CheckStep(**entry["step"]).name, note) for entry in steps for note in entry["notes"]]
    parts = [
        "# GPU check",
        _verdict(document),
        "## Machine",
        _table(("", ""), _machine(document)),
        *_section("Builds", _BUILDS_NOTE, _builds(steps)),
        *_section("Fidelity against the PyTorch reference", _FIDELITY_NOTE, _fidelity(steps)),
        *_section("Speed", _SPEED_NOTE, _speed(steps)),
        *_scales(steps),
        *_section("Beside PyTorch on the same GPU", _RACE_NOTE, _races(steps)),
        *_section("Not run", "", _table(("what", "because"), [(s["what"], s["reason"]) for s in document["not_run"]])),
        *_section("Notes", "", _table(("step", "note"), notes)),
        *_failures(steps),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def case_of(entry: Entry) -> str:
    """What a step is about, for people."""
    return CheckStep(**entry["step"]).case


def _of(steps: Sequence[Entry], kind: str) -> list[Entry]:
    """Steps of a kind that have a result."""
    return [entry for entry in steps if entry["step"]["kind"] == kind and entry["result"] is not None]


def _verdict(document: Entry) -> str:
    verdict = document["verdict"]
    failed = "FAILED" if verdict["failures"] else "PASSED"
    state = VERDICTS.get(document["state"], failed)
    counts = f"{verdict['within_thresholds']} of {verdict['checked']} engines within every threshold"
    lines = [f"**{state}**: {counts}; {document['started']} to {document['updated']}."]
    if verdict["failures"]:
        lines.append("\n".join(f"- {' '.join(failure.split())}" for failure in verdict["failures"]))
    return "\n\n".join(lines)


def _machine(document: Entry) -> list[tuple[str, str]]:
    host, probes, settings = document["machine"], document["probes"], document["settings"]
    gpu = probes["gpu"]
    rows = [
        ("GPU", f"{gpu['gpu']}, compute capability {gpu['compute_capability']}, {_mib(gpu['gpu_memory'])} MiB"),
        ("driver", f"{gpu['driver'] or 'unknown'}; CUDA runtime {gpu['cuda']}"),
    ]
    for state in gpu["nvidia_smi"]:
        if state["name"] == gpu["gpu"] or len(gpu["nvidia_smi"]) == 1:
            rows.append(("nvidia-smi, at the start", ", ".join(f"{name} {state[name]}" for name in STATE)))
    rows += [(name.replace("_", " "), gpu[name]) for name in ("jetson", "power_mode") if gpu[name]]
    rows.append(("host", str(Machine(**host))))
    rows.append(("versions", f"var-export {document['version']}, Python {host['python']}"))
    for name, probe in probes.items():
        if name != "gpu" and probe["problem"] is None:
            rows.append((name, str(probe.get(name, ""))))
    asked = ("models", "precisions", "forms", "backends", "batches")
    chosen = "; ".join(f"{name} {', '.join(map(str, settings[name]))}" for name in asked)
    rows.append(("settings", f"{chosen}; {settings['runs']} runs; GPU {settings['device']}"))
    return rows


_BUILDS_NOTE = (
    "Sizes are divided by the size of the bundle's weight file, which all graphs share. A bundle takes the time of "
    "the export and of its check on the CPU."
)


def _builds(steps: Sequence[Entry]) -> str:
    rows: list[Sequence[object]] = [
        (
            case_of(entry),
            "bundle",
            "found" if entry["result"]["reused"] else f"{entry['seconds']:.0f}",
            _mib(entry["result"]["weights_bytes"]),
            "",
            "",
        )
        for entry in _of(steps, "bundle")
    ]
    for entry in _of(steps, "plans"):
        result = entry["result"]
        sizes, seconds, weights = result["bytes"], result["seconds"], result["weights_bytes"]
        stepwise = [graph for graph in sizes if graph != "fused"]
        parts = {"fused": ["fused"]} if "fused" in sizes else {}
        if entry["step"]["form"] != "fused":
            parts = {"step": ["step"], "all but fused" if parts else "all": stepwise} | parts
        for what, graphs in parts.items():
            size = sum(sizes[graph] for graph in graphs)
            took = sum(seconds[graph] for graph in graphs)
            batches = result["set"]["graphs"][graphs[0]]["batch"]
            batch = f"{batches[0]} to {batches[2]}" if batches[0] != batches[2] else str(batches[0])
            rows.append((case_of(entry), f"plan: {what}", f"{took:.0f}", _mib(size), f"{size / weights:.2f}", batch))
    return _table(("case", "what", "seconds", "MiB", "/ weights", "batch"), rows)


_FIDELITY_NOTE = (
    "Teacher-forced, over all tokens of the golden run; thresholds in brackets. The fused form shows no logits: "
    "its draws and images are judged."
)


def _fidelity(steps: Sequence[Entry]) -> str:
    rows = []
    for entry in _of(steps, "verify"):
        result = entry["result"]
        # JSON has no number for what is not finite: null stands for it, as in the PSNR of equal images.
        found = {kind.name: result[kind.name] for kind in KINDS if kind.name in result}
        values = {name: math.inf if value is None else value for name, value in found.items()}
        figures = {figure.kind: figure for figure in judged_figures(values, result["thresholds"])}
        cells = [f"{figures[kind].shown} ({figures[kind].wanted})" if kind in figures else "-" for kind in KINDS]
        free = f"{result['free_tokens']:.2%}, {result['free_identical']} of {result['images']} images"
        rows.append((case_of(entry), "yes" if result["passed"] else "**NO**", *cells, free))
    return _table(("case", "passed", *(kind.title for kind in KINDS), "tokens drawn freely"), rows)


_SPEED_NOTE = (
    "From classes to pixels on the host, wall clock. `outside` is what no engine took: the host's loop, copies, random "
    "numbers. First image: from opening the bundle, in the first process (TensorRT-RTX compiles its kernels there) and "
    "in the next. `graphs`: how many of the prepared calls are launched as CUDA graphs. GPU memory: what the device "
    "has less than before the engines were loaded, after all batch sizes have run."
)


def _speed(steps: Sequence[Entry]) -> str:
    first = {case_of(entry): entry["result"]["first_image_seconds"] for entry in _of(steps, "verify")}
    rows: list[Sequence[object]] = []
    for entry in _of(steps, "bench"):
        result = entry["result"]
        graphs, memory = result["cuda_graphs"], result["gpu_memory"]
        captured = "-" if graphs is None else f"{graphs['graphs']} of {graphs['calls']}"
        cold, warm = first.get(case_of(entry)), f"{result['first_image_seconds']:.1f}"
        more = ("-" if cold is None else f"{cold:.1f}", warm, captured, _mib(memory["after"]))
        for case in result["cases"]:
            split = f", {result['engine_batch']} at once" if case["batch"] > result["engine_batch"] else ""
            rows.append(
                (
                    case_of(entry),
                    f"{case['batch']}{split}",
                    _guidance(case["cfg"]),
                    _ms(case["total"]["p50"]),
                    _ms(case["total"]["p90"]),
                    f"{case['images_per_second']:.2f}",
                    _ms(case["outside"]["p50"]),
                    *more,
                )
            )
        for problem in result["problems"]:
            batch, cfg = problem["batch"], _guidance(problem["cfg"])
            rows.append((case_of(entry), batch, cfg, problem["problem"], "-", "-", "-", *more))
    headers = ("case", "batch", "guidance", "ms p50", "ms p90", "images/s", "outside, ms")
    return _table((*headers, "first image, s", "in the next process, s", "graphs", "GPU MiB"), rows)


def _scales(steps: Sequence[Entry]) -> list[str]:
    """A table per model: scales down, cases across; the first batch size with guidance."""
    sides = {e["step"]["model"]: e["result"]["patch_nums"] for e in _of(steps, "bundle")}
    parts = []
    for model, patch_nums in sides.items():
        entries = [e for e in _of(steps, "bench") if e["step"]["model"] == model and e["step"]["form"] == "stepwise"]
        if not entries:
            continue
        first = [entry["result"]["cases"][0] for entry in entries]
        scales = [f"scale {s} ({side}x{side})" for s, side in enumerate(patch_nums)]
        names = ["cond", *scales, "decode", "outside", "total"]
        columns = [[c["cond"], *c["scales"], c["decode"], c["outside"], c["total"]] for c in first]
        rows = [(name, *(_ms(column[i]["p50"]) for column in columns)) for i, name in enumerate(names)]
        cases = [case_of(entry).removeprefix(f"{model} ").replace("stepwise ", "") for entry in entries]
        about = f"{model}, stepwise, batch {first[0]['batch']}, guidance {_guidance(first[0]['cfg'])}: ms, median"
        parts += [f"### Latency per scale: {about}", _table(("", *cases), rows)]
    return parts


_RACE_NOTE = (
    "In turns, the same classes, seeds and guidance, from classes to pixels on the host. `eager`: FP16 by autocast, "
    "weights in FP32, as the official demo. `eager-half`: the same with the weights stored in FP16. `compiled`: that, "
    "with torch.compile for every shape; `compiled-graphs`: as CUDA graphs too (reduce-overhead). The ratio is the "
    "engine's time by PyTorch's, the median of the pairs: below 1 the engine is faster. Tokens alike: where FP16 puts "
    "a draw near an edge, one flip changes all that follow."
)


def _races(steps: Sequence[Entry]) -> str:
    rows: list[Sequence[object]] = []
    order: Callable[[Entry], int] = lambda entry: RIVALS.index(entry["step"]["rival"])  # noqa: E731
    for entry in sorted(_of(steps, "race"), key=lambda entry: (case_of(entry), order(entry))):
        result = entry["result"]
        for row in result["rows"]:
            head = (case_of(entry), entry["step"]["rival"], row["batch"])
            if row["problem"]:
                rows.append((*head, row["problem"], *["-"] * 5))
                continue
            ratio = row["ratio"]
            spread = f"**{ratio['p50']:.2f}** ({ratio['min']:.2f} to {ratio['max']:.2f}, {row['pairs']} pairs)"
            memory = "-" if row["torch_memory"] is None else _mib(row["torch_memory"])
            times = (_ms(row["rival"]["p50"]), _ms(row["engine"]["p50"]), spread)
            rows.append((*head, *times, f"{row['tokens_alike']:.1%}", memory, f"{row['first_run_seconds']:.1f}"))
    headers = ("case", "PyTorch", "batch", "its ms", "engine's ms", "ratio", "tokens alike")
    return _table((*headers, "its GPU MiB", "its first run, s"), rows)


def _failures(steps: Sequence[Entry]) -> list[str]:
    parts: list[str] = []
    for entry in steps:
        if entry["error"] is not None:
            trace = "\n".join(f"    {line}" for line in entry["trace"])
            parts += [f"### {CheckStep(**entry['step']).name}", " ".join(entry["error"].split()), trace]
    return ["## Failures", *parts] if parts else []


def _table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; nothing where there are no rows."""
    lines = [_line(row) for row in rows]
    return "\n".join([_line(headers), _line(["---"] * len(headers)), *lines]) if lines else ""


def _line(cells: Sequence[object]) -> str:
    return "| " + " | ".join(" ".join(str(cell).split()).replace("|", "\\|") for cell in cells) + " |"


def _section(title: str, note: str, body: str) -> list[str]:
    """A chapter; nothing where it has no body."""
    return [f"## {title}", note, body] if body else []


def _guidance(cfg: float) -> str:
    """The strength of guidance, for columns: `4`, `none`."""
    return f"{cfg:g}" if cfg else "none"


def _ms(seconds: float) -> str:
    """Seconds as milliseconds without the unit."""
    return f"{1e3 * seconds:.2f}"


def _mib(size: int) -> str:
    """Bytes as MiB."""
    return f"{size / 2**20:.0f}"
