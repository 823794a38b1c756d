# `make help` lists the targets. Everything runs in .venv, which the first target that needs it makes.
.DEFAULT_GOAL := help
.PHONY: help install test test-slow test-lmms support demo docs style quality compat zoo clean

PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
# uv makes the environment in seconds where pip takes minutes; without one on the PATH, the environment gets its own.
UV := $(shell uv --version >/dev/null 2>&1 && echo uv || echo $(VENV)/bin/uv)
# Passed on to pytest, for example `make test PYTEST_ARGS="tests/test_modeling.py -x"`.
PYTEST_ARGS ?= tests

# The torch wheels are large: uv's own 30 seconds are short for them on a slow line.
export UV_HTTP_TIMEOUT ?= 600

# One thread a worker: several workers with a full set of threads each take longer than one.
PYTEST := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(VENV)/bin/python -m pytest
WORKERS := -n auto --maxprocesses 8

help: ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(READY) ## make .venv with everything a developer needs

$(VENV)/bin/python:
	rm -rf $(VENV)
ifeq ($(UV),uv)
	uv venv --python $(PYTHON) $(VENV)
else
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet uv
endif

# Made again only when the requirements may have changed.
$(READY): setup.py | $(VENV)/bin/python
	$(UV) pip install --python $(VENV)/bin/python -e ".[dev]"
	@touch $@

test: $(READY) ## run the tests (not the slow ones)
	$(PYTEST) $(WORKERS) -m "not slow" $(PYTEST_ARGS)

test-slow: $(READY) ## run the slow tests
	$(UV) pip install --python $(VENV)/bin/python -e ".[dev,extended]"
	$(PYTEST) -m slow $(PYTEST_ARGS)
	$(PYTEST) tests/test_surrogate_forms.py -k "Int8 or quantised"

test-lmms: $(READY) ## run the plug-in's tests against lmms-eval, in an environment of its own
	$(UV) venv --clear --python $(VENV)/bin/python .venv-lmms
	$(UV) pip install --python .venv-lmms/bin/python -e ".[lmms-eval]" pytest
	$(subst $(VENV)/,.venv-lmms/,$(PYTEST)) tests/test_lmms_eval.py

support: $(READY) ## ask every model type of transformers what works, and write the tables
	$(PYTEST) $(WORKERS) -m "slow or not slow" tests/conformance --write_support transferable_vp/supported_models.json
	$(VENV)/bin/python docs/make_supported_models.py

demo: $(READY) ## learn a prompt on one tiny model and show what it does for the others
	$(VENV)/bin/transferable-vp demo

docs: $(READY) ## build the site into build/site, then run the notebooks into build/notebooks
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m sphinx -q -W --keep-going -n -b html -d build/doctrees docs build/site
	mkdir -p build/notebooks
	OMP_NUM_THREADS=1 $(VENV)/bin/jupyter execute docs/notebooks/*.ipynb --output ../../build/notebooks/{notebook_name}

style: $(READY) ## format the code and fix what can be fixed
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

quality: $(READY) ## check style and types, change nothing
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

compat: VENV_COMPAT := .venv-compat
compat: $(READY) ## run the tests with the oldest versions setup.py allows
	rm -rf $(VENV_COMPAT)
	$(UV) venv --python $(VENV)/bin/python $(VENV_COMPAT)
	$(UV) pip install --python $(VENV_COMPAT)/bin/python -e ".[compat]"
	$(subst $(VENV)/,$(VENV_COMPAT)/,$(PYTEST)) $(WORKERS) -m "not slow" $(PYTEST_ARGS)

zoo: $(READY) ## train the tiny models of zoo/ again and write their weights
	$(VENV)/bin/python zoo/train.py

clean: ## remove environments, caches and builds (not runs/)
	rm -rf .venv .venv-compat .venv-lmms .cache .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
