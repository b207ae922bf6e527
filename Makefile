# What a person runs here. `make` alone lists it.

PYTHON ?= python3
PY := .venv/bin/python
THREADS := $(shell nproc 2>/dev/null || echo 1)
# One team of threads, which sleeps when it has nothing to do.
THREADED := OMP_NUM_THREADS=$(THREADS) OMP_WAIT_POLICY=PASSIVE
SOURCE := $(wildcard *.py) utils models formats mining training ymir benchmarks tests

.DEFAULT_GOAL := help
.PHONY: help env demo test test-all lint interop bench fuzz clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' Makefile

env: ## make .venv (once; PYTHON=python3.11 picks the interpreter)
	@PYTHON="$(PYTHON)" bash .ci/make-env

demo: env ## draw pictures, train, mine, detect, show it on a page (WEIGHTS=model.pt IMAGES=folder: without training)
	@$(PY) demo.py $(if $(WEIGHTS),--weights "$(WEIGHTS)") $(if $(IMAGES),--images "$(IMAGES)") $(ARGS)

test: env ## the tests, without the slow ones (ARGS=... for pytest); a process on each core
	@$(THREADED) $(PY) -m pytest -m 'not slow' -n $(THREADS) --dist loadfile $(ARGS)

test-all: env ## all tests
	@$(THREADED) $(PY) -m pytest $(ARGS)

lint: env ## style and types
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy $(SOURCE)

interop: env ## make the public peer in .peer (6 GB) and hold our reading of its weights against it
	@bash benchmarks/make_peer.sh
	@$(THREADED) $(PY) -m pytest tests/interop $(ARGS)

bench: env ## measure speed and quality
	@$(THREADED) $(PY) -m benchmarks.run_all $(ARGS)

clean: ## remove caches and the demo's pages, not .venv
	rm -rf .pytest_cache .hypothesis .mypy_cache .ruff_cache demo-out
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

fuzz: env ## fuzz each reader of hostile bytes for SECONDS=180 (TARGETS="pickle zip" picks)
	@test -x .fuzz/bin/python || { $(PY) -m venv .fuzz && .fuzz/bin/pip install --quiet --no-deps atheris==3.0.0; }
	@for site in $(CURDIR)/.venv/lib/python3*/site-packages; do echo $$site; done > $$(echo .fuzz/lib/python3*/site-packages)/project.pth
	@for target in $(or $(TARGETS),records stats header picture config yaml annotations pickle zip onnx); do \
	  echo "== $$target"; nice -n 19 .fuzz/bin/python -m tests.fuzz $$target $(or $(SECONDS),180) 2>&1 \
	  | grep -E "Uncaught|Error|SUMMARY|number_of_executed_units" ; done
