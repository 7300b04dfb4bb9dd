# Set-up and checks. Each command makes .venv and installs what it needs first; a second call installs nothing.
#
#   make demo    the three ways to answer, side by side, on the shipped model
#   make test    the default tests (CPU, offline)
#   make road    a model of your own from a published layout to a TensorRT engine, and every command of docs/own-data.md
#   make check   lint, format, types and the documentation site
#   make docs    the documentation site, in build/site
#   make tables  the tables of README.md and docs/, from the reports in profiles/reports
#   make fuzz    50,000 seeded inputs of every kind, in about half an hour of one core; CASES, SEED and WORKERS change it
#
# PYTHON picks the interpreter of a new .venv; PIP_FLAGS goes to pip, for example
#   make test PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
PIP_FLAGS ?=
BIN := .venv/bin
RUN_STAMP := .venv/.lrkit-run
DEV_STAMP := .venv/.lrkit-dev
# Warnings are errors. The variable silences a notice about a successor of mkdocs.
SITE := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

CASES ?= 50000
SEED ?= 0
WORKERS ?= 2

.PHONY: demo test road check docs tables fuzz clean

demo: $(RUN_STAMP)
	$(BIN)/lrkit demo

# A worker per core, each with one thread: threads that wait for one another cost more than they bring.
test: $(DEV_STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

road: $(DEV_STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow tests/e2e/test_own_model.py tests/e2e/test_pages.py

check: $(DEV_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/pyright
	$(SITE)

docs: $(DEV_STAMP)
	$(SITE)

tables: $(DEV_STAMP)
	$(BIN)/python -m benchmarks.tables

fuzz: $(DEV_STAMP)
	$(BIN)/python -m tests.fuzz.run --cases $(CASES) --seed $(SEED) --workers $(WORKERS)

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("lrkit needs Python 3.11 or newer: make PYTHON=...")'
	$(PYTHON) -m venv .venv

$(RUN_STAMP): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) -e '.[export,report]'
	@touch $@

$(DEV_STAMP): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) -e '.[train,export,report,dev]'
	@touch $(RUN_STAMP) $@

clean:
	rm -rf build dist .pytest_cache .ruff_cache
