# One command each. Everything is set up in .venv; PYTHON picks the interpreter that makes it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The CPU build of torch, so that no gigabytes of CUDA arrive: only tests and exports need torch at all.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

# Setuptools warns of every editable install, in eight lines.
PIP := PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check

# A real Triton server for the tests (docs/triton.md), in a venv of its own: 560 MB. It exists for Linux on x86-64, and
# its numpy for Python up to 3.12; elsewhere `make test` goes without, and the tests that need it say so.
TRITON_VENV ?= $(VENV)-triton
TRITON_SCRIPT := tests/engines/tritonserver/tritonserver.sh
TRITON_HERE = $(shell $(PYTHON) -c "import platform as p, sys; print(p.system(), p.machine(), sys.version_info < (3, 13))")
TRITON_TEST := $(if $(filter Linux-x86_64-True,$(subst $() ,-,$(TRITON_HERE))),$(TRITON_VENV)/.ready)

.PHONY: demo test test-quick test-runtime test-bundles fuzz lint types format clean demo-bundle gpu-check triton-env

demo: $(VENV)/.runtime
	@echo "a parrot, 64 x 64, by the demo model that the package holds: $(BIN)/var-run --class 88"
	@picture=$$($(BIN)/var-run --class 88) && large=$$($(BIN)/python examples/enlarge.py "$$picture") && \
		printf '%s\n' "the image: $(CURDIR)/$$picture" "beside itself four times as large: $$large"

# Tests run in WORKERS processes, a file at a time, with the slow ones first. What they make once, bundles above all, is
# kept in build/test-bundles until the code that made it changes.
WORKERS ?= 2
SIDE_BY_SIDE := -n $(WORKERS) --dist loadfile --no-loadscope-reorder --max-worker-restart 2

test: test-bundles $(TRITON_TEST)
	TRITON_VENV="$(TRITON_VENV)" $(BIN)/python -m pytest $(SIDE_BY_SIDE)

# After an edit: without the slow tests, and on bundles as the last `make test` left them.
test-quick: $(VENV)/.test
	VAR_EXPORT_TEST_BUNDLES_AS_KEPT=1 $(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not slow"

# The tests of what runs on a device, with the Python of one and without torch: make test-runtime PYTHON=python3.10
# NUMPY=1.26.4 ONNXRUNTIME=1.23.2 installs those. Bundles that only torch makes come from `make test-bundles`; without
# them, the tests that need one are skipped, and pytest says how many.
NUMPY ?=
ONNXRUNTIME ?=
RUNTIME = $(VENV)-runtime-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')$(addprefix -numpy,$(NUMPY))$(addprefix -onnxruntime,$(ONNXRUNTIME))
RUNTIME_PIP = $(subst $(BIN),$(RUNTIME)/bin,$(PIP))

test-runtime:
	$(PYTHON) -m venv $(RUNTIME)
	$(RUNTIME_PIP) --upgrade "pip>=25.1"
	$(RUNTIME_PIP) --editable ".[cpu,int8,jetson]" --group test-runtime \
		$(addprefix numpy==,$(NUMPY)) $(addprefix onnxruntime==,$(ONNXRUNTIME))
	$(RUNTIME)/bin/python -m pytest $(SIDE_BY_SIDE) tests/engines tests/calib \
		tests/test_isolation.py tests/test_minimal_install.py

test-bundles: $(VENV)/.test
	$(BIN)/python -m tests.bundles $(WORKERS)

# Damaged, odd and hostile input (tests/fuzz): N bundles, a third as many checkpoints, requests and command lines. What
# came of each is kept in build/fuzz.jsonl, and a run that stopped goes on.
N ?= 3000
fuzz: $(VENV)/.test
	$(BIN)/python -m tests.fuzz $(N)

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

# On a machine with a GPU (docs/gpu-check.md). TENSORRT: rtx (RTX cards), tensorrt (servers), both, or system (a Jetson's
# own); CUDA: what the driver has; ARGS: options of the command. In a venv of its own: that of the tests has CPU torch.
TENSORRT ?= rtx
CUDA ?= $(shell nvidia-smi 2>/dev/null | sed -n 's/.*CUDA[A-Z ]*Version: *\([0-9]*\).*/\1/p' | head -n 1)
GPU := $(VENV)-gpu
GPU_READY = $(GPU)/.$(shell echo $(TENSORRT) cuda $(CUDA) | tr ' ' '-')
GPU_PIP = $(subst $(BIN),$(GPU)/bin,$(PIP))
GPU_PRODUCTS = $(patsubst rtx,tensorrt-rtx,$(filter rtx tensorrt,$(TENSORRT)))
JETSON = $(filter system,$(TENSORRT))

gpu-check: $(GPU_READY)
	$(GPU)/bin/var-export gpu-check $(ARGS)

# PyPI's torch has CUDA; for an older driver remove the venv and add TORCH_INDEX=https://download.pytorch.org/whl/cu126.
# Python 3.10 has no onnxruntime-gpu that is new enough: without it, ONNX Runtime is checked on the CPU alone.
$(GPU_READY): TORCH_INDEX =
$(GPU_READY): pyproject.toml
	$(if $(JETSON)$(GPU_PRODUCTS),,$(error TENSORRT is rtx, tensorrt, "rtx tensorrt" or system, not $(TENSORRT)))
	$(PYTHON) -m venv $(if $(JETSON),--system-site-packages) $(GPU)
	$(GPU_PIP) --upgrade "pip>=25.1"
	$(GPU_PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) "torch==2.13.0"
	$(if $(JETSON),,$(GPU_PIP) --editable ".[export,jetson,gpu]" ||) $(GPU_PIP) --editable ".[export,jetson,cpu]"
	$(GPU_PIP) "cuda-bindings$(addsuffix .*,$(addprefix ==,$(CUDA)))" $(addsuffix $(addprefix -cu,$(CUDA)),$(GPU_PRODUCTS))
	@touch $@

triton-env: $(TRITON_VENV)/.ready
	@echo "start it with $(TRITON_VENV)/bin/tritonserver --model-repository=FOLDER (docs/triton.md)"

# ONNX Runtime as in the tests' own venv: they compare tokens bit for bit.
$(TRITON_VENV)/.ready: $(VENV)/.test $(TRITON_SCRIPT)
	$(PYTHON) -m venv $(TRITON_VENV)
	$(TRITON_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(TRITON_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --group triton-server \
		"onnxruntime==$$($(BIN)/python -c 'import onnxruntime; print(onnxruntime.__version__)')"
	install -m 755 $(TRITON_SCRIPT) $(TRITON_VENV)/bin/tritonserver
	@touch $@

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
	rm -rf $(VENV) $(VENV)-runtime-* $(GPU) $(TRITON_VENV) build dist *.egg-info
