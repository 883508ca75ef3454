# Two commands are enough on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export OMP_NUM_THREADS ?= 1

.PHONY: demo fuzz test test-slow test-bounds test-lanes test-plain test-big-endian test-installed lint bench format clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[convert,report,dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/python examples/demo.py

test: lint $(STAMP)
	$(BIN)/python -m pytest -q -n 2
	$(MAKE) --no-print-directory test-installed

# Build the sdist, the wheel from it, and test the wheel from outside the tree.
test-installed: $(STAMP)
	$(BIN)/python tests/installed_wheel.py

# Numba's own check of every array index, in the kernels that take arrays; those on addresses have guard pages.
test-bounds: $(STAMP)
	NUMBA_BOUNDSCHECK=1 NUMBA_CACHE_DIR=$(CURDIR)/$(VENV)/bounds $(BIN)/python -m pytest -q \
		tests/unit/nqconvert/quantizers

# The safety tests without compilation, and with Numba's checks on.
test-lanes: $(STAMP)
	NUMBA_DISABLE_JIT=1 $(BIN)/python -m pytest -q tests/safety tests/unit/nqformat tests/unit/project/test_vectors.py
	NUMBA_BOUNDSCHECK=1 NUMBA_CACHE_DIR=$(CURDIR)/$(VENV)/bounds NQFORMAT_CACHE_DIR=$(CURDIR)/$(VENV)/bounds-objects \
		$(BIN)/python -m pytest -q tests/safety tests/unit/nqformat tests/unit/project/test_vectors.py

# The kernels of the runtime as any processor runs them, without vector instructions of its own.
test-plain: $(STAMP)
	NUMBA_CPU_NAME=generic NUMBA_CPU_FEATURES= NQFORMAT_CACHE_DIR=$(CURDIR)/$(VENV)/plain-objects \
		$(BIN)/python -m pytest -q tests/unit/nqruntime/test_segments.py tests/unit/nqruntime/test_row_products.py \
		tests/unit/nqruntime/test_plane_convolution.py tests/unit/nqruntime/test_plane_steps.py \
		tests/unit/nqruntime/test_int8.py tests/safety/test_guarded_memory.py

# The same files written and read on an emulated s390x; needs Debian with qemu-user-static.
test-big-endian: $(STAMP)
	$(BIN)/python tests/emulated/run.py

test-slow: $(STAMP)
	$(BIN)/python -m pytest -q -m slow

# A million mutants with repaired checksums and a million of random bytes; stop and go on as you like.
fuzz: $(STAMP)
	$(BIN)/python -m fuzz.run

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/python benchmarks/whole_path.py
	$(BIN)/python benchmarks/compression.py
	$(BIN)/python benchmarks/codec.py
	$(BIN)/python benchmarks/reading.py
	$(BIN)/python benchmarks/huge.py
	$(BIN)/python benchmarks/quantizers.py
	$(BIN)/python benchmarks/posttraining.py
	$(BIN)/python benchmarks/onnx_models.py
	$(BIN)/python benchmarks/onnx_consumers.py
	$(BIN)/python benchmarks/inference.py
	$(BIN)/python benchmarks/readme_figures.py

clean:
	rm -rf $(VENV) build dist *.egg-info
