# The two main commands: make demo, make test.
PYTHON ?= python3
# Python versions for `make lowest`; those that are not installed are skipped.
PYTHONS ?= 3.10 3.13
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DOCS := $(VENV)/.docs

# ONNX Runtime Web, which runs models in a browser; its files are checked by hash wherever they are used.
ORT_WEB := onnxruntime-web@1.30.0
ORT_WEB_FILES := ort.wasm.min.mjs ort-wasm-simd-threaded.mjs ort-wasm-simd-threaded.wasm \
    ort.webgpu.min.mjs ort-wasm-simd-threaded.asyncify.mjs ort-wasm-simd-threaded.asyncify.wasm
ORT_WEB_DIR := deploy/devices/browser/ort-web

# System packages for some tests: a browser, an ssh server for the virtual board, Android's adb.
SYSTEM := chromium openssh-server openssh-sftp-server rsync adb

.PHONY: demo test test-slow test-all system docs lint types fuzz wheel-test lowest constraints ort-web clean

demo: $(INSTALLED)
	$(BIN)/edgekit demo

# Three processes on two cores, because many tests wait for child processes.
test: $(INSTALLED)
	$(BIN)/pytest -n 3 -m "not slow and not long"

test-slow: $(INSTALLED)
	$(BIN)/pytest -n 2 -m "slow and not long"

test-all: $(INSTALLED) $(DOCS) system
	$(BIN)/pytest -n 2

# If something cannot be installed, the tests that need it are skipped and listed at the end.
system:
	@command -v chromium >/dev/null && [ -x /usr/sbin/sshd ] && command -v rsync >/dev/null && command -v adb >/dev/null || \
	    { apt-get update -qq && apt-get install -qq -y --no-install-recommends $(SYSTEM); } >/dev/null || \
	    echo "cannot install on this machine: $(SYSTEM)" >&2
	@$(MAKE) --silent ort-web || echo "cannot fetch ONNX Runtime Web: this requires npm" >&2

# Builds the site into build/site; broken links and references fail.
docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "build/site/index.html"

$(DOCS): $(INSTALLED)
	$(BIN)/uv pip install --python $(BIN)/python --constraints constraints.txt --editable '.[dev,docs]'
	touch $@

# A million cases per hour; FUZZ="--seed 7 --target manifest" repeats part of a campaign.
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

# pip installs uv, which installs torch's CUDA libraries in under a minute. With compiled bytecode, importing torchvision
# takes 3 s instead of 8, even if PYTHONDONTWRITEBYTECODE is set.
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
