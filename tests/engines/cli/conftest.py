import pytest
import var_run_fake as fake

from engines.cli.run import main


@pytest.fixture
def pipeline(monkeypatch, tmp_path):
    """The fake pipeline, in an empty current folder."""
    monkeypatch.chdir(tmp_path)
    return fake.install(monkeypatch.setattr)


@pytest.fixture
def call(pipeline, capsys):
    """Run `var-run`; returns exit code, stdout, stderr."""

    def run(*args):
        code = main([str(arg) for arg in args])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
