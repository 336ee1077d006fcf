# Everything a fresh machine with Python 3.11 needs is installed into .venv by the targets themselves.

PYTHON ?= python3
BIN := .venv/bin
TOOLS := .venv/tools/bin

.PHONY: run test test-everywhere fuzz faults soak lint types wheel bench gpu science clean

run: .venv/installed-run
	$(BIN)/splitlab run --plugin adc

test: .venv/installed-test
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not long"

# The suite on what other machines compute and install: see the first lines of the script.
test-everywhere: .venv/installed-test
	tests/everywhere.sh $(BIN)/python

# Frames that no peer sends, for SECONDS; by what they reach, where atheris is installed
# (pip install --group fuzz).
fuzz: .venv/installed-test
	$(BIN)/python -P tests/fuzz.py $(or $(SECONDS),60)

# What becomes of a run to whose connection something happens, in every state; writes docs/faults.md.
faults: .venv/installed-test
	$(BIN)/python -P tests/faults.py --page docs/faults.md

# Thousands of steps while the connection fails again and again: STEPS or SECONDS.
soak: .venv/installed-test
	$(BIN)/python -P tests/soak.py $(if $(STEPS),--steps $(STEPS)) $(if $(SECONDS),--seconds $(SECONDS))

lint: .venv/installed-tools build/types/splitlab
	$(TOOLS)/ruff check .
	$(TOOLS)/ruff format --check .
	PYTHONPATH=build/types $(TOOLS)/lint-imports --no-cache

types: .venv/installed-test .venv/installed-tools build/types/splitlab
	$(TOOLS)/mypy --python-executable $(BIN)/python

# The wheel, installed into an empty environment elsewhere, must do what the checkout does.
wheel: .venv/installed-tools
	tests/check_wheel.sh $(TOOLS)/python

bench: .venv/installed-test
	$(BIN)/python -m pytest benchmarks -o addopts= --benchmark-only -s -q

# On a machine with a GPU: its checks and figures, in docs/gpu.md or $OUTPUT. Installs nothing.
gpu:
	benchmarks/gpu.sh

# A slice of the paper's studies on one GPU: DATA=FOLDER WEIGHTS=FILE make science, and again with
# FROM=OUT.tar on another machine; MINUTES, STUDIES and SEEDS as the script's options say.
science:
	benchmarks/science.sh $(if $(FROM),--from $(FROM)) $(if $(MINUTES),--minutes $(MINUTES)) \
	    $(if $(STUDIES),--studies $(STUDIES)) $(if $(SEEDS),--seeds $(SEEDS))

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip setuptools

.venv/installed-run: pyproject.toml | .venv/bin/python
	$(BIN)/pip install --editable .
	touch $@

.venv/installed-test: pyproject.toml | .venv/bin/python
	$(BIN)/pip install --editable '.[test]'
	touch $@ .venv/installed-run

# In an environment of their own: they can be installed while the tests run, which must not need them.
.venv/installed-tools: pyproject.toml | .venv/bin/python
	$(PYTHON) -m venv .venv/tools
	$(TOOLS)/pip install --quiet --upgrade pip
	$(TOOLS)/pip install --group tools
	touch $@

# Where an editable install shows mypy and import-linter nothing.
build/types/splitlab:
	mkdir -p build/types
	ln -sfn ../.. $@
