"""What a figure is reported with."""

import pytest

from engines import machine as module
from engines.machine import machine

SMT = "".join(
    f"processor\t: {n}\nmodel name\t: Some  CPU @ 3GHz\nphysical id\t: 0\ncore id\t\t: {n // 2}\n\n" for n in range(4)
)
ARM = "".join(f"processor\t: {n}\nBogoMIPS\t: 62.50\nCPU implementer\t: 0x41\n\n" for n in range(6))


def on(monkeypatch, files, allowed):
    monkeypatch.setattr(module, "system_file", lambda path: files.get(path, ""))
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda _: set(allowed))
    return machine()


def test_here():
    here = machine()
    assert here.cpu
    assert 1 <= here.physical_cores <= here.cores
    assert here.cpu in str(here)


def test_two_threads_of_a_core_are_one_core(monkeypatch):
    files = {"/proc/cpuinfo": SMT, "/proc/meminfo": "MemTotal:  8388608 kB\nMemAvailable: 1024 kB\n"}
    here = on(monkeypatch, files, range(4))
    assert (here.cpu, here.cores, here.physical_cores) == ("Some CPU @ 3GHz", 4, 2)
    assert (here.memory, here.available, here.quota) == (8 << 30, 1 << 20, None)
    assert str(here).startswith("Some CPU @ 3GHz, 2 physical of 4 logical cores, 8 GiB, ")


def test_only_the_cores_that_may_be_used_count(monkeypatch):
    here = on(monkeypatch, {"/proc/cpuinfo": SMT}, {0, 1})
    assert (here.cores, here.physical_cores) == (2, 1)


def test_a_board_is_named_where_its_cores_are_not(monkeypatch):
    board = "NVIDIA Jetson Orin Nano Developer Kit\0"
    here = on(monkeypatch, {"/proc/cpuinfo": ARM, "/proc/device-tree/model": board}, range(6))
    assert (here.cpu, here.physical_cores) == ("NVIDIA Jetson Orin Nano Developer Kit", 6)


@pytest.mark.parametrize(
    ("text", "quota"), [("150000 100000\n", 1.5), ("max 100000\n", None), ("", None), ("0 0", None)]
)
def test_the_limit_of_a_container(monkeypatch, text, quota):
    assert on(monkeypatch, {"/sys/fs/cgroup/cpu.max": text}, range(4)).quota == quota


def test_a_system_that_says_nothing(monkeypatch):
    here = on(monkeypatch, {}, range(3))
    assert here.cpu
    assert (here.cores, here.physical_cores, here.memory) == (3, 3, 0)
