# What a person runs here. `make` alone lists it.

PYTHON ?= python3
PYTHON39 ?= python3.9
PY := .venv/bin/python
THREADS := $(shell nproc 2>/dev/null || echo 1)
# One team of threads, which sleeps when it has nothing to do.
THREADED := OMP_NUM_THREADS=$(THREADS) OMP_WAIT_POLICY=PASSIVE
SOURCE := $(wildcard *.py) utils models formats mining training ymir benchmarks fuzz tests

.DEFAULT_GOAL := help
.PHONY: help env demo test test-all test-py39 lint interop fuzz bench clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' Makefile

env: ## make .venv (once; PYTHON=python3.11 picks the interpreter)
	@PYTHON="$(PYTHON)" bash .ci/make-env

demo: env ## draw pictures, train, mine, detect, show it on a page (WEIGHTS=model.pt IMAGES=folder: without training)
	@$(PY) demo.py $(if $(WEIGHTS),--weights "$(WEIGHTS)") $(if $(IMAGES),--images "$(IMAGES)") $(ARGS)

test: env ## the tests, without the slow ones (ARGS=... for pytest); a process on each core
	@$(THREADED) $(PY) -m pytest -m 'not slow' -n $(THREADS) --dist loadfile $(ARGS)

test-all: env ## all tests
	@$(THREADED) $(PY) -m pytest $(ARGS)

test-py39: ## the core tests on Python 3.9 and torch 1.12, which the old CUDA images have (PYTHON39=/usr/bin/python3.9)
	@PYTHON39="$(PYTHON39)" bash .ci/test-py39 $(ARGS)

lint: env ## style and types
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy $(SOURCE)

interop: env ## make the public peer in .peer (6 GB) and hold our reading of its weights against it
	@bash benchmarks/make_peer.sh
	@$(THREADED) $(PY) -m pytest tests/interop $(ARGS)

fuzz: env ## fuzz all that reads hostile bytes, SECONDS=60 each (TARGET="pickle zip": those)
	@bash fuzz/make_env.sh
	@OMP_NUM_THREADS=1 nice -n 19 .fuzzenv/bin/python -m fuzz.run --seconds $(or $(SECONDS),60) $(TARGET)

bench: env ## measure speed and quality
	@$(THREADED) $(PY) -m benchmarks.run_all $(ARGS)

clean: ## remove caches and the demo's pages, not .venv
	rm -rf .pytest_cache .hypothesis .mypy_cache .ruff_cache demo-out
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
