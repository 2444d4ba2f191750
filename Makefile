# make setup | demo | studio | test | test-all | nightly | newest | fuzz | chaos | lint | format
#      docs | benchmark | cuda-dry-run | gpu-check-wheels | gpu-check | train | train-pixels
#      lock | clean
# Everything runs in .venv, which `setup` makes and renews only when its inputs change; but
# `cuda-dry-run` has an environment of its own, and `gpu-check` also runs without one and without a
# network: benchmarks/README.md.

PYTHON ?= python3
VENV   := .venv
# Most of a test is waiting for a process: one more of them than cores.
PROCESSES ?= 3
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# Write bytecode even if the environment forbids it: otherwise each test process compiles again.
export PYTHONDONTWRITEBYTECODE =
# Several test processes share the cores: none gets a pool of threads.
PYTEST  = OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL)
PARALLEL = --numprocesses $(PROCESSES) --dist worksteal
# A second environment, with the newest releases that pyproject.toml allows.
NEWEST := .venv-newest
# A third, with a CUDA build of torch; `cuda-dry-run` alone makes it.
CUDA := .venv-cuda

.PHONY: setup demo studio test test-all nightly newest fuzz chaos lint format docs benchmark
.PHONY: cuda-dry-run gpu-check gpu-check-wheels train train-pixels lock clean
.DEFAULT_GOAL := setup

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 to 3.13 is needed, this is " + sys.version.split()[0] if not (3, 11) <= sys.version_info[:2] < (3, 14) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt pip
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt "torch==$$(sed -n 's/^torch==//p' constraints.txt)"
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[worker,demo]' --group dev
	touch $@

demo: setup
	@$(BIN)/sag-worker demo $(if $(PROMPT),--prompt "$(PROMPT)") --out demo-output

studio: setup
	@$(BIN)/python -m examples.studio $(ARGS)

# The fast form of every guarantee, in minutes.
test: setup
	TIERS_ALLOWANCE=2 $(PYTEST) -m "not slow and not nightly" $(ARGS)

# Every test but the nightly ones; CI runs this. Coverage is that of the fast tests, in all their
# processes: tracing takes as much time again.
test-all: setup
	rm -f .coverage .coverage.*
	TIERS_ALLOWANCE=3 OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest $(PARALLEL) -m "not slow and not nightly" --durations=10 $(ARGS)
	@$(BIN)/coverage combine --quiet && $(BIN)/coverage report
	TIERS_ALLOWANCE=3 $(PYTEST) -m "slow and not nightly" --durations=10 $(ARGS)

# The full products, with every command executed instead of forked, and the newest dependencies.
nightly: setup
	TESTS_EXEC=1 $(PYTEST) --durations=10 $(ARGS)
	$(BIN)/python -m tests.chaos --tasks 2000 --seed 7 --every 2 --workers 4
	$(BIN)/python -m tests.fuzz --messages 1000000
	$(MAKE) newest

newest: setup
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/pip install --quiet --disable-pip-version-check --upgrade pip
	$(NEWEST)/bin/pip install --quiet --disable-pip-version-check --upgrade --upgrade-strategy eager --editable '.[worker,demo]' --group dev
	$(NEWEST)/bin/pip freeze --exclude-editable
	OMP_NUM_THREADS=1 $(NEWEST)/bin/python -m pytest $(PARALLEL) -m "not nightly" --durations=10 $(ARGS)

chaos: setup
	$(BIN)/python -m tests.chaos $(ARGS)

fuzz: setup
	$(BIN)/python -m tests.fuzz $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup
	$(BIN)/python -m worker.config.settings_table
	$(BIN)/python -m api_contracts.schemas.json_schemas

benchmark: setup
	@for each in throughput latency daemon baseline memory flops; do $(BIN)/python -m benchmarks $$each || exit 1; done
	@$(BIN)/python -m benchmarks report

# The engine on a simulated CUDA device: 5.5 GB to install, and no part of the tests.
cuda-dry-run: $(CUDA)/.installed
	$(CUDA)/bin/python -m benchmarks.cuda_dry_run $(ARGS)

# PyPI's wheel of this release for Linux is a CUDA build. Not the release of constraints.txt: the
# counts in docs/engine.md are of this one, and nothing else depends on it.
$(CUDA)/.installed: pyproject.toml
	$(PYTHON) -m venv $(CUDA)
	$(CUDA)/bin/pip install --quiet --disable-pip-version-check torch==2.14.1
	$(CUDA)/bin/pip install --quiet --disable-pip-version-check --editable '.[worker]'
	touch $@

# What a machine with a GPU and no network lacks beside torch, under 60 MB, into gpu-check-wheels.
gpu-check-wheels: setup
	$(BIN)/python -m benchmarks.gpu_check.wheels

# Every number that only a GPU can tell, in under eight minutes. ARGS=--rehearse runs it on a CPU.
gpu-check:
	@$(PYTHON) -m benchmarks.gpu_check.start $(ARGS)

train: setup
	$(BIN)/python -m training

train-pixels: setup
	$(BIN)/python -m training.pixels

lock: setup
	$(BIN)/pip freeze --all --exclude setuptools --exclude-editable | sed 's/+cpu$$//; s/+cu[0-9]*$$//' > constraints.txt

clean:
	rm -rf $(VENV) $(NEWEST) $(CUDA) demo-output gpu-check-output gpu-check-wheels
	rm -rf .coverage .coverage.* .hypothesis
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
