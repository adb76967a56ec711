"""`var-export estimate`: what it says, in text and JSON, and how its mistakes read."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from engines.bundle.bundle import DEMO_BUNDLE
from engines.sizing import models
from engines.sizing.devices import devices
from engines.spec.config import ModelConfig
from tests.support import copy_bundle, quickest
from var_export.cli import estimate as estimate_module
from var_export.cli.main import group

ROOT = Path(__file__).parents[3]
PAGES = [(ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("sizing.md", "performance-plans.md")]
HEAVY = ("torch", "onnx", "onnxruntime", "numpy", "PIL", "safetensors", "engines.sizing", "engines.draw.pipeline")
ISSUE = ("estimate", "--model", "d30", "--precision", "fp16", "--batch", "8", "--device", "orin-nano-8gb")
WITHOUT_TORCH = """
import sys
for name in ("torch", "onnx", "onnxscript", "onnx_ir", "safetensors", "huggingface_hub", "onnxruntime"):
    sys.modules[name] = None
from tests.support import quickest
from var_export.cli.main import main
raise SystemExit(main())
"""


def fresh(*args, code="from var_export.cli.main import main; raise SystemExit(main())"):
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)


@pytest.fixture
def document(call):
    def run(*args):
        code, out, err = call("estimate", *args, "--json")
        assert (code, err) == (0, "")
        return json.loads(out)

    return run


def test_json_of_one_device(call):
    code, out, err = call(*ISSUE, "--json")
    assert (code, err) == (0, "")
    estimate = json.loads(out)
    assert (estimate["model"], estimate["precision"], estimate["batch"], estimate["rows"]) == ("d30", "fp16", 8, 16)
    assert estimate["device"]["name"] == "orin-nano-8gb"
    assert isinstance(estimate["fits"], bool)
    memory = estimate["memory_bytes"]
    assert {"weights", "kv_cache", "loop_buffers", "activations", "decoder", "total"} <= set(memory)
    assert estimate["fits"] is (memory["total"] <= estimate["usable_bytes"])
    assert estimate["bound_images_per_s"] == pytest.approx(8 / estimate["bound_seconds"])
    assert estimate["bound_by"] in ("memory", "compute")
    assert [scale["name"] for scale in estimate["scales"]] == [f"scale {i}" for i in range(10)]
    for scale in estimate["scales"]:
        assert scale["bound_by"] in ("memory", "compute")
        assert scale["seconds"] > 0
        assert sum(scale["flops"].values()) > 0
        assert scale["read_bytes"]["weights"] > 2e9


def test_text_of_one_device(call):
    code, out, err = call(*ISSUE)
    assert (code, err) == (0, "")
    for said in (
        "d30, 256x256 pixels, fp16, stepwise, 8 images at once with guidance (16 rows)",
        "Jetson Orin Nano 8GB, MAXN_SUPER: 102.4 GB/s",
        "weights",
        "KV cache",
        "activations of the decoder",
        "usable of 8.00 GiB",
        "MiB too much (the counted bytes alone would fit); any of these helps: --batch ",
        "16x16",
        "images/s, bound by compute",
        "a bound, not a prediction",
    ):
        assert said in out


def test_text_of_what_fits(call):
    out = call("estimate", "--model", "d16", "--device", "agx-orin-64gb")[1]
    assert re.search(r"^fits, [\d.]+ GiB left; the largest batch that fits is \d+$", out, re.MULTILINE)
    tight = call("estimate", "--model", "d16", "--device", "t4", "--batch", "113")[1]
    assert "(tight: not everything is counted); the largest batch that fits is 113" in tight
    assert "FP16 accumulators" not in out
    assert "accumulates in FP32 has 165.2 TFLOP/s" in call("estimate", "--model", "d16", "--device", "rtx-4090")[1]


@pytest.mark.slow
def test_a_table_of_all_devices(call, document):
    out = call("estimate", "--model", "d36", "--batch", "4")[1]
    rows = {line.split()[0]: line for line in out.splitlines() if line.split()[:1] and line.split()[0] in devices()}
    assert list(rows) == list(devices())
    estimates = {
        estimate["device"]["name"]: estimate for estimate in document("--model", "d36", "--batch", "4")["devices"]
    }
    assert list(estimates) == list(devices())
    for name, estimate in estimates.items():
        assert re.search(rf"GiB +{'yes' if estimate['fits'] else 'no'} +{estimate['largest_batch']} ", rows[name])
    assert {estimate["fits"] for estimate in estimates.values()} == {True, False}


def test_several_devices_in_the_order_given(document):
    estimates = document("--model", "d16", "--device", "t4", "--device", "orin-nano-8gb", "--device", "T4")["devices"]
    assert [estimate["device"]["name"] for estimate in estimates] == ["t4", "orin-nano-8gb"]


@pytest.mark.slow
def test_a_device_without_the_type_is_a_row_among_others_and_a_mistake_alone(call, document):
    estimates = document("--model", "d16", "--precision", "bf16")["devices"]
    (t4,) = [estimate for estimate in estimates if not estimate["supported"]]
    assert (t4["device"]["name"], t4["fits"], t4["bound_images_per_s"]) == ("t4", False, None)
    assert re.search(r"^t4 .* no bf16 ", call("estimate", "--model", "d16", "--precision", "bf16")[1], re.MULTILINE)
    code, out, err = call("estimate", "--model", "d16", "--precision", "bf16", "--device", "t4", "--json")
    assert (code, out) == (2, "")
    assert err == "Error: Tesla T4 16GB has no BF16 tensor cores; ask for --precision fp16, or another device\n"


def test_list_devices(call, document):
    code, out, _ = call("estimate", "--list-devices")
    assert code == 0
    for name in devices():
        assert re.search(rf"^{name} ", out, re.MULTILINE)
    listed = document("--list-devices")["devices"]
    assert [device["name"] for device in listed] == list(devices())
    for device in listed:
        assert {"bandwidth", "memory", "reported", "rates 0"} <= set(device["sources"])
        assert device["sources"]["bandwidth"]["date"].startswith("202")


@pytest.mark.parametrize("options", [(), ("--form", "fused"), ("--no-guidance",), ("--tokens-only",)])
def test_what_does_not_fit_says_what_helps_and_that_is_true(call, document, options):
    args = ("--model", "d30", "--precision", "fp32", "--batch", "64", "--device", "rtx-4090", *options)
    estimate = document(*args)
    assert estimate["fits"] is False
    assert estimate["remedies"][0] == f"--batch {estimate['largest_batch']}"
    assert (
        f"does not fit, {estimate_module.mebibytes(estimate['memory_bytes']['total'] - estimate['usable_bytes'])}"
        in call("estimate", *args)[1]
    )
    for remedy in estimate["remedies"]:  # a later option replaces an earlier one
        assert document(*args, *remedy.split())["fits"] is True
    assert document(*args, "--batch", estimate["largest_batch"] + 1)["fits"] is False


def test_nothing_helps_a_model_that_is_too_large(call):
    code, out, _ = call("estimate", "--model", "d36", "--device", "orin-nano-4gb")
    assert code == 0
    assert "at no batch; a smaller model or a larger device is needed" in out


def test_guidance(document):
    def rows(*args):
        return document("--model", "d16", "--device", "l4", "--batch", "3", *args)["rows"]

    assert rows() == rows("--cfg", "1.5") == 6
    assert rows("--no-guidance") == rows("--cfg", "0") == rows("--cfg", "0", "--no-guidance") == 3


def test_tokens_only_leaves_the_decoder_out(document):
    whole, tokens = (document("--model", "d16", "--device", "l4", *more) for more in ((), ("--tokens-only",)))
    assert tokens["decode"] is None
    assert tokens["memory_bytes"]["decoder"] == tokens["memory_bytes"]["weights_by_graph"]["decoder"] == 0
    assert tokens["bound_images_per_s"] > whole["bound_images_per_s"]


def test_a_bundle_brings_its_precision_and_form(document, tiny_build):
    estimate = document("--model", tiny_build.path, "--device", "l4")
    found = tuple(estimate[key] for key in ("model", "precision", "form", "max_top_k"))
    assert found == ("tiny", "fp32", "stepwise", 64)
    other = document("--model", tiny_build.path, "--device", "l4", "--precision", "bf16", "--form", "fused")
    assert (other["precision"], other["form"]) == ("bf16", "fused")


def test_labels_of_a_checkpoint_do_not_matter(document, tiny_checkpoint, tmp_path):
    folder = copy_bundle(tiny_checkpoint, tmp_path / "c")
    (folder / "labels.txt").write_text("{0: tench")
    here, there = (document("--model", each, "--device", "l4") for each in (tiny_checkpoint, folder))
    assert here == there


def test_a_checkpoint_is_the_same_as_its_bundle(document, tiny_checkpoint, tiny_build):
    checkpoint = document("--model", tiny_checkpoint, "--device", "l4", "--precision", "fp32")
    bundle = document("--model", tiny_build.path, "--device", "l4")
    assert checkpoint["scales"][0]["flops"] != {}
    assert checkpoint["memory_bytes"]["kv_cache"] == bundle["memory_bytes"]["kv_cache"]
    assert checkpoint["decode"] == bundle["decode"]


def test_int8(call, document):
    out = call("estimate", "--model", "d16", "--precision", "int8", "--device", "orin-nano-8gb")[1]
    for said in (
        "d16, 256x256 pixels, int8 (level 2; the rest fp16), stepwise",
        "33.4 TOP/s int8, 16.7 TFLOP/s fp16, 2.1 TFLOP/s fp32",
        "of these, layers in int8, static ranges",
        "of these, layers in fp16",
    ):
        assert said in out
    assert "accumulates in FP32" in call("estimate", "--model", "d16", "--precision", "int8", "--device", "rtx-4090")[1]
    estimates = [
        document("--model", "d16", "--device", "l4", "--precision", *more)
        for more in (("fp16",), ("int8", "--level", "1"), ("int8",), ("int8", "--level", "3"))
    ]
    assert [estimate["level"] for estimate in estimates] == [None, 1, 2, 3]
    speeds = [estimate["bound_images_per_s"] for estimate in estimates]
    assert speeds == sorted(speeds)
    assert set(estimates[2]["scales"][0]["flops"]) == {"int8", "fp16", "fp32"}
    sizes = estimates[2]["memory_bytes"]["layer_weights_by_way"]
    assert set(sizes) == {"static", "float"}
    assert sizes["static"] + sizes["float"] < estimates[2]["memory_bytes"]["weights"]


def test_the_cpu_has_memory_and_no_bound(call, document):
    float32, int8 = (document("--model", "d16", "--device", "cpu", *more) for more in ((), ("--precision", "int8")))
    assert (float32["precision"], int8["precision"]) == ("fp32", "int8")
    assert 0.26 < int8["memory_bytes"]["weights"] / float32["memory_bytes"]["weights"] < 0.27
    assert set(int8["memory_bytes"]["layer_weights_by_way"]) == {"static", "per-token", "per-block", "float"}
    for estimate in (float32, int8):
        assert estimate["device"]["targets"] == ["onnxruntime"]
        assert estimate["bound_images_per_s"] is estimate["bound_seconds"] is estimate["decode"] is None
        assert estimate["memory_bytes"]["runtime_allowance"] == 0
        assert estimate["fits"] is (estimate["memory_bytes"]["total"] <= estimate["usable_bytes"])
    out = call("estimate", "--model", "d16", "--device", "cpu", "--precision", "int8")[1]
    assert "int8 (level 2; the rest fp32)" in out
    assert "layers in int8, a range per token " in out
    assert "layers in int8, a range per block of a token" in out
    assert "no bound: the peaks of this CPU are not known" in out


@pytest.mark.slow
def test_an_int8_bundle_is_estimated_as_it_is(call, document, demo_int8_bundle):
    estimate = document("--model", demo_int8_bundle)
    assert (estimate["device"]["name"], estimate["precision"], estimate["level"]) == ("cpu", "int8", None)
    of_machine = {"usable_bytes": estimate["usable_bytes"], "device": estimate["device"]}
    assert estimate == document("--model", demo_int8_bundle, "--device", "cpu") | of_machine
    by_level = document("--model", demo_int8_bundle, "--device", "cpu", "--level", "2")
    assert by_level["memory_bytes"] == estimate["memory_bytes"]
    assert document("--model", demo_int8_bundle, "--device", "t4", "--level", "3")["level"] == 3
    assert "int8 (as the bundle; the rest fp32)" in call("estimate", "--model", demo_int8_bundle)[1]
    code, out, err = call("estimate", "--model", demo_int8_bundle, "--device", "t4")
    assert (code, out) == (2, "")
    assert err == "Error: var-emoji-demo is an INT8 bundle for the CPU: estimate it with --device cpu\n"


def test_the_names_of_models(document):
    assert document("--model", "demo", "--device", "l4")["model"] == "var-emoji-demo"
    assert document("--model", DEMO_BUNDLE, "--device", "l4")["precision"] == "fp16"
    d36 = models.official("d36")
    assert (d36.image_size, d36.transformer.shared_aln, d36.transformer.width) == (512, True, 2304)
    for name in ("d16", "d20", "d24", "d30"):
        config = models.official(name)
        assert isinstance(config, ModelConfig)
        assert config.image_size == 256
        assert config.transformer.width == 64 * config.transformer.depth
        assert config.transformer.heads == config.transformer.depth


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "say which model: --model d16, d20, d24, d30, d36, demo, a checkpoint or a bundle"),
        (["--model", "d17"], "there is no model or file 'd17'; known names are d16, d20, d24, d30, d36, demo"),
        (["--model", "no/such.pth"], "there is no model or file 'no/such.pth'"),
        (["--model", "d16", "--device", "orin"], "did you mean orin-nano-4gb or orin-nano-8gb or"),
        (["--model", "d16", "--device", "gtx-970x"], "unknown device 'gtx-970x'"),
        (["--model", "d16", "--device", ""], "unknown device ''"),
        (["--model", "d16", "--precision", "int2"], "'int2' is not one of"),
        (["--model", "d16", "--level", "2"], "--level needs --precision int8"),
        (["--model", "d16", "--level", "4", "--precision", "int8"], "--level"),
        (["--model", "d16", "--device", "cpu", "--device", "t4"], "--device cpu stands alone"),
        (["--model", "d16", "--device", "cpu", "--precision", "bf16"], "ask for --precision fp32, int8 or int4 there"),
        (["--model", "d16", "--batch", "0"], "--batch"),
        (["--model", "d16", "--batch", "5000"], "the batch must be 1 to 4096 images, got 5000"),
        (["--model", "d16", "--cfg", "-1"], "--cfg"),
        (["--model", "d16", "--cfg", "2", "--no-guidance"], "--no-guidance and --cfg contradict each other"),
        (["--model", "d16", "--form", "both"], "'both' is not one of"),
        (["--model", str(ROOT / "docs")], "docs"),
    ],
)
def test_a_mistake_is_one_line(call, args, says):
    code, out, err = call("estimate", *args)
    assert (code, out) == (2, "")
    assert err.startswith("Error: ")
    assert len(err.splitlines()) == 1
    assert says in err


def test_every_option_has_a_help():
    assert all(parameter.help for parameter in group.commands["estimate"].params)


@pytest.mark.slow
def test_help_is_light_and_fast():
    def run():
        result = fresh("estimate", "--help")
        assert result.returncode == 0, result.stderr

    assert quickest(run, 0.25) <= 0.25
    code = "import sys; from var_export.cli.main import main; main(); print(sorted(sys.modules))"
    loaded = fresh("estimate", "--help", code=code).stdout.splitlines()[-1]
    for name in HEAVY:
        assert f"'{name}'" not in loaded


@pytest.mark.parametrize("model", ["d30", "demo", str(DEMO_BUNDLE)])
def test_names_and_bundles_need_neither_torch_nor_a_runtime(model):
    result = fresh("estimate", "--model", model, "--device", "t4", code=WITHOUT_TORCH)
    assert result.returncode == 0, result.stderr
    assert "images/s" in result.stdout


def test_a_checkpoint_says_how_to_get_torch(tiny_checkpoint):
    result = fresh("estimate", "--model", tiny_checkpoint, code=WITHOUT_TORCH)
    assert result.returncode == 2
    assert re.fullmatch(r"Error: .*pip install .*\[.*export\].*\n", result.stderr)


CONSOLES = re.findall(r"```console\n\$ var-export ([^\n]*)\n(.*?)```", "".join(PAGES), re.DOTALL)


def test_the_page_has_examples():
    assert len(CONSOLES) >= 3


@pytest.mark.slow
@pytest.mark.parametrize(("command", "shown"), CONSOLES, ids=[command for command, _ in CONSOLES])
def test_examples_of_the_page_are_what_the_command_prints(call, command, shown):
    """A line of three dots stands for lines that are left out."""
    code, out, _ = call(*shlex.split(command))
    assert code == 0
    pattern = "".join("(?:.*\n)*" if line == "...\n" else re.escape(line) for line in shown.splitlines(keepends=True))
    assert re.fullmatch(pattern, out)


def test_the_comparison_of_the_page_is_computed(document):
    """ARPG's table: published images per second, our bound and their ratio, a row each."""
    rows = re.findall(
        r"^\| (d\d\d) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", PAGES[1], re.MULTILINE
    )
    assert [row[0] for row in rows] == ["d16", "d20", "d24"]
    for model, published, bound, ratio, gigabytes, counted in rows:
        estimate = document(
            "--model", model, "--device", "a800", "--batch", "64", "--precision", "bf16", "--tokens-only"
        )  # fmt: skip
        assert float(bound) == pytest.approx(estimate["bound_images_per_s"], abs=0.05)
        assert float(ratio) == pytest.approx(estimate["bound_images_per_s"] / float(published), abs=0.005)
        assert float(ratio) > 1
        assert float(counted) == pytest.approx(estimate["memory_bytes"]["counted"] / 1e9, abs=0.005)
        assert float(counted) < float(gigabytes)


def test_hours_of_many_images_on_many_workers(call, document):
    job = ("--model", "d16", "--batch", "8", "--images", "50000", "--workers", "8xl4")
    found = document(*job)["job"]
    assert (found["images"], found["workers"], found["device"]) == (50000, 8, "l4")
    one = document("--model", "d16", "--batch", "8", "--device", "l4")
    assert found["bound_hours"] == pytest.approx(50000 / (8 * one["bound_images_per_s"]) / 3600)
    assert f"bound by {found['bound_by']}" in call("estimate", *job)[1]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--images", "5"), "--images and --workers go together"),
        (("--images", "5", "--workers", "8xl4", "--device", "l4"), "leave --device out"),
        (("--images", "5", "--workers", "8"), "8xl4, a number and a device"),
    ],
)
def test_mistakes_about_workers(call, options, says):
    code, _, err = call("estimate", "--model", "d16", *options)
    assert code == 2
    assert says in err
