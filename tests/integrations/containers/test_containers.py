"""The Dockerfiles against this clone: no image can be built here, so all that can be read off them is held."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from engines.bundle.bundle import BUNDLES, DEMO_BUNDLE
from engines.cli.serving import _LAST  # seconds that the server waits beyond --timeout when it is told to stop
from tests.integrations.served import SERVE, settings_of
from tests.kept import ROOT
from tests.serving import serving

FOLDER = ROOT / "integrations" / "containers"
FILES = sorted(FOLDER.glob("Dockerfile.*"))
HEALTH = FOLDER / "healthcheck.py"
KNOWN = {
    "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "RUN", "STOPSIGNAL", "USER", "WORKDIR",
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """An instruction of a Dockerfile, its continued lines joined."""

    name: str
    text: str

    @property
    def words(self) -> list[str]:
        """The words of an instruction in exec form. Raises `ValueError` for one in shell form."""
        return json.loads(self.text[self.text.index("[") :])


def steps_of(text: str) -> list[Step]:
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [Step(*line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def final_stage(steps: list[Step]) -> list[Step]:
    return steps[max(k for k, step in enumerate(steps) if step.name == "FROM") :]


def only(steps: list[Step], name: str) -> Step:
    (step,) = [step for step in steps if step.name == name]
    return step


@pytest.fixture(params=FILES, ids=lambda file: file.suffix[1:])
def steps(request) -> list[Step]:
    return steps_of(request.param.read_text(encoding="utf-8"))


def test_there_is_one_for_each_kind_of_machine():
    assert [file.suffix for file in FILES] == [".cpu", ".cuda", ".jetson"]


def test_instructions_are_known_and_stages_exist(steps):
    assert {step.name for step in steps} <= KNOWN
    stages = [re.search(r" AS (\w+)$", step.text) for step in steps if step.name == "FROM"]
    names = {stage[1] for stage in stages if stage}
    asked = {name for step in steps for name in re.findall(r"--from=(\w+)", step.text)}
    assert asked == {"build"} <= names
    bases = [step.text.split()[0] for step in steps if step.name == "FROM"]
    arguments = dict(step.text.split("=", 1) for step in steps if step.name == "ARG")
    images = [arguments[base[2:-1]] if base.startswith("${") else base for base in bases if base not in names]
    assert images and [image for image in images if not re.fullmatch(r"[\w./-]+:[\w.-]*\d[\w.-]*", image)] == []


def allowed(path: str) -> bool:
    """Whether .dockerignore lets a path of the clone into the build: the last line that fits it decides."""
    verdict, parents = True, [path, *map(str, Path(path).parents)]
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.removeprefix("!")
        names = Path(path).parts if pattern.startswith("**/") else parents
        if pattern[:1] not in ("", "#") and any(fnmatch.fnmatch(name, pattern.removeprefix("**/")) for name in names):
            verdict = line.startswith("!")
    return verdict


def test_what_is_copied_is_here_and_let_in(steps):
    from_here = [step.text for step in steps if step.name == "COPY" and "--from" not in step.text]
    copied = [word for text in from_here for word in text.split()[:-1]]
    assert {"pyproject.toml", "engines", "var_export", "integrations/containers/healthcheck.py"} <= set(copied)
    assert [path for path in copied if not (ROOT / path).exists() or not allowed(path)] == []


def test_everything_that_the_package_is_made_of_is_copied(steps):
    """Folders of packages and files of metadata, as the project's own pyproject.toml names them."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    packages = re.findall(r'"(\w+)\*"', re.search(r"^packages = .*$", project, re.M)[0].replace("find", ""))
    assert "engines" in packages
    files = [re.search(r'^readme = "(.*)"$', project, re.M)[1], "LICENSE", "MANIFEST.in", "pyproject.toml"]
    text = " ".join(step.text for step in steps if step.name == "COPY" and "--from" not in step.text)
    assert [name for name in (*packages, *files) if name not in text.split()] == []


@pytest.mark.parametrize(
    "path", ["bundles/x", "build/x", ".git/config", ".venv/bin/python", "tests/conftest.py", "key"]
)
def test_nothing_else_of_the_clone_is_let_in(path):
    assert not allowed(path)
    assert allowed("engines/draw/loop.py") and not allowed("engines/__pycache__/x.pyc")


def test_the_extras_exist(steps):
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("[project.optional-dependencies]")[1]
    extras = set(re.findall(r"^([a-z]\w*) = \[", project.split("\n[")[0], re.M))
    assert {"cpu", "gpu", "serve"} <= extras
    installs = [step.text for step in steps if step.name == "RUN" and "pip install" in step.text]
    (asked,) = [set(re.search(r"/src\[([\w,]+)\]", text)[1].split(",")) for text in installs]
    assert "serve" in asked and len(asked) == 2
    assert asked <= extras
    assert "--no-cache-dir" in installs[0]


