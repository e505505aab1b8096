# Everything sets itself up: `make test`, `make demo` and `make bench` work on a fresh clone.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Two tests at a time, a thread each; tests that share a module's fixtures stay together.
TESTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: help setup system test lint wheel demo bench docs clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(VENV)/.done system  ## create .venv with everything, and the system's rendering library

# PyTorch first and by its exact version: later steps then keep it, where a plain range could fetch CUDA builds.
$(VENV)/.done: pyproject.toml packages/statevla_client/pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade-strategy only-if-needed $$(grep '^torch==' constraints.txt)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e packages/statevla_client \
		-e '.[language,sim,so101,lerobot-data,serve,vla-eval,plots,tensorboard,bench,dev]'
	touch $@

system:
	@bash scripts/system_packages.sh

lint: setup  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint  ## linter, type checker, fast tests and the slow ones chosen for CI
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs,hub,view]'
	$(TESTS)
	$(TESTS) -m "slow and ci"

wheel: system  ## the wheel, installed and used from an empty folder
	PYTHON=$(PYTHON) bash scripts/check_wheel.sh

demo: setup  ## demonstrations -> world model -> policy -> simulation -> report.html
	$(BIN)/statevla demo

bench: setup  ## every benchmark, with ratio tables and benchmarks/results/summary.json
	$(BIN)/python benchmarks/run_all.py

docs: setup  ## the pages as a site in ./site
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	$(BIN)/python -m mkdocs build --strict

clean:  ## remove the environment and build leftovers
	rm -rf $(VENV) build dist src/*.egg-info packages/*/build packages/*/src/*.egg-info .mypy_cache .ruff_cache .pytest_cache
