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

# One stamp for each group of packages that pyproject.toml names.
$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	$(BIN)/python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb')); \
	  print(*p['build-system']['requires'], *p['project']['dependencies'], *p['project']['optional-dependencies']['$*'], sep='\n')" \
	  > $(VENV)/$*.txt
	$(BIN)/python -m pip install --quiet --requirement $(VENV)/$*.txt
	@touch $@

.PHONY: build
build: $(VENV)/.installed-test ## build the extension (optimised) into .venv
	$(BIN)/maturin develop --release --quiet --skip-install
	@$(BIN)/python -c 'import byref' 2>/dev/null || $(BIN)/maturin develop --release --quiet

# ---- what one comes for ----------------------------------------------------------------------------------------------

.PHONY: demo
demo: build $(VENV)/.installed-demo ## real video by reference through four processes, under a minute
	$(BIN)/python -m examples.video

.PHONY: test
test: test-rust test-models test-python ## build and run every test

.PHONY: test-rust
test-rust: ## the core's own tests, and its documentation's examples
	$(CARGO) test --quiet --package byref
	$(CARGO) test --quiet --package byref --features faults --lib faults

.PHONY: test-models
test-models: ## loom: every interleaving of the lock-free protocols
	RUSTFLAGS="--cfg loom" $(CARGO) test --quiet --package byref --lib --target-dir target/loom models

.PHONY: weaken
weaken: $(BIN)/python ## take each memory ordering away, and see its model fail; writes docs/orderings.md (half an hour)
	$(BIN)/python tools/weaken.py

.PHONY: test-python
test-python: build build-faults ## across real processes, with real libraries
	$(BIN)/python -m pytest

.PHONY: torture
SECONDS ?= 120
SEED ?=
torture: build ## random publishers, subscribers, relays, kills and shortages for SECONDS (default 120), SEED to repeat
	$(BIN)/python -m tests.torture --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

# An extension of its own, in a package of its own: what others import has no fault points.
FAULTS := target/faults
.PHONY: build-faults
build-faults: build
	$(CARGO) build --quiet --package byref-python --features faults --profile faults
	@mkdir -p $(FAULTS)/python/byref
	@cp python/byref/*.py $(FAULTS)/python/byref/
	@cp $(FAULTS)/lib_byref.so $(FAULTS)/python/byref/_byref.so

.PHONY: steps
steps: build-faults ## kill, or stop, a process at each step of the protocols, and check all the others (ARGS="--help")
	PYTHONPATH=$(FAULTS)/python $(BIN)/python -m tests.torture.steps $(ARGS)

.PHONY: soak
soak: build ## a billion small messages and 100,000 of 1 MiB: none lost, memory flat (ARGS="--small N --large N")
	$(BIN)/python -m tests.torture.soak $(ARGS)

# One by one: a peer that cannot be installed is missing from the table, and tried again the next time.
$(VENV)/.installed-bench: pyproject.toml | $(BIN)/python
	$(BIN)/python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb')); \
	  print(*p['project']['optional-dependencies']['bench'], sep='\n')" > $(VENV)/bench.txt
	@missing=; while read -r package; do \
	  $(BIN)/python -m pip install --quiet "$$package" < /dev/null || missing="$$missing $$package"; \
	done < $(VENV)/bench.txt; \
	if [ -n "$$missing" ]; then echo "cannot be installed, and left out:$$missing"; else touch $@; fi

.PHONY: bench
bench: build $(VENV)/.installed-bench ## byref beside its peers, in one run: a table, and the chart docs/bench.svg
	$(BIN)/python -m bench $(ARGS)

.PHONY: lint
lint: build $(VENV)/.installed-demo ## formatting, lints, types
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --quiet -- --deny warnings
	$(CARGO) clippy --workspace --all-targets --features faults --profile faults --quiet -- --deny warnings
	RUSTFLAGS="--cfg loom" $(CARGO) clippy --package byref --tests --quiet --target-dir target/loom -- --deny warnings
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest byref._byref --ignore-disjoint-bases --allowlist tests/stubtest-allowlist.txt

.PHONY: docs
docs: ## the Rust API as web pages, in target/doc
	RUSTDOCFLAGS="--deny warnings" $(CARGO) doc --package byref --no-deps

.PHONY: clean
clean: ## remove everything that was built or installed
	rm -rf $(VENV) target demo-output