def test_the_server_is_started_with_options_that_it_has(steps, tmp_path):
    key = tmp_path / "key"
    key.write_text("a-long-enough-key")
    last = final_stage(steps)
    words = [*only(last, "ENTRYPOINT").words, *only(last, "CMD").words]
    settings = settings_of(words, str(key))
    assert settings["host"] == "0.0.0.0" and not settings["insecure"]
    assert str(settings["api_key_file"]) == str(key)
    assert words[words.index("--api-key-file") + 1].startswith("/run/secrets/")
    assert only(last, "EXPOSE").text == str(settings["port"])
    assert (Path(only(last, "WORKDIR").text) / BUNDLES).as_posix() == "/bundles", "where the newest is looked for"
    assert settings["bundles"] == ()


def test_a_wrong_option_would_be_seen(tmp_path):
    (tmp_path / "key").touch()
    words = ["/opt/var-export/bin/var-export", "serve", "--api-key-file", "x", "--hots", "0.0.0.0"]
    with pytest.raises(click.UsageError, match="--hots"):
        settings_of(words, str(tmp_path / "key"))


def test_it_does_not_run_as_root(steps):
    last = final_stage(steps)
    user = only(last, "USER").text
    assert user.isdecimal() and int(user) >= 1000, "a number, which Kubernetes can tell from root"
    made = [step.text for step in last if step.name == "RUN" and f"useradd --uid {user}" in step.text]
    assert len(made) == 1 and f"--owner={user}" in made[0]
    cache = re.search(r"XDG_CACHE_HOME=(\S+)", only(last, "ENV").text)[1]
    assert cache in made[0], "it can write there"
    after = last[last.index(only(last, "USER")) :]
    assert [step.name for step in after if step.name in ("RUN", "COPY")] == []


def test_programs_are_started_without_a_shell(steps):
    """A shell would keep SIGTERM to itself."""
    last = final_stage(steps)
    for name in ("ENTRYPOINT", "CMD", "HEALTHCHECK"):
        assert all(isinstance(word, str) for word in only(last, name).words)
    assert only(last, "STOPSIGNAL").text == "SIGTERM"


def test_health_is_asked_by_the_script_within_its_time(steps):
    last = final_stage(steps)
    check = only(last, "HEALTHCHECK")
    python, script = check.words
    (copied,) = [step.text.split() for step in last if step.name == "COPY" and HEALTH.name in step.text]
    assert copied == [f"integrations/containers/{HEALTH.name}", script]
    assert python == "/opt/var-export/bin/python"
    seconds = int(re.search(r"^SECONDS = (\d+)$", HEALTH.read_text(encoding="utf-8"), re.M)[1])
    assert seconds < int(re.search(r"--timeout=(\d+)s", check.text)[1])


def test_the_page_says_a_stop_is_given_time_enough():
    default = next(option.default for option in SERVE.params if option.name == "timeout")
    (line,) = re.findall(r"--stop-timeout (\d+)", (FOLDER / "README.md").read_text(encoding="utf-8"))
    assert int(line) > default + _LAST


def test_the_page_names_base_images_and_extras_as_they_are():
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{file.name}`")]
        image = re.search(r"^(?:ARG BASE=|FROM )([\w./-]+:\S+)", text, re.M)[1]
        extras = re.search(r"/src\[([\w,]+)\]", text)[1].split(",")
        assert f"`{image}`" in row
        assert row.endswith(f"| {', '.join(f'`{extra}`' for extra in extras)} |")


def ask(port: int) -> subprocess.CompletedProcess:
    environment = {**os.environ, "VAR_EXPORT_PORT": str(port), "http_proxy": "http://127.0.0.1:9"}
    command = [sys.executable, str(HEALTH)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.slow
def test_the_script_tells_a_server_that_draws_from_none(tmp_path):
    key = tmp_path / "key"
    key.write_text("a-long-enough-key")
    with serving(DEMO_BUNDLE, "--check", "never", "--api-key-file", key) as (process, address):
        port = int(address.rsplit(":", 1)[1])
        done = ask(port)
        assert (done.returncode, done.stderr) == (0, "")
    assert process.returncode == 0, "SIGTERM ends it well"
    done = ask(port)
    assert done.returncode == 1
    assert done.stderr.startswith("no answer: ") and done.stderr.count("\n") == 1


def test_shell_lines_split_into_words(steps):
    """An open quote or a lost backslash would make the build fail."""
    for step in steps:
        if step.name == "RUN" and not step.text.startswith("["):
            assert [words for words in map(shlex.split, step.text.split("&&")) if not words] == []
