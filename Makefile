# make reproduce   set up, run the laptop grid, execute the notebooks, print the table and the figures' paths
# make test        set up, lint, type-check, run the quick tests      (make test-slow: the minutes-long ones)
# make lock        resolve requirements.lock anew from pyproject.toml (needs uv)
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RESULTS ?= results/local

.PHONY: setup reproduce notebooks test test-slow lint release lock clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# make/make/p' Makefile

setup: $(STAMP)

# Bytecode is left to the first import: compiling every installed module takes longer than the study's first run.
$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

reproduce: $(STAMP)
	$(BIN)/python slurm/launch_grid.py --results $(RESULTS)
	$(BIN)/python -m analysis.execute --results $(RESULTS)

test: lint
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What is committed under results/: our own records, and the notebooks executed on them.
release: $(STAMP)
	$(BIN)/python slurm/launch_grid.py --results results
	$(BIN)/python -m analysis.execute --results results --in-place

lock:
	uv pip compile --quiet --universal --python-version 3.10 --generate-hashes --no-header --no-emit-index-url \
	  --extra dev pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV) results/local
