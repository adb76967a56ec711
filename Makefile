# One command each. Everything is set up in .venv; PYTHON picks the interpreter that makes it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The CPU build of torch, so that no gigabytes of CUDA arrive: only tests and exports need torch at all.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test lint types format clean demo-bundle

demo: $(VENV)/.runtime
	$(BIN)/var-run --class 88

test: $(VENV)/.test
	$(BIN)/python -m pytest

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Rebuilds the embedded demo bundle; needed only when the graph contract changes (a test says when).
demo-bundle: $(VENV)/.test
	$(BIN)/var-export build --precision fp16 --force --out engines/data/demo

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade "pip>=25.1"

$(VENV)/.runtime: $(VENV)/bin/python pyproject.toml
	$(PIP) --editable ".[cpu]"
	@touch $@

$(VENV)/.test: $(VENV)/bin/python pyproject.toml
	$(PIP) --retries 1 --timeout 15 $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) "torch==2.13.0"
	$(PIP) --editable ".[cpu,export,hub]" --group test
	@touch $@ $(VENV)/.runtime

$(VENV)/.lint: $(VENV)/.test
	$(PIP) --group lint
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
