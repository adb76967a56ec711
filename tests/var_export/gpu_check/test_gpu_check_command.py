"""`var-export gpu-check` from end to end, on the emulated GPU: nothing here says anything about speed or kernels."""

import json
import re

import pytest

from engines.errors import OutOfMemoryError
from engines.judging import thresholds
from tests.emulation import HostCuda
from var_export.gpu_check import cases, hardware, report

pytestmark = pytest.mark.slow

CASES = [f"d16 {precision} {form} tensorrt" for precision in ("fp32", "fp16") for form in ("stepwise", "fused")]
STATIC = "d16 fp16 stepwise tensorrt (batch 1 only)"


def tables(page):
    """Rows of cells, table by table; every row of a table has as many cells as its head."""
    found = []
    for block in page.split("\n\n"):
        lines = block.splitlines()
        if not lines or not lines[0].startswith("| "):
            continue
        rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]] for line in lines]
        assert set(rows[1]) == {"---"}, block
        assert {len(row) for row in rows} == {len(rows[0])}, block
        found.append([rows[0], *rows[2:]])
    return found


def steps_of(document, kind):
    return [entry for entry in document["steps"] if entry["step"]["kind"] == kind]


def test_everything_passes(check, emulated, in_process, no_torch_gpu):
    code, out, _, document, page = check()
    assert code == 0, document["verdict"]["failures"]
    assert "5 of 5 engines within every threshold, 1 not run" in out
    assert document["state"] == "finished"
    assert document["verdict"] == {"passed": True, "checked": 5, "within_thresholds": 5, "failures": []}
    assert emulated["cuda"].violations == []
    assert page.startswith("# GPU check\n\n**PASSED**: 5 of 5 engines within every threshold")
    built, passed, speed, scales, missing = tables(page)[1:]
    assert [row[:2] for row in built][1:3] == [["d16 fp32", "bundle"], ["d16 fp16", "bundle"]]
    assert [row[:2] for row in built if row[0] == STATIC] == [[STATIC, "plan: step"], [STATIC, "plan: all"]]
    assert [row[0] for row in passed[1:]] == [*CASES, STATIC]
    assert {row[1] for row in passed[1:]} == {"yes"}
    timed = [(row[0], row[1], row[2]) for row in speed[1:]]
    assert (CASES[0], "2", "4") in timed
    assert (CASES[0], "2", "none") in timed
    assert (CASES[1], "2, 1 at once", "4") in timed
    assert [row for row in timed if row[0] == STATIC] == [(STATIC, "1", "4"), (STATIC, "1", "none")]
    assert scales[0] == ["", "fp32 tensorrt", "fp16 tensorrt", "fp16 tensorrt (batch 1 only)"]
    assert [row[0] for row in scales[1:]] == [
        *("cond", "scale 0 (1x1)", "scale 1 (2x2)", "scale 2 (3x3)", "decode", "outside", "total")
    ]
    assert missing[1] == ["PyTorch on the GPU", "PyTorch was built without CUDA"]


