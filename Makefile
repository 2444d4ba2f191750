# make setup | demo | studio | test | fuzz | chaos | lint | format | docs | benchmark | train | lock | clean
# Everything runs in .venv, which `setup` makes and renews only when its inputs change.

PYTHON ?= python3
VENV   := .venv
# Most of a test is waiting for a process: one more of them than cores.
PROCESSES ?= 3
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: setup demo studio test fuzz chaos lint format docs benchmark train lock clean
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

test: setup
	rm -f .coverage .coverage.*
	OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest --numprocesses $(PROCESSES) --dist loadscope --no-loadscope-reorder $(ARGS)
	@$(BIN)/coverage combine --quiet && $(BIN)/coverage report

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

train: setup
	$(BIN)/python -m training

lock: setup
	$(BIN)/pip freeze --all --exclude setuptools --exclude-editable | sed 's/+cpu$$//; s/+cu[0-9]*$$//' > constraints.txt

clean:
	rm -rf $(VENV) demo-output .coverage .coverage.* .hypothesis
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
