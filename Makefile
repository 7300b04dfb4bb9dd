# Set-up and checks. Each command makes .venv and installs what it needs first; a second call installs nothing.
#
#   make demo    the three ways to answer, side by side, on the shipped model
#   make test    the default tests (CPU, offline)
#   make road    a model of your own from a published layout to a TensorRT engine, and every command of docs/own-data.md
#   make long    tests that five minutes have no room for: each family in some ways to export, kills at chosen moments
#   make every   these, the road, and every family in every way
#   make check   lint, format, types and the documentation site
#   make docs    the documentation site, in build/site
#   make page    the page with the embedded model inside, in build/page, and in the site where that is built
#   make tables  the tables of README.md and docs/, from the reports in profiles/reports
#   make fuzz    50,000 seeded inputs of every kind, in about half an hour of one core; CASES, SEED and WORKERS change it
#
#   make coverage     the default tests, and which lines of lrkit/ they ran: build/coverage, and a table
#   make constraints  constraints.txt, out of what is in .venv
#
# PYTHON picks the interpreter of a new .venv; PIP_FLAGS goes to pip, for example
#   make test PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"
# constraints.txt has the versions that the default tests ran with; `make test CONSTRAINTS=` takes the newest ones.

PYTHON ?= python3
PIP_FLAGS ?=
CONSTRAINTS ?= constraints.txt
CONSTRAINED := $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))
BIN := .venv/bin
RUN_STAMP := .venv/.lrkit-run
DEV_STAMP := .venv/.lrkit-dev
# Warnings are errors. The variable silences a notice about a successor of mkdocs.
SITE := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

CASES ?= 50000
SEED ?= 0
WORKERS ?= 2

.PHONY: demo test road long every check docs page tables fuzz coverage constraints clean

demo: $(RUN_STAMP)
	$(BIN)/lrkit demo

# A worker per core, each with one thread: threads that wait for one another cost more than they bring.
test: $(DEV_STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

road: $(DEV_STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow tests/e2e/test_own_model.py tests/e2e/test_pages.py

long: $(DEV_STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m "long and not slow"

every: $(DEV_STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m "long or slow"

check: $(DEV_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/pyright
	$(SITE)

docs: $(DEV_STAMP)
	$(SITE)

# Takes Node.js and npm. Within the site it is at /page.
page: $(DEV_STAMP)
	$(BIN)/lrkit export tiny --int4 --force -o build/tiny-int4
	cd examples/browser && npm install --no-audit --no-fund && node build.mjs ../../build/tiny-int4 ../../build/page
	if [ -d build/site ]; then rm -rf build/site/page && cp -r build/page build/site/page; fi

tables: $(DEV_STAMP)
	$(BIN)/python -m benchmarks.tables

# What only runs in processes that tests begin (command lines, builders, killed trainings) is not counted.
coverage: $(DEV_STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile \
		--cov=lrkit --cov-report=term:skip-covered --cov-report=html:build/coverage --cov-report=json:build/coverage.json

constraints: $(DEV_STAMP)
	{ sed -n '/^#/p' constraints.txt; $(BIN)/python -m pip freeze --exclude-editable | sed 's/+.*//' | sort -f; } > build/constraints.txt
	mv build/constraints.txt constraints.txt

fuzz: $(DEV_STAMP)
	$(BIN)/python -m tests.fuzz.run --cases $(CASES) --seed $(SEED) --workers $(WORKERS)

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("lrkit needs Python 3.11 or newer: make PYTHON=...")'
	$(PYTHON) -m venv .venv

$(RUN_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) -e '.[export]' $(CONSTRAINED)
	@touch $@

$(DEV_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) -e '.[export,dev]' $(CONSTRAINED)
	@touch $(RUN_STAMP) $@

clean:
	rm -rf build dist .pytest_cache .ruff_cache