def test_the_document_keeps_its_form(check, emulated, in_process, torch_on_cpu, monkeypatch):
    rivals = ("eager", "compiled-graphs")
    monkeypatch.setattr(cases, "RIVALS", rivals)
    code, _, _, document, page = check("--precision", "fp16", "--form", "stepwise")
    assert code == 0
    assert list(document) == [
        *("schema", "version", "state", "started", "updated", "verdict", "settings", "machine", "packages", "probes"),
        *("steps", "not_run"),
    ]
    assert document["schema"] == 1
    assert document["settings"] == {
        "models": ["d16"],
        "precisions": ["fp16"],
        "forms": ["stepwise"],
        "backends": ["tensorrt"],
        "device": 0,
        "batches": [1, 2],
        "runs": 2,
        "torch": True,
    }
    assert list(document["probes"]) == ["gpu", "tensorrt", "torch"]
    gpu = document["probes"]["gpu"]
    assert (gpu["problem"], gpu["gpu"], gpu["compute_capability"]) == (None, "Emulated GPU", "8.9")
    assert {"driver", "nvidia_smi", "jetson", "power_mode", "cuda", "gpu_memory"} <= set(gpu)
    for entry in document["steps"]:
        assert list(entry) == [
            *("name", "status", "step", "key", "started", "seconds", "result", "error", "trace", "notes")
        ]
        assert list(entry["step"]) == ["kind", "model", "precision", "backend", "form", "batch", "rival"]
    keys = {kind: set(steps_of(document, kind)[0]["result"]) for kind in ("bundle", "plans", "verify", "bench", "race")}
    assert keys["bundle"] == {
        *("path", "name", "build_key", "weights_bytes", "patch_nums", "sampling", "checkpoint"),
        *("reused", "checks", "peak_memory"),
    }
    assert keys["plans"] == {"path", "set", "reused", "bytes", "seconds", "weights_bytes", "peak_memory"}
    assert keys["verify"] >= {
        *("passed", "failures", "thresholds", "scales", "total", "free_tokens", "decoder_psnr", "image_psnr"),
        *("encoder_tokens", "reconstruction_loss", "runtime", "first_image_seconds"),
    }
    assert keys["bench"] == {
        *("runtime", "first_image_seconds", "engine_batch", "cases", "problems", "gpu_memory", "cuda_graphs"),
        *("peak_memory", "gpus_after"),
    }
    assert keys["race"] == {"runtime", "torch", "device", "dtype", "mode", "rows"}
    bench = steps_of(document, "bench")[0]["result"]
    assert [(case["batch"], case["cfg"]) for case in bench["cases"]] == [(1, 4.0), (1, 0.0), (2, 4.0), (2, 0.0)]
    assert bench["gpu_memory"]["after"] >= bench["gpu_memory"]["loaded"] >= 0
    assert 0 < bench["cuda_graphs"]["graphs"] < bench["cuda_graphs"]["calls"]
    assert bench["runtime"]["tensorrt"] == "10.3.0"
    race = steps_of(document, "race")[-1]["result"]
    assert race["mode"] == "reduce-overhead"
    assert [row["batch"] for row in race["rows"]] == [1, 2]
    assert set(race["rows"][0]) == {
        *("batch", "cfg", "pairs", "problem", "rival", "engine", "ratios", "ratio", "tokens_alike"),
        *("first_run_seconds", "torch_memory"),
    }
    assert len(race["rows"][0]["ratios"]) == 2
    rows = [row[:3] for row in tables(page)[-1][1:]]
    assert rows == [[CASES[2], rival, batch] for rival in rivals for batch in ("1", "2")]

    # What this emulation never does: memory that ends, figures that are none, pixels that are equal.
    document["steps"][-1]["result"]["rows"][0]["problem"] = "CUDA out of memory | 2 GiB"
    verified = steps_of(document, "verify")[0]["result"]
    verified["max_logit_error"], verified["decoder_psnr"] = None, None
    page = report.page(document)
    assert tables(page)[-1][-2][3] == "CUDA out of memory \\| 2 GiB"
    assert tables(page)[2][1][2] == "not finite (<= 2)"
    assert tables(page)[2][1][7] == "identical pixels (>= 40 dB)"


def test_json_on_stdout(check, emulated, in_process, no_torch_gpu):
    code, out, _, document, page = check("--precision", "fp16", "--form", "stepwise", "--json")
    assert code == 0
    assert json.loads(out) == document
    assert document["not_run"] == [{"what": "PyTorch on the GPU", "reason": "PyTorch was built without CUDA"}]
    assert "Beside PyTorch" not in page


def test_both_products_and_what_is_missing(check, emulated, in_process, monkeypatch):
    monkeypatch.setattr(hardware, "gpus", lambda: [dict.fromkeys(hardware.FIELDS, "7 W")])
    options = ("--precision", "fp16", "--form", "stepwise", "--no-torch", "--batch", "1")
    code, _, _, document, page = check(*options, "--backend", "tensorrt,tensorrt-rtx,onnxruntime")
    assert code == 0
    assert [entry["name"] for entry in steps_of(document, "verify")] == [
        "verify: d16 fp16 stepwise tensorrt",
        "verify: d16 fp16 stepwise tensorrt-rtx",
    ]
    missing = {entry["what"]: entry["reason"] for entry in document["not_run"]}
    assert set(missing) == {"onnxruntime", "PyTorch on the GPU"}
    assert missing["PyTorch on the GPU"] == "left out by --no-torch"
    assert "| tensorrt-rtx | 1.7.1.116 |" in page
    assert "| nvidia-smi, at the start | pstate 7 W, clocks.sm 7 W," in page


