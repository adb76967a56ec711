"""The script that starts the server finds everything from its own place. The server is a stand-in here: it tells what
it was given; the other tests start the real one by this script."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("tritonserver.sh")
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
SITE = f"lib/python{VERSION}/site-packages"
LINK = f"{SITE}/pytriton/tritonserver/backends/python/triton_python_backend_stub"
TELLS = """#!/bin/sh
printf '%s\\n' "$@" "$PATH" "$LD_LIBRARY_PATH" "${PYTHONPATH-unset}"
"""


@pytest.fixture
def environment(tmp_path):
    venv = tmp_path / "venv"
    root = venv / SITE / "pytriton/tritonserver"
    for folder in ("bin", "backends/python", f"python_backend_stubs/{VERSION}"):
        (root / folder).mkdir(parents=True)
    (root / "bin/tritonserver").write_text(TELLS)
    (root / "bin/tritonserver").chmod(0o755)
    (root / f"python_backend_stubs/{VERSION}/triton_python_backend_stub").write_text("a stub")
    (venv / "bin").mkdir()
    (venv / "bin/python").symlink_to(sys.executable)
    shutil.copy(SCRIPT, venv / "bin/tritonserver")
    return venv


def started(script, cwd):
    env = {**os.environ, "PYTHONPATH": "elsewhere"}
    done = subprocess.run([script, "--model-repository=a b"], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_all_is_set_from_its_own_place(environment, tmp_path):
    (tmp_path / "link").symlink_to(environment / "bin/tritonserver")
    backends, caches, repository, path, libraries, pythonpath = started(tmp_path / "link", tmp_path)
    root = environment / SITE / "pytriton/tritonserver"
    assert backends == f"--backend-directory={root}/backends"
    assert caches == f"--cache-directory={root}/caches"
    assert repository == "--model-repository=a b"
    assert path.split(":")[0] == str(environment / "bin")
    assert libraries == f"{environment / SITE}/nvidia_pytriton.libs:{sysconfig.get_config_var('LIBDIR')}"
    assert pythonpath == "unset", "the models import what is in the repository and in the environment"


@pytest.mark.parametrize("before", ["nothing", "dangling", "of another environment", "a file"])
def test_the_stub_is_that_of_this_environment(environment, before, tmp_path):
    link = environment / LINK
    (tmp_path / "other").write_text("another stub")
    if before == "a file":
        link.write_text("an old stub")
    elif before != "nothing":
        link.symlink_to(tmp_path / ("other" if before == "of another environment" else "gone"))
    started(environment / "bin/tritonserver", tmp_path)
    assert link.read_text() == "a stub"

    environment.rename(tmp_path / "moved")
    assert (tmp_path / "moved" / LINK).read_text() == "a stub", "it is relative"
