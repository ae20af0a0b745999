# The two commands a newcomer needs are `make demo` and `make test`. Both make .venv when it is missing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
READY := $(VENV)/.ready

# Allocator and thread settings that make CPU training several times faster; harmless elsewhere.
export MALLOC_MMAP_MAX_ ?= 0
export MALLOC_TRIM_THRESHOLD_ ?= 100000000000
export OMP_WAIT_POLICY ?= PASSIVE
export TOKENIZERS_PARALLELISM ?= true

.PHONY: help demo test test-gpu test-consumers check docs format clean

help:  ## What can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: $(READY)  ## Convert, evaluate, uptrain and report on the embedded checkpoint
	$(BIN)/gqa-run demo

test: export OMP_NUM_THREADS ?= 1
test: $(READY)  ## Run the tests, WORKERS of them at once (2 unless you say otherwise; each may take 7 GB)
	$(BIN)/python -m pytest -n $(WORKERS)

test-gpu: $(READY)  ## Run the tests that need a GPU, one at a time
	$(BIN)/python -m pytest -n 0 -m gpu

test-consumers: $(READY)  ## Let other engines read what gqa-convert writes, and write docs/consumers.md
	PYTHONPATH=tests/support $(BIN)/python -m consumers $(CONSUMERS)

check: $(READY) .links  ## Formatting, lint, types and import direction
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -q tests/test_house.py

docs: $(VENV)/.docs .links  ## Build the manual into site/; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: $(READY)  ## Format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## Remove the environment and everything made by a run
	rm -rf $(VENV) .links .consumers runs build site *.egg-info

# torch goes first and alone: what follows then finds it installed and fetches no other build.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

$(VENV)/.docs: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

# Type checkers do not follow setuptools' package mapping; these links show them the same tree.
.links: pyproject.toml
	mkdir -p .links/gqa
	for package in convert eval recipes uptrain; do ln -sfn ../../$$package .links/gqa/$$package; done
	touch .links
