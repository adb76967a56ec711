"""`var-export build`: what it prints, what it keeps, what it leaves when it is stopped."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from engines.bundle.bundle import Bundle
from engines.bundle.manifest import MANIFEST
from engines.draw.pipeline import Pipeline
from engines.errors import BundleError, CheckFailedError
from tests.kept import ROOT

COMMAND = (sys.executable, "-c", "from var_export.cli.main import main; raise SystemExit(main())")
REMEMBERING = (sys.executable, "-c", f"from tests import traces; traces.install(); {COMMAND[2]}")


@pytest.fixture
def fake_build(monkeypatch, tiny_build):
    """`var_export.build.build` replaced, in the current folder; returns what it was called with."""
    calls = SimpleNamespace(seen=[], act=lambda: None)

    def build(checkpoint, out, options, **more):
        from calib.judge.acceptance import Built

        calls.seen.append(SimpleNamespace(checkpoint=checkpoint, out=out, options=options, **more))
        more["progress"]("a stage")
        calls.act()
        return Built(Bundle.open(tiny_build.path), False, {})

    monkeypatch.setattr("var_export.build.build", build)
    return calls


@pytest.mark.slow
def test_says_what_was_built_and_what_to_do_next(tiny_build):
    lines = tiny_build.out.splitlines()
    assert lines[0].startswith(f"{tiny_build.path} (")
    assert " MiB, built in " in lines[0]
    assert "check of the stepwise form against PyTorch: passed; largest logit error" in lines[1]
    assert "check of the fused form against PyTorch: passed; draws alike 100.00%" in lines[2]
    assert lines[3] == f"next: var-run --bundle {tiny_build.path} --class 0"
    assert len(lines) == 4


def test_progress_is_plain_lines_on_stderr(tiny_build):
    lines = tiny_build.err.splitlines()
    assert "\x1b" not in tiny_build.err
    assert [line.partition(" s  ")[2] for line in lines][:2] == ["loading PyTorch", "reading the checkpoint"]
    seconds = [float(line.split()[0]) for line in lines]
    assert seconds == sorted(seconds)


def test_the_same_again_is_up_to_date(call, tiny_build):
    before = (tiny_build.path / MANIFEST).stat().st_mtime_ns
    code, out, _ = call(*tiny_build.args)
    assert code == 0
    assert out.startswith(f"up to date: {tiny_build.path} (")
    assert out.splitlines()[-1].startswith("next: var-run")
    assert (tiny_build.path / MANIFEST).stat().st_mtime_ns == before


def test_json(call, tiny_build):
    code, out, _ = call(*tiny_build.args, "--json")
    document = json.loads(out)
    assert code == 0
    assert document["path"] == str(tiny_build.path)
    assert document["reused"] is True
    assert document["form"] == "both"
    assert document["bytes"] == sum(f.stat().st_size for f in tiny_build.path.iterdir() if f.name != MANIFEST)


def test_another_bundle_is_not_replaced(call, tiny_build):
    code, out, err = call(*tiny_build.args, "--max-top-k", 3)
    assert (code, out) == (2, "")
    assert "--force" in err.splitlines()[-1]
    Bundle.open(tiny_build.path)


def test_a_bundle_as_checkpoint_needs_no_build(call, tiny_build):
    code, out, err = call("build", tiny_build.path)
    assert (code, out) == (2, "")
    assert err.startswith(f"Error: {tiny_build.path} is a bundle already, which ONNX Runtime runs as it is: ")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("args", "out"),
    [
        ((), "bundles/var-emoji-demo-fp16"),
        (("--precision", "fp32", "--form", "fused"), "bundles/var-emoji-demo-fp32-fused"),
        (("--form", "both"), "bundles/var-emoji-demo-fp16-both"),
        (("--name", "mine"), "bundles/mine-fp16"),
        (("--out", "a/b"), "a/b"),
    ],
)
def test_where_the_bundle_goes(call, fake_build, args, out):
    assert call("build", *args)[0] == 0
    assert fake_build.seen[0].out == Path(out)


def test_options_reach_the_checkpoint_and_the_build(call, fake_build, tiny_checkpoint, tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("a\nb\nc\nd\ne\n")
    options = ("--labels", labels, "--default-cfg", 0, "--set", "vae.quant_resi=0.25", "--name", "other", "--force")
    vae = ("--vae", tiny_checkpoint / "vae.safetensors", "--config", tiny_checkpoint / "config.json")
    assert call("build", tiny_checkpoint, *options, *vae, "--max-top-k", 7, "--threads", 2)[0] == 0
    (seen,) = fake_build.seen
    assert seen.checkpoint.labels == ("a", "b", "c", "d", "e")
    assert seen.checkpoint.sampling.cfg == 0
    assert seen.checkpoint.config.vae.quant_resi == 0.25
    assert seen.checkpoint.config.name == "other"
    assert (seen.options.max_top_k, seen.force, seen.threads) == (7, True, 2)


def test_the_state_dict_of_a_key_is_built(call, fake_build, tiny_checkpoint, tmp_path):
    import torch
    from safetensors.torch import load_file

    weights = load_file(tiny_checkpoint / "var.safetensors")
    other = weights | {"head.bias": torch.ones(64)}
    torch.save({"model": weights, "ema": other}, tmp_path / "last.pt")
    options = ("--vae", tiny_checkpoint / "vae.safetensors", "--set", "patch_nums=1,2,4")
    code, _, err = call("build", tmp_path / "last.pt", *options)
    assert (code, err.splitlines()[-1]) == (
        2,
        f"Error: {tmp_path}/last.pt holds 2 state dicts of a VAR transformer: say which with --key model or --key ema",
    )
    assert call("build", tmp_path / "last.pt", *options, "--key", "ema", "--labels", "none")[0] == 0
    assert fake_build.seen[0].checkpoint.var_state["head.bias"].tolist() == [1] * 64


@pytest.mark.parametrize(
    ("classes", "labels", "asked", "says"),
    [(1000, None, None, True), (1000, None, "none", False), (5, None, None, False), (1000, ("a",) * 1000, None, False)],
)
def test_a_thousand_classes_without_names_are_told(capsys, tiny_build, classes, labels, asked, says):
    from calib.judge.acceptance import Built
    from var_export.cli.build import _summary

    bundle = Bundle.open(tiny_build.path)
    transformer = replace(bundle.config.transformer, num_classes=classes)
    shown = {"config": SimpleNamespace(transformer=transformer), "labels": labels}
    like = {
        name: getattr(bundle, name) for name in ("path", "total_bytes", "for_gpus", "plans", "provenance", "precision")
    }
    _summary(Built(SimpleNamespace(**like | shown), False, {}), 1.0, asked)
    assert ("the classes have no names: " in capsys.readouterr().out) is says


def test_a_failed_check_is_exit_code_1(call, fake_build):
    def fail():
        raise CheckFailedError("the exported stepwise engines miss the reference: KL")

    fake_build.act = fail
    code, out, err = call("build")
    assert (code, out) == (1, "")
    assert err.splitlines()[-1] == "Error: the exported stepwise engines miss the reference: KL"


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ((), "var-emoji-demo-fp16"),
        (("--smooth",), "var-emoji-demo-fp16-smooth"),
        (("--smooth", "--form", "both"), "var-emoji-demo-fp16-both-smooth"),
    ],
)
def test_the_default_name_says_what_is_special(call, fake_build, options, name):
    assert call("build", *options)[0] == 0
    seen = fake_build.seen[0]
    assert seen.out == Path("bundles") / name
    assert seen.options.smooth == bool(options)


def test_layers_to_keep_in_fp32(call, fake_build, tiny_build):
    assert call("build", "--keep-fp32", "decode/*", "--keep-fp32", "step/head")[0] == 0
    assert fake_build.seen[0].options.keep_fp32 == ("decode/*", "step/head")
    code, _, err = call("build", "--precision", "fp32", "--keep-fp32", "decode/*")
    assert (code, err.splitlines()[-1]) == (
        2,
        "Error: a bundle in fp32 computes every layer in FP32: there is nothing to keep",
    )
    code, _, err = call("build", tiny_build.path, "--target", "tensorrt", "--keep-fp32", "decode/*")
    assert (code, err) == (2, f"Error: --keep-fp32 is for checkpoints; {tiny_build.path} is a bundle\n")


def test_a_bundle_cannot_be_made_to_mix(call, tiny_build):
    code, _, err = call("build", str(tiny_build.path), "--precision", "int8", "--smooth")
    assert (code, err) == (2, f"Error: --smooth is for checkpoints; {tiny_build.path} is a bundle\n")


def test_a_full_disk_is_one_line(call, fake_build):
    def fill():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    fake_build.act = fill
    code, out, err = call("build", "--out", "somewhere")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("Error: cannot write somewhere (No space left on device): make room")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_one_line_and_130(call, fake_build, number):
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    fake_build.act = lambda: (os.kill(os.getpid(), number), time.sleep(1))
    code, out, err = call("build", "--out", "somewhere")
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == "interrupted: nothing half-written is left at somewhere"
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_signal_that_a_library_swallowed_ends_the_build_at_the_next_stage(call, fake_build):
    def act():
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        except KeyboardInterrupt:
            fake_build.seen[0].progress("the next stage")

    fake_build.act = act
    assert call("build")[0] == 130


def test_on_a_terminal_one_live_line(monkeypatch, capsys):
    from engines.cli.progress import CLEAR, StageClock

    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with StageClock() as progress:
        progress("first")
        progress("second")
    assert capsys.readouterr().err.replace("    0.0 s  ", "") == f"{CLEAR}first{CLEAR}second{CLEAR}"


def start(args, cwd, command=COMMAND):
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*command, *args], cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def check_what_is_there(out: Path):
    """Whatever is at `out` is a bundle that draws, or no bundle at all."""
    if not out.exists():
        with pytest.raises(BundleError):
            Bundle.open(out)
        return
    with Pipeline.load(out, threads=1) as pipeline:
        pipeline.generate([0])


@pytest.mark.slow
def test_whatever_stops_a_build_the_next_one_works(tiny_checkpoint, tmp_path):
    """Stopped four times, one of them while the finished graphs are checked; then left alone."""
    args = ("build", str(tiny_checkpoint), "--precision", "fp32", "--threads", "1", "--out", "b")
    random_of = random.Random(13)
    delays = [random_of.uniform(0.3, 8.0) for _ in range(3)]
    for number, delay in zip((signal.SIGKILL, signal.SIGINT, signal.SIGTERM), delays, strict=True):
        before = set(tmp_path.iterdir())  # a build that was stopped early has not yet cleaned up after a killed one
        process = start(args, tmp_path)
        time.sleep(delay)
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
        if process.returncode == 0:  # it was faster
            break
        assert process.returncode in ((-signal.SIGKILL,) if number == signal.SIGKILL else (130, -number, 1)), err
        check_what_is_there(tmp_path / "b")
        if process.returncode == 130:
            assert set(tmp_path.iterdir()) <= before
            assert err.splitlines()[-1].startswith("interrupted: nothing")

    process = start((*args, "--force"), tmp_path, REMEMBERING)  # the end alone is looked at
    for line in process.stderr:
        if "check:" in line:
            break
    time.sleep(random_of.uniform(0, 0.3))
    process.kill()
    process.communicate()
    check_what_is_there(tmp_path / "b")

    process = start(args, tmp_path, REMEMBERING)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    check_what_is_there(tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    assert np.isfinite(Bundle.open(tmp_path / "b").golden["top_logit"]).all()


STAGES = ("golden run", "graph: cond", "graph: step", "graph: decode", "graph: fused", "check:")


KILLS = int(os.environ.get("VAR_EXPORT_KILLS", 1))


@pytest.mark.slow
@pytest.mark.timeout(300 * KILLS)
@pytest.mark.parametrize("times", [KILLS])
def test_a_build_that_is_killed_loses_nothing(times, tiny_checkpoint, tiny_build, tmp_path):
    """Killed at every stage while it replaces a bundle: the old one is there, or the new one, whole, and nothing else.

    VAR_EXPORT_KILLS=17 kills it a hundred times, with pytest -o faulthandler_timeout=0.
    """
    out, other = tmp_path / "b", "fp16"
    shutil.copytree(tiny_build.path, out)
    old = Bundle.open(out).build_key
    random_of = random.Random(14)
    seen = Counter()
    for stage in STAGES * times:
        args = ("build", str(tiny_checkpoint), "--precision", other, "--form", "both", "--force", "--out", "b")
        process = start(args, tmp_path, REMEMBERING)
        for line in process.stderr:
            if stage in line:
                time.sleep(random_of.uniform(0, 1.0 if stage == "check:" else 0.2))
                break
        process.kill()
        process.communicate()
        bundle = Bundle.open(out)  # every hash fits
        seen["old" if bundle.build_key == old else "new"] += 1
        left = {path.name for path in tmp_path.iterdir()} - {"b"}
        assert left <= {".b.lock", ".b.partial", ".b.previous"}, left
        if bundle.build_key != old:  # the next one goes the other way
            old, other = bundle.build_key, "fp32" if other == "fp16" else "fp16"
    process = start(args, tmp_path, REMEMBERING)
    assert process.wait(300) == 0, process.stderr.read()
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    check_what_is_there(out)
    assert seen["old"] >= (len(STAGES) - 1) * times


def test_a_signal_while_a_graph_is_traced_waits_for_the_next_stage(capsys):
    """Raised inside of PyTorch's dispatcher, it would abort the process."""
    from engines.cli.interrupts import Interrupts

    with Interrupts() as interrupts:
        interrupts.check(holding=True)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        assert "stopping after this graph" in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt, match="nothing was written"):
            interrupts.check()
