"""`--html` of verify and bench, and what is said before any work of verify, bench and sensitivity."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from engines.judging.thresholds import THRESHOLDS, Thresholds
from engines.packages import install_command
from var_export.cli.common import PAGE_SUFFIXES

NEVER = Thresholds(0.0, 0.0, 2.0, 2.0, -1.0, 999.0, 999.0, 2.0, -1.0, 2.0, 999.0, -1.0)


@pytest.mark.slow
def test_verify_writes_a_page_beside_what_it_prints(call, tiny_build, tmp_path):
    file = tmp_path / "made" / "it's a page.html"
    plain = call("verify", tiny_build.path, "--threads", 1)
    code, out, err = call("verify", tiny_build.path, "--threads", 1, "--html", file)
    assert (code, out) == plain[:2]
    assert f"page: {file} ({file.stat().st_size / 1000:.0f} kB)" in err
    page = file.read_text(encoding="utf-8")
    assert "✓ Passed" in page
    command = re.search(r"<pre><code>(.*?)</code></pre>", page)[1].replace("&#39;", "'").replace("&#34;", '"')
    typed = ["var-export", "verify", str(tiny_build.path), "--threads", "1", "--html", str(file)]
    assert shlex.split(command) == typed


@pytest.mark.slow
def test_verify_prints_the_same_json(call, tiny_build, tmp_path):
    arguments = ("verify", tiny_build.path, "--threads", 1, "--json")
    with_page = call(*arguments, "--html", tmp_path / "p.html")
    assert with_page[:2] == call(*arguments)[:2]
    assert json.loads(with_page[1])["passed"] is True


@pytest.mark.parametrize("form", ["stepwise", "fused"])
def test_a_failed_check_has_its_page_and_exits_1(call, altered, tmp_path, monkeypatch, form):
    monkeypatch.setitem(THRESHOLDS, "fp32", NEVER)
    path = altered(form=form)
    code, out, err = call("verify", path, "--html", tmp_path / "p.html")
    assert code == 1
    assert "\nFAILED\n" in out
    assert "misses the reference" in err.splitlines()[-1]
    assert "✗ Failed" in (tmp_path / "p.html").read_text(encoding="utf-8")


def test_a_new_run_is_named(call, tiny_build, tiny_checkpoint, tmp_path):
    arguments = ("verify", tiny_build.path, "--checkpoint", tiny_checkpoint, "--images", 9, "--seed", 7)
    assert call(*arguments, "--html", tmp_path / "p.html")[0] == 0
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert f"a new run of the PyTorch reference on {tiny_checkpoint}, seed 7" in page
    assert page.count("<img ") == 32  # of 9 images, 8


@pytest.mark.slow
def test_bench_writes_a_page(call, tiny_build, tmp_path):
    arguments = ("bench", tiny_build.path, "--batch", "1,2", "--runs", 2, "--threads", 1, "--json")
    code, out, _ = call(*arguments, "--reference", "random", "--html", tmp_path / "p.html")
    assert code == 0
    assert len(json.loads(out)["cases"]) == 4
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    for word in ("Latency per scale", "Throughput", "Against PyTorch", "weights: random", "2×2", "bench "):
        assert word in page


def test_bench_of_the_fused_form(call, tiny_build, tmp_path):
    arguments = ("bench", tiny_build.path, "--form", "fused", "--batch", 1, "--runs", 2, "--threads", 1)
    assert call(*arguments, "--html", tmp_path / "p.html")[0] == 0
    assert "fused graph" in (tmp_path / "p.html").read_text(encoding="utf-8")


COMMANDS = [("verify", "--html"), ("bench", "--html"), ("sensitivity", "--html"), ("sensitivity", "--plot")]


@pytest.fixture
def no_work(monkeypatch):
    """The bundle is opened before the work; here, nothing may even come to that."""
    monkeypatch.setattr("engines.bundle.bundle.Bundle.open", lambda *_, **__: pytest.fail("the work began"))


@pytest.mark.parametrize(("command", "option"), COMMANDS)
@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_a_missing_package_is_said_before_the_work(call, no_work, monkeypatch, tmp_path, command, option, package):
    monkeypatch.setitem(sys.modules, package, None)
    file = tmp_path / ("p.svg" if option == "--plot" else "p.html")
    code, out, err = call(command, tmp_path, option, file)
    assert (code, out) == (2, "")
    assert err == f"Error: {option} needs {package}: {install_command('report')}\n"


@pytest.mark.parametrize(("command", "option"), COMMANDS)
def test_a_file_that_cannot_be_is_said_before_the_work(call, no_work, tmp_path, command, option):
    suffix = ".svg" if option == "--plot" else ".html"
    (tmp_path / f"folder{suffix}").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").write_text("{}")
    mistakes = {
        "page.txt": f"{option} writes {suffix if suffix in PAGE_SUFFIXES else '.png'}",
        f"folder{suffix}": "is a directory",
        f"file/page{suffix}": f"{tmp_path / 'file'} is no folder",
        f"bundle/deeper/page{suffix}": "would lie in a bundle",
    }
    for name, says in mistakes.items():
        code, out, err = call(command, tmp_path, option, tmp_path / name)
        assert (code, out) == (2, ""), name
        assert says in err, name
        assert len(err.splitlines()) == 1, name
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted(
        [f"folder{suffix}", "file", "bundle", "manifest.json"]
    )


def test_a_folder_that_may_not_be_written_to(call, no_work, tmp_path, monkeypatch):
    def may(path, mode):  # tests may run as root
        return mode == os.R_OK or Path(path) != tmp_path

    monkeypatch.setattr("var_export.cli.common.os.access", may)
    code, _, err = call("verify", tmp_path, "--html", tmp_path / "new" / "p.html")
    assert code == 2
    assert f"{tmp_path} may not be written to" in err


@pytest.mark.slow
@pytest.mark.parametrize("command", [["verify"], ["bench", "--batch", "1", "--runs", "1"]], ids=lambda words: words[0])
def test_measuring_does_not_count_what_draws(tiny_build, tmp_path, command):
    """The packages of pages are loaded after the figures, peak memory among them, are taken."""
    arguments = [command[0], str(tiny_build.path), *command[1:], "--html", str(tmp_path / "p.html")]
    script = f"""
import sys
import engines.cli.common as common
real = common.peak_memory
def peak():
    assert not {{"matplotlib", "jinja2"}} & set(sys.modules), "loaded too early"
    return real()
common.peak_memory = peak
from var_export.cli.main import main
assert main({arguments!r}) == 0
assert "matplotlib" in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
