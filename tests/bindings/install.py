"""The bindings of a version in a folder of their own, importable from there; `load` reads off what they offer.

What is read off is kept in build/bindings; the bindings themselves are not.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tests.bindings.api import Api

ROOT = Path(__file__).parents[2]
CACHE = ROOT / "build" / "bindings"
DUMP = Path(__file__).with_name("dump.py")
RETRY = ("--retries", "1", "--timeout", "15")

# What the extension modules ask of TensorRT's libraries when they are loaded.
ENTRY_POINTS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)
NOTHING_FOUND = "(from versions: none)"  # pip's words where no index could be asked


class Unavailable(Exception):
    """The bindings cannot be had on this machine; the text says why."""


@dataclass(frozen=True)
class Pin:
    """One version of one product."""

    product: str
    """tensorrt, tensorrt-rtx or cuda."""
    version: str
    """Or "installed": whatever this environment has."""
    module: str
    distribution: str
    pythons: tuple[tuple[int, int], tuple[int, int]]
    """First and last CPython that PyPI has a wheel for."""
    machines: tuple[str, ...] = ("x86_64",)
    libraries: tuple[str, ...] = ()
    """Shared libraries that the extension is linked with."""
    extra: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.product}-{self.version}"


def _tensorrt(version: str, last: int) -> Pin:
    major = version.split(".")[0]
    libraries = tuple(f"lib{name}.so.{major}" for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser"))
    return Pin(
        "tensorrt", version, "tensorrt_bindings", "tensorrt-cu12-bindings", ((3, 8), (3, last)), libraries=libraries
    )


def _cuda(version: str, first: int, last: int, *extra: str) -> Pin:
    machines = ("x86_64", "aarch64")
    return Pin("cuda", version, "cuda.bindings.runtime", "cuda-bindings", ((3, first), (3, last)), machines, (), extra)


PATHFINDER = "cuda-pathfinder==1.8.3"  # newer ones need Python 3.11
PINS = {
    str(pin): pin
    for pin in (
        _tensorrt("10.3.0", 12),  # JetPack 6.1 and 6.2
        _tensorrt("10.13.3.9", 13),  # JetPack 7.0 and 7.1
        _tensorrt("10.16.1.11", 13),  # JetPack 7.2
        _tensorrt("11.4.0.106", 14),
        Pin(
            "tensorrt-rtx",
            "1.7.1.116",
            "tensorrt_rtx_bindings",
            "tensorrt-rtx-cu12-bindings",
            ((3, 8), (3, 14)),
            libraries=("libtensorrt_rtx.so.1", "libtensorrt_onnxparser_rtx.so.1"),
        ),
        _cuda("12.8.0", 9, 13),  # the first release for CUDA 12: there is none of 12.6
        _cuda("12.9.10", 10, 14, PATHFINDER),
        _cuda("13.0.3", 9, 14, PATHFINDER),
        _cuda("installed", 10, 99),
    )
}


def load(pin: Pin) -> Api:
    """The API of a version. Raises `Unavailable`, as fast the second time as the first."""
    if pin not in _LOADED:
        try:
            _LOADED[pin] = _load(pin)
        except Unavailable as error:
            _LOADED[pin] = error
    result = _LOADED[pin]
    if isinstance(result, Unavailable):
        raise result
    return result


_LOADED: dict[Pin, Api | Unavailable] = {}


def _load(pin: Pin) -> Api:
    if pin.version == "installed":
        return Api(pin.product, dump(pin.module))
    _check(pin)
    recipe = repr((pin, ENTRY_POINTS)).encode() + DUMP.read_bytes()
    key = f"{pin}-{sys.implementation.cache_tag}-{platform.machine()}-{hashlib.sha256(recipe).hexdigest()[:8]}"
    file = CACHE / f"{key}.json"
    if not file.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE, prefix=".partial-") as scratch:
            install(pin, Path(scratch) / "bindings")
            partial = Path(scratch) / "api.json"
            partial.write_text(json.dumps(dump(pin.module, Path(scratch) / "bindings")))
            partial.replace(file)
    return Api(pin.product, json.loads(file.read_text()))


def dump(module: str, folder: Path | None = None) -> dict[str, object]:
    """What a module offers, asked in a fresh process that sees `folder` alone; None: what is installed here."""
    command = [sys.executable, *(["-S", "-E"] if folder else []), str(DUMP), module]
    environment = dict(os.environ)
    if folder is None:
        if importlib.util.find_spec(module.split(".")[0]) is None:
            raise Unavailable(f"{module} is not installed here")
    else:
        command.append(str(folder))
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, (str(folder), os.environ.get("LD_LIBRARY_PATH"))))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise RuntimeError(f"importing {module} failed:\n{done.stderr[-3000:]}")
    result: dict[str, object] = json.loads(done.stdout)
    return result


def _check(pin: Pin) -> None:
    """Raise `Unavailable` where there are no bindings for this Python."""
    first, last = pin.pythons
    if sys.platform != "linux" or platform.machine() not in pin.machines or sys.implementation.name != "cpython":
        raise Unavailable(f"{pin.distribution} {pin.version} is for CPython on Linux, {' and '.join(pin.machines)}")
    if not first <= sys.version_info[:2] <= last:
        wheels = f"{first[0]}.{first[1]} to {last[0]}.{last[1]}"
        raise Unavailable(f"PyPI has {pin.distribution} {pin.version} for Python {wheels} only")


def install(pin: Pin, folder: Path) -> None:
    """Fill a folder with the bindings and what they need to be imported. Raises `Unavailable`."""
    _check(pin)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        for wheel in _download(pin, Path(scratch)):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder)
    _compile(pin.libraries, folder)


def _download(pin: Pin, folder: Path) -> list[Path]:
    if importlib.util.find_spec("pip") is None:
        raise Unavailable(f"this environment has no pip to fetch {pin.distribution} {pin.version} with")
    requirements = (f"{pin.distribution}=={pin.version}", *pin.extra)
    options = ("--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:", *RETRY)
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), *requirements]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    if done.returncode:
        said = done.stdout + done.stderr
        if NOTHING_FOUND in said:
            raise Unavailable(f"PyPI is out of reach: {' '.join(requirements)} could not be fetched")
        raise RuntimeError(f"pip download {' '.join(requirements)} failed:\n{said[-3000:]}")
    return sorted(folder.glob("*.whl"))


def _compile(libraries: tuple[str, ...], folder: Path) -> None:
    """Libraries that have every entry point and do nothing."""
    if not libraries:
        return
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise Unavailable("there is no C compiler here to make stand-ins for TensorRT's libraries with")
    source = folder / "nothing.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in ENTRY_POINTS))
    for name in libraries:
        flags = ("-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name))
        subprocess.run([compiler, *flags, str(source)], check=True, timeout=120)
