# make demo | test | test-unit | test-slow | test-matrix | lint | types | docs | audit | clean
# Another Python: make test PYTHON=python3.12 VENV=.venv-3.12

PYTHON ?= python3
VENV ?= .venv
# One more than CI has cores: many tests wait for other processes.
WORKERS ?= 3
# What test-matrix tries: names of interpreters on PATH; the oldest versions of everything go with one of them.
PYTHONS ?= python3.10 python3.12 python3.13
LOWEST ?= python3.10

BIN := $(abspath $(VENV))/bin
# The pins of the newest versions tried hold for Python 3.11 and later; make CONSTRAINTS= installs what pip finds.
CONSTRAINTS ?= $(shell $(PYTHON) -c 'import sys; print("constraints/newest.txt" if sys.version_info >= (3, 11) else "")')
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
INSTALL := $(PIP) install --no-compile $(addprefix --constraint ,$(CONSTRAINTS))
SOURCES := setup.cfg pyproject.toml README.md $(shell find recbole_onebp properties -type f -not -name "*.pyc")
# pytest, unlike python -m pytest, does not put this folder on the path: the tests use the installed wheel.
PYTEST := cd tests && $(BIN)/pytest
PARALLEL := -n $(WORKERS) --dist loadscope --no-loadscope-reorder

.PHONY: demo test test-unit test-quick test-slow test-matrix lint types docs audit clean

demo: $(VENV)/installed
	$(BIN)/python examples/demo.py

test: $(VENV)/installed-test
	$(PYTEST) $(PARALLEL) $(ARGS)

test-unit: $(VENV)/installed-test
	$(PYTEST) -m "unit and not slow" $(ARGS)

# The unit tests, and one run from the command line.
test-quick: test-unit
	$(BIN)/recbole-onebp train --model=OneBP --dataset=ml-100k --epochs=1 --show_progress=False \
		--output_dir=$(VENV)/quick-run > $(VENV)/quick-run.log
	$(BIN)/python -c 'import json, sys; assert json.load(open(sys.argv[1]))["epochs_run"] == 1' $(VENV)/quick-run/result.json

test-slow: $(VENV)/installed-test
	$(PYTEST) $(PARALLEL) -m slow $(ARGS)

test-matrix:
	set -e; for python in $(PYTHONS); do \
		echo "== $$python"; $(MAKE) test-quick PYTHON=$$python VENV=.venv-$${python#python}; \
	done
	@echo "== $(LOWEST), lowest versions"
	$(MAKE) test-quick PYTHON=$(LOWEST) VENV=.venv-lowest CONSTRAINTS=constraints/lowest.txt

lint: $(VENV)/installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Whether users' type checkers know all types of the public API, by pyright.
types: $(VENV)/installed-types
	PATH="$(BIN):$$PATH" $(BIN)/python docs/make/api_types.py

# The site, in build/site. Any warning, such as a broken link, is an error. PATH: the tutorials run the commands.
docs: $(VENV)/installed-docs
	PATH="$(BIN):$$PATH" $(BIN)/mkdocs build
	rm -f dist/*.tar.gz
	$(BIN)/python -m build --sdist --no-isolation --outdir dist . > $(VENV)/sdist.log
	$(BIN)/twine check --strict dist/*.whl dist/*.tar.gz
	$(BIN)/check-wheel-contents dist/*.whl

# Known holes of the packages in the environment, from the Python advisory database. CI does not run it: what it says
# changes without a change of ours. This package itself is not on PyPI, so it is skipped. Look at the list of what else was
# skipped: where the index has no advisories, that is everything, and pip-audit still finds no hole.
audit: $(VENV)/installed-audit
	$(BIN)/pip-audit --local --skip-editable --progress-spinner=off $(ARGS)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

dist/wheel: $(SOURCES) | $(VENV)/bin/python
	rm -rf build dist
	$(PIP) wheel --no-deps --wheel-dir dist .
	touch $@

# pip does not replace a version by the same version, unless it is told to. Only this rule replaces the package: what runs
# beside it, such as make -j docs lint, keeps what it imports. RecBole wants ray <= 2.6.3, which pip cannot resolve from
# Python 3.12 on: RecBole comes alone. pip would compile the modules in one process, so it leaves that to compileall,
# which passes over those of other Pythons.
$(VENV)/installed: $(VENV)/bin/python dist/wheel
	$(INSTALL) dist/*.whl
	$(INSTALL) --no-deps --force-reinstall dist/*.whl
	$(BIN)/python -c 'import recbole' 2> /dev/null || $(INSTALL) --no-deps recbole==1.2.1
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	touch $@

# What an extra adds.
$(VENV)/installed-%: $(VENV)/installed
	$(INSTALL) "$$(echo dist/*.whl)[$*]"
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	touch $@

clean:
	rm -rf .venv .venv-* $(VENV) build dist *.egg-info