def test_a_missed_threshold_fails_and_is_named(check, emulated, in_process, no_torch_gpu, monkeypatch):
    strict = thresholds.Thresholds(0, 0, 1, 1, 0, 200.0, 200.0, 1, 0, 1, 200.0, 0)
    monkeypatch.setitem(thresholds.THRESHOLDS, "fp16", strict)
    code, _, err, document, page = check("--batch", "1")
    assert code == 1
    failures = document["verdict"]["failures"]
    assert failures[0].startswith("verify: d16 fp16 stepwise tensorrt misses the reference: largest logit error is ")
    assert (document["verdict"]["within_thresholds"], document["verdict"]["checked"]) == (2, 4)
    assert failures[0] in err.splitlines()[-1]
    assert page.startswith("# GPU check\n\n**FAILED**: 2 of 4 engines")
    assert f"- {failures[0]}" in page
    assert [row[1] for row in tables(page)[2][1:]] == ["yes", "yes", "**NO**", "**NO**"]
    assert steps_of(document, "bench")[2]["status"] == "done"  # it is timed all the same


def test_a_build_that_fails_takes_nothing_else_with_it(check, emulated, in_process, no_torch_gpu):
    def fail(file):
        if "fp32" in file and "fused" in file.rpartition("/")[2]:
            raise RuntimeError("Could not find any implementation for node {ForeignNode}")

    emulated["tensorrt"].during_build = fail
    code, _, _, document, page = check("--batch", "1")
    assert code == 1
    assert len(document["verdict"]["failures"]) == 1
    assert "plans: d16 fp32 tensorrt both failed: TensorRT 10.3.0 failed while building fused.onnx" in page
    assert "## Failures" in page
    assert "ForeignNode" in page
    tables(page)
    assert [entry["name"].removeprefix("verify: ") for entry in steps_of(document, "verify")] == [
        *(case for case in CASES if case != "d16 fp32 fused tensorrt")
    ]
    assert document["not_run"][-1] == {"what": "d16 fp32 fused tensorrt", "reason": "its plans could not be built"}
    stepwise = next(entry for entry in steps_of(document, "plans") if entry["step"]["form"] == "stepwise")
    assert stepwise["result"]["path"].endswith("d16-fp32-stepwise")


def test_a_bundle_that_fails(check, emulated, in_process, no_torch_gpu, out):
    (out / "bundles/d16-fp32").rename(out / "bundles/elsewhere")
    (out / "bundles/d16-fp32").write_text("not a folder")
    code, _, _, document, _ = check("--form", "stepwise", "--batch", "1")
    assert code == 1
    assert document["verdict"]["failures"][0].startswith("bundle: d16 fp32 failed: ")
    assert {entry["step"]["precision"] for entry in steps_of(document, "verify")} == {"fp16"}
    assert {"what": "d16 fp32 stepwise tensorrt", "reason": "its bundle could not be built"} in document["not_run"]


def test_a_second_run_takes_what_is_known(check, emulated, in_process, no_torch_gpu, monkeypatch):
    options = ("--precision", "fp16", "--form", "stepwise", "--batch", "1")
    first = check(*options)[3]
    ran, in_process.steps[:] = in_process.steps[:], []
    assert [name.partition(":")[0] for name in ran] == ["bundle", "plans", "verify", "bench"]
    code, _, err, second, _ = check(*options)
    assert code == 0
    assert in_process.steps == []
    assert second["steps"] == first["steps"]
    assert err.count(": known") == 4
    check(*options, "--runs", "3")  # another question to the benches alone
    assert [name.partition(":")[0] for name in in_process.steps] == ["bench"]
    in_process.steps.clear()
    check(*options, "--no-resume")
    assert in_process.steps == ran
    in_process.steps.clear()
    monkeypatch.setattr("var_export.gpu_check.steps.code_digest", lambda *names: "other code")
    check(*options)
    assert in_process.steps == ran


def test_what_was_deleted_is_made_again(check, emulated, in_process, no_torch_gpu, out):
    options = ("--precision", "fp16", "--form", "stepwise", "--batch", "1")
    check(*options)
    (plan,) = (out / "bundles/d16-fp16-stepwise/plans").glob("*/step.plan")
    plan.unlink()
    in_process.steps.clear()
    assert check(*options)[0] == 0
    assert in_process.steps == ["plans: d16 fp16 stepwise tensorrt"]


