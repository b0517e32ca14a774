# make demo | test | test-slow | lint | clean        another Python: make test PYTHON=python3.12

PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
# Pins on the newest versions tried, torch's CPU build among them; make CONSTRAINTS= takes what pip finds.
CONSTRAINTS ?= $(shell $(PYTHON) -c 'import sys; print("constraints/newest.txt" if sys.version_info[:2] == (3, 11) else "")')
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet $(addprefix --constraint ,$(CONSTRAINTS))
SOURCES := setup.cfg pyproject.toml README.md $(shell find recbole_onebp properties -type f -not -name "*.pyc")

.PHONY: demo test test-slow lint clean

demo: $(VENV)/installed
	$(BIN)/python examples/demo.py

# The tests run against the installed wheel: pytest, unlike python -m pytest, does not put this folder on the path.
test: $(VENV)/installed-test
	cd tests && $(BIN)/pytest $(ARGS)

test-slow: $(VENV)/installed-test
	cd tests && $(BIN)/pytest -m slow $(ARGS)

lint: $(VENV)/installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# The wheel, and RecBole, which pip can resolve by name only before Python 3.12 (it wants ray <= 2.6.3).
$(VENV)/installed: $(VENV)/bin/python $(SOURCES)
	rm -rf build dist
	$(PIP) build
	$(BIN)/python -m build --wheel --outdir dist . > /dev/null
	$(PIP) --force-reinstall --no-deps dist/*.whl
	$(PIP) dist/*.whl
	$(BIN)/python -c 'import recbole' 2> /dev/null || $(PIP) --no-deps recbole==1.2.1
	touch $@

$(VENV)/installed-%: $(VENV)/installed
	$(PIP) "$$(ls dist/*.whl)[$*]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
