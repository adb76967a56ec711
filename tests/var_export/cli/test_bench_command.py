"""`var-export bench`: no figure without its machine and settings."""

import json
import re
from dataclasses import replace

import pytest
from support import copy_bundle

from engines.bundle.bundle import DEMO_BUNDLE
from engines.draw.pipeline import Pipeline
from engines.judging.similarity import psnr
from engines.machine import machine

QUICK = ("--runs", 2, "--threads", 1)


def test_latency_and_throughput(call, tiny_build):
    code, out, _ = call("bench", tiny_build.path, "--batch", "1,2", *QUICK)
    assert code == 0
    assert machine().cpu in out
    assert "CPUExecutionProvider, 1 thread" in out
    assert "temperature 1, top-k 8, top-p 0.9" in out
    latency = out.split("latency in ms, batch 1, guidance 2, 2 runs\n")[1].split("\n\n")[0].splitlines()
    assert latency[0].split() == ["p50", "p90", "min", "max"]
    names = [line[: line.index("  ")] for line in latency[1:]]
    assert names[:4] == ["cond", "scale 0 (1x1)", "scale 1 (2x2)", "scale 2 (4x4)"]
    assert names[4:] == ["decode", "outside the engines", "total"]
    throughput = out.split("throughput\n")[1].split("\n\n")[0].splitlines()[1:]
    cases = [(row.split()[0], "no guidance" in row) for row in throughput]
    assert cases == [("1", False), ("1", True), ("2", False), ("2", True)]
    assert "peak memory: " in out


@pytest.mark.parametrize(("cfg", "words"), [(0, ["no guidance"]), (1.5, ["guidance 1.5"])])
def test_one_guidance(call, tiny_build, cfg, words):
    out = call("bench", tiny_build.path, "--batch", 1, "--cfg", cfg, *QUICK)[1]
    throughput = out.split("throughput\n")[1].split("\n\n")[0].splitlines()[1:]
    assert len(throughput) == 1
    assert words[0] in throughput[0]


def test_the_fused_form_is_one_figure(call, tiny_build):
    code, out, _ = call("bench", tiny_build.path, "--form", "fused", "--batch", 1, *QUICK)
    assert code == 0
    assert "fused graph" in out
    assert "scale 0" not in out


def test_json(call, tiny_build):
    code, out, _ = call("bench", tiny_build.path, "--batch", "2,1", "--json", *QUICK)
    document = json.loads(out)
    assert code == 0
    assert document["machine"]["cpu"] == machine().cpu
    assert document["runtime"]["threads"] == 1
    assert document["settings"]["batch"] == [2, 1]
    assert [(case["batch"], case["cfg"]) for case in document["cases"]] == [(2, 2.0), (2, 0.0), (1, 2.0), (1, 0.0)]
    for case in document["cases"]:
        assert len(case["scales"]) == 3
        assert case["total"]["min"] <= case["total"]["p50"] <= case["total"]["p90"] <= case["total"]["max"]
        assert case["total"]["p99"] is None  # of two runs
        assert case["images_per_second"] == pytest.approx(case["batch"] / case["total"]["p50"])
    assert document["peak_memory_bytes"] > 1 << 20
    assert document["comparisons"] == []


@pytest.mark.slow
def test_against_the_checkpoint(call, tiny_build, tiny_checkpoint):
    args = ("bench", tiny_build.path, "--batch", 1, "--reference", tiny_checkpoint, *QUICK)
    code, out, err = call(*args)
    assert code == 0
    assert "against PyTorch " in out
    assert "(eager FP32, " in out
    assert "1 thread, 2 pairs in turns" in out
    assert "100.00% of the tokens alike" in out
    assert "pair 2 of 2" in err
    (race,) = json.loads(call(*args, "--json")[1])["comparisons"]
    assert (race["name"], race["same_weights"]) == ("PyTorch", True)
    assert race["tokens_alike"] == 1
    assert len(race["ratios"]) == 2
    assert race["ratio"]["min"] == min(race["ratios"])


def test_random_weights_race_too(call, tiny_build):
    out = call("bench", tiny_build.path, "--batch", 1, "--reference", "random", *QUICK)[1]
    assert "the engine takes " in out
    assert "tokens alike" not in out


def test_rivals_of_all_kinds_race_in_turns(call, tiny_build, tmp_path):
    rivals = ("--backend", "onnxruntime,openvino", "--reference", "random", "--reference-dtype", "fp32,bf16")
    other = ("--against", copy_bundle(tiny_build.path, tmp_path / "other"), "--html", tmp_path / "page.html")
    code, out, _ = call("bench", tiny_build.path, "--batch", 1, *rivals, *other, "--json", *QUICK)
    document = json.loads(out)
    assert code == 0
    assert document["runtime"]["backend"] == "onnxruntime"
    races = {race["name"]: race for race in document["comparisons"]}
    assert list(races) == ["openvino", "other", "PyTorch", "PyTorch BF16"]
    assert [race["same_weights"] for race in races.values()] == [True, True, False, False]
    assert races["openvino"]["title"].startswith("openvino 20")
    assert races["openvino"]["title"].endswith(", CPU, f32")
    assert races["other"]["title"].startswith(f"{tmp_path / 'other'} (fp32, onnxruntime ")
    assert "autocast to BF16" in races["PyTorch BF16"]["title"]
    for race in races.values():
        assert len(race["ratios"]) == 2
        assert race["tokens_alike"] == 1 or not race["same_weights"]
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert all(f"Against {name}" in page for name in races)