def test_what_failed_is_tried_again(check, emulated, in_process, no_torch_gpu):
    def fail(file):
        raise RuntimeError("no")

    options = ("--precision", "fp16", "--form", "stepwise", "--batch", "1")
    emulated["tensorrt"].during_build = fail
    assert check(*options)[0] == 1
    emulated["tensorrt"].during_build = lambda file: None
    in_process.steps.clear()
    assert check(*options)[0] == 0
    assert in_process.steps[0] == "plans: d16 fp16 stepwise tensorrt"


def test_an_interrupted_check_keeps_what_it_has(check, emulated, in_process, no_torch_gpu):
    def interrupt(job):
        if job.step.kind == "bench":
            raise KeyboardInterrupt

    options = ("--precision", "fp16", "--form", "stepwise", "--batch", "1")
    in_process.before = interrupt
    code, _, err, document, page = check(*options)
    assert code == 130
    assert "interrupted: 3 outcomes are kept in " in err.splitlines()[-1]
    assert err.splitlines()[-1].endswith("; the same command continues")
    assert document["state"] == "interrupted"
    assert document["verdict"]["passed"] is False
    assert [entry["step"]["kind"] for entry in document["steps"]] == ["bundle", "plans", "verify"]
    assert page.startswith("# GPU check\n\n**INTERRUPTED**: 1 of 1 engines")
    in_process.before, in_process.steps[:] = lambda job: None, []
    assert check(*options)[0] == 0
    assert in_process.steps == ["bench: d16 fp16 stepwise tensorrt"]


def test_without_a_gpu_it_is_one_line(check, emulated, in_process, monkeypatch):
    without = HostCuda(devices=0)
    without.cudaDriverGetVersion = lambda: (0, 0)
    monkeypatch.setattr("engines.backends.cuda.import_cuda_runtime", lambda: without)
    code, out, err, document, _ = check("--backend", "tensorrt,tensorrt-rtx,onnxruntime")
    assert (code, out, document) == (2, "", None)
    last = err.splitlines()[-1]
    assert last.startswith("Error: nothing here can be checked on a GPU: GPU: no usable NVIDIA GPU or driver here")
    assert last.endswith("; see also: var-export doctor")


def test_without_tensorrt_it_is_one_line(check, emulated, in_process, monkeypatch):
    from engines.errors import BackendError

    def missing(name):
        raise BackendError(f"{name} is not installed")

    monkeypatch.setattr("engines.backends.tensorrt.library.load", missing)
    code, _, err, _, _ = check("--backend", "tensorrt,tensorrt-rtx")
    assert code == 2
    assert "tensorrt: tensorrt is not installed; tensorrt-rtx: tensorrt-rtx is not installed;" in err.splitlines()[-1]


def test_too_little_memory_for_a_batch_is_a_finding(check, emulated, in_process, no_torch_gpu, monkeypatch):
    from engines.fidelity.speed import Bench

    measure = Bench.measure

    def limited(self, *, batches, **more):
        if batches == (2,):
            raise OutOfMemoryError("the GPU is out of memory: 100 MiB were needed")
        return measure(self, batches=batches, **more)

    monkeypatch.setattr(Bench, "measure", limited)
    code, _, _, document, page = check("--precision", "fp32", "--form", "stepwise")
    assert code == 0
    bench = steps_of(document, "bench")[0]["result"]
    assert [problem["batch"] for problem in bench["problems"]] == [2, 2]
    assert [row[3] for row in tables(page)[3][1:]][2:] == ["the GPU is out of memory: 100 MiB were needed"] * 2


def test_a_place_that_cannot_be_written(check, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err, _, _ = check("--out", tmp_path / "file/check")
    assert code == 2
    assert err.splitlines()[-1].startswith("Error: cannot write ")
    assert "Not a directory" in err


def test_a_page_that_cannot_be_made_does_not_end_the_run(check, emulated, in_process, no_torch_gpu, monkeypatch):
    options = ("--precision", "fp32", "--form", "stepwise", "--batch", "1")

    def broken(document):
        raise ValueError("a table")

    monkeypatch.setattr(report, "page", broken)
    with pytest.raises(ValueError, match="a table"):
        check(*options)
    assert len(in_process.steps) == 4


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--model", "d20"), "'d20' is no list of some of demo,d16"),
        (("--precision", ""), "is no list of some of fp32,fp16,bf16"),
        (("--batch", "1,x"), "is no list of batch sizes such as 1,8"),
        (("--batch", "0"), "is no list of batch sizes such as 1,8"),
    ],
)
def test_mistakes(check, args, says):
    code, _, err, _, _ = check(*args)
    assert code == 2
    assert says in err
