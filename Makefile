PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: demo test slow lint bench cards
demo: $(INSTALLED)
	$(BIN)/python cli.py demo

test: $(INSTALLED)
	$(BIN)/python -m pytest

slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(INSTALLED)
	$(BIN)/python benchmarks/recurrent.py
	$(BIN)/python benchmarks/update.py
	$(BIN)/python benchmarks/sequential_mnist.py
	$(BIN)/python benchmarks/everyday.py
	$(BIN)/python benchmarks/scoring.py
	$(BIN)/python benchmarks/tokenizing.py

cards: $(INSTALLED)
	$(BIN)/python -m zoo.card

# torch first and alone: beside other packages pip may take another build of it.
$(INSTALLED): export PIP_CONSTRAINT = constraints.txt
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@
