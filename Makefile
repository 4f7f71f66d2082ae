# Verbs shared by people and CI. Everything runs in .venv; nothing needs to be activated.
PYTHON ?= python3
BIN := .venv/bin
# Two processes even where there are more cores: each may have two Rays. A file's tests stay in one process and in order.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help setup check lint test smoke demo bench lock clean

help:  ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 10

setup: .venv/ready  ## create .venv from requirements.lock (about 6 GB with CUDA)

# pip compiles byte code as it installs. That matters: Ray starts some ten processes per trial.
.venv/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 14) else "Python 3.11 to 3.13 is needed: make setup PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

lint: setup  ## ruff, mypy and import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint  ## what must pass before a commit, besides make test

test: setup  ## all tests
	$(BIN)/python -m pytest $(PARALLEL)

smoke: setup  ## unit tests alone, in some minutes
	$(BIN)/python -m pytest $(PARALLEL) tests/unit

demo: setup  ## the main job once: synthetic bucket -> search -> test score -> served counts, in runs/demo
	$(BIN)/python demo.py

bench: setup  ## all benchmarks, briefly
	for script in $(filter-out benchmarks/load.py,$(wildcard benchmarks/*.py)); do $(BIN)/python $$script --quick || exit 1; done

lock:  ## compile requirements.lock anew from pyproject.toml; needs make setup
	sed '/^$$/q' requirements.lock > .venv/new.lock
	$(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --quiet \
		--group dev pyproject.toml >> .venv/new.lock
	mv .venv/new.lock requirements.lock

clean:  ## remove .venv and caches; runs/ stays
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache
