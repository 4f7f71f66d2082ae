# Verbs shared by people and CI. Everything runs in .venv; nothing needs to be activated.
PYTHON ?= python3
BIN := .venv/bin
# Two processes even where there are more cores: each may have two Rays. A file's tests stay in one process and in order.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder --durations=30
# On AWS: cluster.yaml, or it with what VARIANT=cpu or VARIANT=one-gpu changes.
CLUSTER := $(if $(VARIANT),runs/cluster-$(VARIANT).yaml,cluster.yaml)
CONFIG := serve/config.yaml

.DEFAULT_GOAL := help
.PHONY: help setup check lint test test-faults smoke demo bench up submit serve-up down kuberay lock clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 13

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

test: setup  ## all tests but those of test-faults
	$(BIN)/python -m pytest $(PARALLEL) -m "not faults"

test-faults: setup  ## kills, outages, lost nodes: CONTRIBUTING.md says when
	$(BIN)/python -m pytest $(PARALLEL) -m faults

smoke: setup  ## unit tests alone
	$(BIN)/python -m pytest $(PARALLEL) tests/unit

demo: setup  ## the main job once: synthetic bucket -> search -> test score -> served counts, in runs/demo
	$(BIN)/python demo.py

bench: setup  ## all benchmarks of speed, briefly
	for script in $(filter-out benchmarks/load.py benchmarks/chaos.py,$(wildcard benchmarks/*.py)); do $(BIN)/python $$script --quick || exit 1; done

runs/cluster-%.yaml: setup
	$(BIN)/python cluster/render.py --variant $* --out $@

# Ray asks before it starts or ends anything; ARGS=--yes answers. A head without a token file would run without one.
up: setup $(CLUSTER)  ## start a cluster on AWS, or bring it up to date: [VARIANT=cpu] [ARGS="--no-restart"]
	@[ -s ~/.ray/auth_token ] || $(BIN)/ray get-auth-token --generate > /dev/null
	@chmod 600 ~/.ray/auth_token
	RAY_AUTH_MODE=token $(BIN)/ray up $(CLUSTER) $(ARGS)

submit: setup $(CLUSTER)  ## run a command there as a Ray job: ARGS="tune/search.py --use-gpu" [VARIANT=cpu]
	@$(if $(ARGS),,$(error name the command: make submit ARGS="tune/search.py --use-gpu"))
	$(BIN)/python cluster/tunnel.py $(CLUSTER) ray job submit --working-dir . -- python $(ARGS)

serve-up: setup $(CLUSTER)  ## deploy a Serve config there: [CONFIG=serve/config.yaml] [VARIANT=cpu]
	$(BIN)/python cluster/tunnel.py $(CLUSTER) serve deploy $(CONFIG)
	@echo 'next: $(BIN)/ray attach $(CLUSTER) --port-forward 8000, and open http://127.0.0.1:8000/'

down: setup $(CLUSTER)  ## end the cluster and all its instances: [VARIANT=cpu]
	$(BIN)/ray down $(CLUSTER) $(ARGS)

kuberay: setup  ## write the KubeRay manifests anew: [ARGS="--image ..."]
	$(BIN)/python cluster/manifests.py $(ARGS)

lock:  ## compile requirements.lock anew from pyproject.toml; needs make setup
	sed '/^$$/q' requirements.lock > .venv/new.lock
	$(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --quiet \
		--group dev pyproject.toml >> .venv/new.lock
	mv .venv/new.lock requirements.lock

clean:  ## remove .venv and caches; runs/ stays
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache
