# Everything runs in .venv, made from the exact versions in constraints.txt. Each target makes it
# first where it is missing, and again when pyproject.toml or constraints.txt changed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PACKAGES := rollout alignment rl distill launch
TEST_PROCESSES ?= 2

# One thread per process: test processes and runs go side by side, and the thread count decides bits.
export OMP_NUM_THREADS ?= 1

# An x86 processor without AVX, for torch, OpenBLAS, MKL and numpy: sums in another order, no fused
# multiply-add, other sines.
OLD_PROCESSOR := ATEN_CPU_CAPABILITY=default OPENBLAS_CORETYPE=Nehalem MKL_CBWR=COMPATIBLE NPY_DISABLE_CPU_FEATURES=X86_V3

.PHONY: setup quickstart test test-emulated check format bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Reprise needs Python 3.11 or later; try: make PYTHON=python3.11 $(MAKECMDGOALS)")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	touch $@

quickstart: $(STAMP)
	$(BIN)/python -m reprise.launch.quickstart

test: $(STAMP)
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist worksteal

test-emulated: $(STAMP)
	$(OLD_PROCESSOR) $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist worksteal -m portable

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p build/types/reprise && ln -sfn $(CURDIR)/reprise/__init__.py build/types/reprise/__init__.py && \
		for folder in $(PACKAGES); do ln -sfn $(CURDIR)/$$folder build/types/reprise/$$folder; done
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	set -e; for file in benchmarks/*.py; do $(BIN)/python $$file; done

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build *.egg-info
