# Two commands do everything: make demo, make test.
PYTHON ?= python3
# Interpreters that `make lowest` tries the lowest versions of all dependencies on; those that are not here are passed over.
PYTHONS ?= 3.10 3.13
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DOCS := $(VENV)/.docs

# ONNX Runtime Web, which a browser runs models with; its files are checked by hash wherever they are used.
ORT_WEB := onnxruntime-web@1.30.0
ORT_WEB_FILES := ort.wasm.min.mjs ort-wasm-simd-threaded.mjs ort-wasm-simd-threaded.wasm \
    ort.webgpu.min.mjs ort-wasm-simd-threaded.asyncify.mjs ort-wasm-simd-threaded.asyncify.wasm
ORT_WEB_DIR := deploy/devices/browser/ort-web

# What some tests need beside Python: a browser, an ssh server for the virtual board, Android's bridge.
SYSTEM := chromium openssh-server openssh-sftp-server rsync adb

.PHONY: demo test test-slow test-all system docs lint types fuzz wheel-test lowest constraints ort-web clean

demo: $(INSTALLED)
	$(BIN)/edgekit demo

# Three processes on two cores, since many tests wait for others.
test: $(INSTALLED)
	$(BIN)/pytest -n 3 -m "not slow and not long"

test-slow: $(INSTALLED)
	$(BIN)/pytest -n 2 -m "slow and not long"

test-all: $(INSTALLED) $(DOCS) system
	$(BIN)/pytest -n 2

# Where something cannot be installed, the tests that need it are skipped, and the end of the run says so.
system:
	@command -v chromium >/dev/null && [ -x /usr/sbin/sshd ] && command -v rsync >/dev/null && command -v adb >/dev/null || \
	    { apt-get update -qq && apt-get install -qq -y --no-install-recommends $(SYSTEM); } >/dev/null || \
	    echo "not installed, and no way to do so here: $(SYSTEM)" >&2
	@$(MAKE) --silent ort-web || echo "ONNX Runtime Web cannot be fetched here: that needs npm" >&2

# The site is written to build/site; a broken link or reference fails.
docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "build/site/index.html"

$(DOCS): $(INSTALLED)
	$(BIN)/uv pip install --python $(BIN)/python --constraints constraints.txt --editable '.[dev,docs]'
	touch $@

# A million cases in an hour; FUZZ="--seed 7 --target manifest" repeats a part of a campaign.
fuzz: $(INSTALLED)
	$(BIN)/python -m tests.fuzz.campaign --kept $(FUZZ)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/basedpyright --level error

wheel-test: $(INSTALLED)
	tests/wheel-test.sh $(BIN)/python

lowest: $(INSTALLED)
	tests/lowest-test.sh $(BIN)/uv $(PYTHONS)

# uv installs torch's CUDA libraries in under a minute; pip brings it. Compiled once, torchvision is imported in 3 s and
# not in 8, also where PYTHONDONTWRITEBYTECODE is set.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade uv
	$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode --constraints constraints.txt --editable '.[dev]'
	touch $@

ort-web: $(ORT_WEB_DIR)/ort.wasm.min.mjs

$(ORT_WEB_DIR)/ort.wasm.min.mjs:
	mkdir -p $(ORT_WEB_DIR)
	cd $(ORT_WEB_DIR) && tar -xzf "$$(npm pack --silent $(ORT_WEB))" --strip-components 2 \
	    $(addprefix package/dist/,$(ORT_WEB_FILES)) && rm onnxruntime-web-*.tgz
	touch $@

constraints:
	$(BIN)/uv pip compile --universal --python-version 3.10 --extra dev --extra docs --no-emit-index-url --no-annotate --no-header \
	    --constraints constraints.in pyproject.toml --output-file constraints.txt --upgrade

clean:
	rm -rf $(VENV) build dist *.egg-info
