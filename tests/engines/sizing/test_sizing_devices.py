"""The file of devices: complete, with a source for each figure, and in agreement with what vendors publish."""

import json
import re

import pytest

from engines.errors import UsageError
from engines.sizing.devices import FILE, MIB, devices, find

DATA = json.loads(FILE.read_text(encoding="utf-8"))
FIGURES = {"units", "clock", "bandwidth", "cache", "memory", "reported"}
WANTED = (
    "orin-nano-4gb", "orin-nano-8gb", "orin-nx-8gb", "orin-nx-16gb", "agx-orin-32gb", "agx-orin-64gb", "thor", "t4",
    "l4", "a10", "a100-40gb", "a100-80gb", "a800", "h100", "rtx-3060", "rtx-3070", "rtx-3080", "rtx-3090", "rtx-4060",
    "rtx-4070", "rtx-4080", "rtx-4090", "rtx-5060", "rtx-5070", "rtx-5070-ti", "rtx-5080", "rtx-5090",
)  # fmt: skip

# Dense peaks as published, in 10^12 a second. The file derives them from units, clocks and rates: both must agree.
PUBLISHED = {
    "t4": {"fp32": 8.1, "fp16": 65, "int8": 130},  # NVIDIA T4 data sheet
    "l4": {"fp32": 30.3, "fp16": 121, "int8": 242.5},  # L4 data sheet, sparse figures halved
    "a10": {"fp32": 31.2, "fp16": 125, "bf16": 125, "int8": 250},  # A10 data sheet
    "a100-80gb": {"fp32": 19.5, "fp16": 312, "bf16": 312, "int8": 624},  # A100 data sheet
    "h100": {"fp32": 66.9, "fp16": 989.4, "bf16": 989.4, "int8": 1978.9},  # Hopper whitepaper, SXM5
    "rtx-3090": {"fp32": 35.6, "fp16": 71, "fp16_fast": 142, "int8": 284},  # GA102 whitepaper, appendix A
    "rtx-3070": {"int8": 162.6},
    "rtx-3080": {"fp32": 29.8, "fp16": 59.5, "fp16_fast": 119, "int8": 238},
    "rtx-4090": {"fp32": 82.6, "fp16": 165.2, "fp16_fast": 330.3, "int8": 660.6},  # Ada whitepaper, appendix A
    "rtx-5090": {"fp32": 104.8, "fp16": 209.5, "fp16_fast": 419, "int8": 838},  # RTX Blackwell whitepaper
    "orin-nano-8gb-15w": {"fp32": 1.28, "int8": 20},  # Orin Nano data sheet: 40 sparse, 20 dense
    "orin-nano-8gb": {"int8": 33.5},  # 67 sparse
    "agx-orin-64gb": {"fp32": 5.3, "int8": 85},  # AGX Orin technical brief: 170 sparse of the GPU
    "thor": {"fp16": 258.5, "int8": 517},  # Jetson T5000: 517 and 1035 sparse
}


@pytest.mark.parametrize("name", devices())
def test_every_figure_has_a_source_with_a_date(name):
    device = devices()[name]
    assert FIGURES | {"rates 0"} <= set(device.sources)
    assert ("system" in device.sources) is device.shared_memory
    for source in device.sources.values():
        assert re.fullmatch(r"20\d\d-\d\d-\d\d", source.date)
        assert source.says
        assert source.url is None or re.fullmatch(r"https://\S+", source.url)
        if source.url is None:  # then it says why there is no address
            assert re.search(r"[Dd]erived|nominal|no address", source.says), source.name
    if any(source.name == "techpowerup" for source in device.sources.values()):
        assert device.page.startswith("https://www.techpowerup.com/gpu-specs/")


@pytest.mark.parametrize("architecture", DATA["architectures"])
def test_int8_rates_have_a_source_of_their_own(architecture):
    entry = DATA["architectures"][architecture]
    assert "int8" in entry["rates"]
    assert any("INT8" in DATA["sources"][source]["says"] for source in entry["sources"])


def test_no_source_is_left_over():
    used = {name for entry in DATA["devices"] for name in entry["sources"].values()}
    used |= {name for entry in DATA["architectures"].values() for name in entry["sources"]}
    assert used | {DATA["jetson_system"]["source"]} == set(DATA["sources"])
    assert {entry["architecture"] for entry in DATA["devices"]} == set(DATA["architectures"])


def test_all_that_were_asked_for_are_there():
    assert set(WANTED) <= set(devices())
    assert len(devices()) == len(DATA["devices"])  # no name twice
    for name in devices():
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)


@pytest.mark.parametrize("name", PUBLISHED)
def test_derived_peaks_are_the_published_ones(name):
    peaks = devices()[name].peaks
    for kind, published in PUBLISHED[name].items():
        assert peaks[kind] / 1e12 == pytest.approx(published, rel=0.025 if name.startswith("orin") else 0.01), kind


@pytest.mark.parametrize("name", devices())
def test_figures_are_plausible(name):
    device = devices()[name]
    assert 0.85 * device.memory_bytes < device.reported_bytes <= device.memory_bytes
    assert 0.6 * device.memory_bytes < device.usable_bytes <= device.reported_bytes
    assert (device.system_bytes > 0) is device.shared_memory is device.title.startswith("Jetson")
    assert device.peaks["fp32"] < device.peaks["fp16"] <= device.peaks["fp16_fast"] < device.peaks["int8"]
    assert 2 * MIB <= device.cache_bytes <= 128 * MIB
    assert 50 < device.peaks["fp16"] / device.bandwidth < 1000  # FLOP per byte
    assert set(device.targets) <= {"tensorrt", "tensorrt-rtx", "onnxruntime"}
    assert ("tensorrt-rtx" in device.targets) is name.startswith("rtx-")
    assert (device.mode is not None) is device.shared_memory


def test_bf16_needs_ampere():
    without = {name for name, device in devices().items() if not device.supports("bf16")}
    assert without == {"t4"}
    with pytest.raises(UsageError, match="Tesla T4 16GB has no BF16 tensor cores"):
        devices()["t4"].peak("bf16")


@pytest.mark.parametrize("said", ["orin-nano-8gb", "Orin Nano 8GB", " ORIN_NANO_8GB ", "orin nano-8gb"])
def test_spelling_does_not_matter(said):
    assert find(said).name == "orin-nano-8gb"


@pytest.mark.parametrize(
    ("said", "near"),
    [
        ("a100", "a100-40gb or a100-80gb"),
        ("orin-nx", "orin-nx-8gb or orin-nx-16gb or orin-nx-16gb-25w"),
        ("rtx-4095", "rtx-40"),
        ("agx-orin-46gb", "agx-orin-64gb"),
        ("h200", "h100"),
    ],
)
def test_an_unknown_name_gets_the_nearest(said, near):
    with pytest.raises(UsageError) as caught:
        find(said)
    assert near in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("said", ["", "  ", "zzz", "orin!nano"])
def test_a_hopeless_name_says_where_to_look(said):
    with pytest.raises(UsageError, match="--list-devices"):
        find(said)
