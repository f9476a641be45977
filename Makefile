# `make` needs Python >= 3.11, git and make. Everything else lands in .venv.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
DEMO   ?= demo
AIRFLOW ?= .venv-airflow
CHECKED := svp feature_store pipelines tests benchmarks

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-airflow lint format bench constraints clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("svp needs Python >= 3.11. Got " + sys.version.split()[0] + ". Try: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(VENV)/.ready  ## the main job on scikit-learn's digits, no download (under 4 minutes)
	$(BIN)/svp demo $(DEMO)

test: $(VENV)/.ready  ## the tests (CPU, no network)
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow and not gpu"

test-all: $(VENV)/.ready  ## every test, the slow ones too
	$(BIN)/python -m pytest -n auto --dist worksteal

test-airflow: $(VENV)/.ready  ## the DAG on a real Airflow, in an environment of its own
	$(PYTHON) -m venv $(AIRFLOW)
	$(BIN)/uv pip install --quiet --python $(AIRFLOW)/bin/python --requirements constraints-airflow.txt
	SVP_AIRFLOW_PYTHON=$(abspath $(AIRFLOW))/bin/python $(BIN)/python -m pytest tests/test_pipelines_airflow.py

lint: $(VENV)/.ready  ## ruff, mypy, import contracts
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/ruff format --check $(CHECKED)
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(VENV)/.ready  ## let ruff fix what it can
	$(BIN)/ruff check --fix $(CHECKED)
	$(BIN)/ruff format $(CHECKED)

bench: $(VENV)/.ready  ## quick speed benchmarks; results go to benchmarks/results
	$(BIN)/python -m benchmarks.speed

constraints: $(VENV)/.ready  ## pin the newest versions that the dependencies allow
	@echo '# The versions the tests run with, for Python 3.11 to 3.13. Regenerate: make constraints' > constraints.new
	$(BIN)/uv pip compile pyproject.toml --universal --all-extras --python-version 3.11 --no-annotate --no-header --quiet >> constraints.new
	@mv constraints.new constraints.txt

clean:  ## remove the environment and what the demo wrote
	rm -rf $(VENV) $(DEMO)
