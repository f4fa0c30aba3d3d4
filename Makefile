# Two commands do everything: make demo, make test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-all lint types wheel-test constraints clean

demo: $(INSTALLED)
	$(BIN)/edgekit demo

test: $(INSTALLED)
	$(BIN)/pytest -n 2 -m "not slow"

test-all: $(INSTALLED)
	$(BIN)/pytest -n 2

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/basedpyright --level error

wheel-test: $(INSTALLED)
	tests/wheel-test.sh $(BIN)/python

# uv installs torch's CUDA libraries in under a minute; pip brings it.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade uv
	$(BIN)/uv pip install --python $(BIN)/python --constraints constraints.txt --editable '.[dev]'
	touch $@

constraints:
	$(BIN)/uv pip compile --universal --python-version 3.10 --extra dev --no-emit-index-url --no-annotate --no-header \
	    --constraints constraints.in pyproject.toml --output-file constraints.txt --upgrade

clean:
	rm -rf $(VENV) build dist *.egg-info