def test_options_of_one_backend_reach_it_alone(call, tiny_build):
    args = ("bench", tiny_build.path, "--batch", 1, "--cfg", 0, *QUICK)
    out = call(*args, "--backend", "openvino,onnxruntime", "--device", "AUTO")[1]
    assert "openvino 20" in out.split("latency")[0]
    assert "AUTO, f32, 1 thread" in out
    assert "against onnxruntime " in out
    assert "the engine takes " in out.splitlines()[-1] or "uncertain" in out.splitlines()[-1]
    for flags, line in (
        (("--precision-hint", "f16"), "--precision-hint is an option of openvino, which does not race"),
        (("--device", "GPU"), "--device is an option of openvino, which does not race"),
    ):
        code, _, err = call(*args, "--backend", "onnxruntime,tensorrt", *flags)
        assert (code, line in err) == (2, True)
        assert "batch 1" not in err  # nothing was timed yet
    err = call(*args, "--backend", "openvino,tensorrt", "--provider", "cuda")[2]
    assert "--provider is an option of onnxruntime, which does not race" in err
    code, _, err = call(*args, "--backend", "onnxruntime,tensorrt")
    assert (code, "batch 1" in err) == (2, False)
    assert call(*args, "--backend", "onnxruntime", "--device", "AUTO")[0] == 2
    assert "'cuda' is none of onnxruntime, " in call(*args, "--backend", "onnxruntime,cuda")[2]
    assert "--reference-dtype needs --reference" in call(*args, "--reference-dtype", "bf16")[2]


def test_a_rival_of_another_model_is_refused(call, tiny_build):
    code, _, err = call("bench", tiny_build.path, "--batch", 1, "--against", DEMO_BUNDLE, *QUICK)
    assert code == 2
    assert f"{DEMO_BUNDLE} is of another model than {tiny_build.path}: its " in err.splitlines()[-1]
    assert "batch 1" not in err


def test_a_checkpoint_of_another_model_is_refused(call, tiny_build):
    code, out, err = call("bench", tiny_build.path, "--batch", 1, "--reference", "demo", *QUICK)
    assert (code, out) == (2, "")
    assert "demo does not fit" in err.splitlines()[-1]


def test_a_busy_machine_is_said_beside_the_figures(call, tiny_build, monkeypatch, tmp_path):
    busy = replace(machine(), load=64.0, cores=2)
    monkeypatch.setattr("engines.machine.machine", lambda: busy)
    args = ("bench", tiny_build.path, "--batch", 1, "--cfg", 0, *QUICK)
    assert "uncertain: the load was 64.0 on 2 cores before" in call(*args)[1].splitlines()[-1]
    assert call(*args, "--html", tmp_path / "p.html")[0] == 0
    assert "; the load was 64.0 on 2 cores before" in (tmp_path / "p.html").read_text(encoding="utf-8")
    assert json.loads(call(*args, "--json")[1])["doubts"][0] == "the load was 64.0 on 2 cores before"


def test_guidance_that_ends_early_is_raced_and_judged(call, tiny_build, tmp_path):
    page = tmp_path / "page.html"
    args = ("bench", tiny_build.path, "--batch", 1, "--cfg", 3, "--cfg-scales", "2,1", *QUICK)
    code, out, _ = call(*args, "--html", page)
    assert code == 0
    assert "against guidance in all 3 scales, batch 1, guidance 3, 1 thread, 2 pairs in turns" in out
    for scales in (2, 1):
        (line,) = (line for line in out.splitlines() if line.startswith(f"guidance in {scales} takes "))
        assert re.search(r" of the time \(pair by pair .*\); PSNR \d+\.\d dB, \d+\.\d\d% of the tokens of later", line)
    assert page.read_text(encoding="utf-8").count("of the tokens of later scales alike") == 2
    races = json.loads(call(*args, "--json")[1])["comparisons"]
    assert [race["ended"]["cfg_scales"] for race in races] == [2, 1]
    with Pipeline.load(tiny_build.path, form="stepwise", threads=1) as pipeline:
        offsets, classes = pipeline.config.scale_offsets, pipeline.config.transformer.num_classes
        for race, seeds in zip(races, ([4, 5], [7, 8]), strict=True):  # three runs were before, and a warm-up
            asked = {"classes": [seed % classes for seed in seeds], "seeds": seeds, "cfg": 3.0}
            whole, ended = (pipeline.generate(**asked, cfg_scales=k) for k in (0, race["ended"]["cfg_scales"]))
            assert race["ended"]["psnr"] == pytest.approx(psnr(whole.images, ended.images), abs=0.01)
            later = slice(offsets[race["ended"]["cfg_scales"]], None)
            assert race["ended"]["tokens_alike"] == (whole.tokens == ended.tokens)[:, later].mean()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--cfg-scales", "3"), "--cfg-scales 3 changes nothing: give 1 to 2 of the 3 scales, and guidance"),
        (("--cfg-scales", "1", "--cfg", "0"), "--cfg-scales 1 changes nothing: "),
        (("--cfg-scales", "2", "--form", "fused"), "cfg_scales needs the stepwise form: --form stepwise"),
        (("--cfg-scales", "0"), "'0' is no list of numbers of scales such as 9,8"),
    ],
)
def test_guidance_that_cannot_end_is_refused_before_anything_is_timed(call, tiny_build, options, says):
    code, out, err = call("bench", tiny_build.path, "--batch", 1, *QUICK, *options)
    assert (code, out) == (2, "")
    assert says in err.splitlines()[-1]
    assert "batch 1" not in err
