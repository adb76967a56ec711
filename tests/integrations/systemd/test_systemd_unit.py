"""The unit file against the command that it starts, and against systemd's own checks where it is installed."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess

import pytest

from engines.bundle.bundle import BUNDLES
from engines.cli.serving import _LAST  # seconds that the server waits beyond --timeout when it is told to stop
from engines.errors import UsageError
from tests.integrations.served import PROGRAM, settings_of
from tests.kept import ROOT

UNIT = ROOT / "integrations" / "systemd" / "var-export.service"


def entries() -> dict[str, list[str]]:
    """The values of each setting, in order."""
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text(encoding="utf-8").splitlines():
        if line and line[0] not in "#[":
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


@pytest.fixture
def settings(tmp_path) -> dict:
    key = tmp_path / "key"
    key.write_text("a-long-enough-key")
    (command,) = entries()["ExecStart"]
    return settings_of(shlex.split(command), str(key))


def test_options_are_those_of_the_command(settings):
    assert settings["host"] == "127.0.0.1"
    assert settings["api_key_file"] is not None and not settings["insecure"]
    assert settings["bundles"] == ()


def test_the_key_is_the_credential_that_is_loaded():
    (name, _, source), (command,) = entries()["LoadCredential"][0].partition(":"), entries()["ExecStart"]
    assert f"--api-key-file %d/{name} " in f"{command} "
    made = re.search(r"> (/\S+)'", UNIT.read_text(encoding="utf-8"))[1]
    assert source == made, "the key that the first lines of the file tell to make"


def test_a_stop_is_given_more_time_than_the_server_takes(settings):
    (seconds,) = entries()["TimeoutStopSec"]
    assert int(seconds) > settings["timeout"] + _LAST


def test_it_is_started_again_unless_that_is_of_no_use():
    found = entries()
    assert found["Restart"] == ["on-failure"]
    assert found["RestartPreventExitStatus"] == [str(UsageError("").exit_code)]


def test_bundles_and_cache_lie_where_the_service_may_read_and_write():
    found = entries()
    (state,), (cache,), (folder,) = (found[name] for name in ("StateDirectory", "CacheDirectory", "WorkingDirectory"))
    assert folder == f"%S/{state}"
    assert f"XDG_CACHE_HOME=%C/{cache}" in found["Environment"][0].split()
    assert f"/var/lib/{state}/{BUNDLES}" in UNIT.read_text(encoding="utf-8")


def test_it_has_no_rights_that_it_does_not_need():
    found = entries()
    wanted = {
        "DynamicUser": "yes",
        "NoNewPrivileges": "yes",
        "ProtectSystem": "strict",
        "ProtectHome": "yes",
        "PrivateTmp": "yes",
        "PrivateDevices": "yes",
        "CapabilityBoundingSet": "",
    }
    assert {name: found[name][-1] for name in wanted} == wanted


@pytest.fixture
def installed(tmp_path):
    """The unit as it would lie in a system that has the program, for systemd's checks of what it starts."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed: apt install systemd")
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text(encoding="utf-8").replace(PROGRAM, "/bin/true"), encoding="utf-8")
    return unit


def analyze(*arguments: str) -> subprocess.CompletedProcess:
    command = ["systemd-analyze", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_systemd_understands_it(installed):
    done = analyze("verify", str(installed))
    assert (done.returncode, done.stderr) == (0, "")
    installed.write_text(installed.read_text().replace("ProtectHome=yes", "ProtectHouse=yes"))
    assert "ProtectHouse" in analyze("verify", str(installed)).stderr, "it would say what it does not know"


def test_systemd_finds_little_exposed(installed):
    help_text = analyze("--help").stdout
    if "--offline" not in help_text or "--threshold" not in help_text:
        pytest.skip("this systemd-analyze cannot judge a file that is not installed")
    done = analyze("security", "--offline=true", "--threshold=20", str(installed))
    assert done.returncode == 0, done.stdout[-2000:]
    bare = re.sub(r"^(Protect|Private|Restrict|System|Cap|Dyn)\S+$", "", installed.read_text(), flags=re.MULTILINE)
    installed.write_text(bare)
    assert analyze("security", "--offline=true", "--threshold=20", str(installed)).returncode != 0
