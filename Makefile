# Everything is built in one profile, release: RocksDB takes a quarter of an hour to compile, and
# the tests start the shipped programs. Build results are kept outside the checkout, so that a fresh
# clone builds at once.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
VARVE_CACHE := $(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME),$(HOME)/.cache)/varve
export CARGO_TARGET_DIR ?= $(VARVE_CACHE)/target
export PATH := $(PATH):$(HOME)/.cargo/bin:$(VARVE_CACHE)/tools/bin

CARGO_FLAGS := --release --locked --workspace
SOAK_ROUNDS ?= 100
VARVE_SOAK_MINUTES ?= 30

.PHONY: help build demo test check lint mutations soak bench clean

help: ## Show what there is to make
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1	\2/p' $(MAKEFILE_LIST)

build: ## Build varved and snapctl
	@scripts/install-packages build
	@scripts/build --workspace --bins
	@echo "Built varved and snapctl. To have them in a shell:"
	@echo '    export PATH="$(CARGO_TARGET_DIR)/release:$$PATH"'

demo: build ## From a Debian image to a booted guest, step by step
	@scripts/install-packages demo
	@scripts/demo

test: ## Run all tests
	@scripts/install-packages build test
	@scripts/build --workspace --bins --tests --examples
	@scripts/make-image base changed
	@scripts/make-newer
	@if cargo nextest --version >/dev/null 2>&1; then \
	  cargo nextest run $(CARGO_FLAGS); \
	  cargo test $(CARGO_FLAGS) --doc; \
	else \
	  cargo test $(CARGO_FLAGS); \
	fi

check: lint test ## What CI runs: format, lints, spelling, licences, docs, tests

lint: ## The part of check that runs nothing
	cargo fmt --all --check
	@scripts/install-packages build
	cargo clippy $(CARGO_FLAGS) --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc $(CARGO_FLAGS) --no-deps
	@scripts/check-spelling
	@scripts/check-dependencies

mutations: ## Turn off one rule of tests/mutations after the other: a test has to fail each time
	@scripts/install-packages build
	@scripts/check-mutations

# Without nextest, which would end tests that take this long.
soak: build ## Everything at once, then power cuts and kills; VARVE_SOAK_MINUTES=30, SOAK_ROUNDS=100
	@scripts/install-packages test
	@scripts/make-image base
	VARVE_SOAK_MINUTES=$(VARVE_SOAK_MINUTES) cargo test $(CARGO_FLAGS) --test behaviour --quiet -- --nocapture soak::
	@for ((round = 0; round < $(SOAK_ROUNDS); round += 8)); do \
	  cargo test --release --locked --package varve-tests --quiet -- --nocapture \
	    volumes::crashes::kills faults::crashes::kills import_export::imports_that_are_cut_off; \
	done
	VARVE_CRASH_ROUNDS=$$(($(SOAK_ROUNDS) * 50)) cargo test --release --locked --package varve-store --quiet -- --nocapture crash_fuzz
	VARVE_POWER_CUTS=$(SOAK_ROUNDS) cargo test --release --locked --package varve-tests --quiet -- --nocapture guests::power_cuts

bench: ## Measure side by side with peers; BENCH_ARGS="--write docs/benchmarks.md" keeps the table
	@scripts/install-packages build bench
	@scripts/build --workspace --bins
	@scripts/make-image base changed web database
	cargo bench --locked --package varve-benches --bench content
	$(CARGO_TARGET_DIR)/release/varve-compare $(BENCH_ARGS)

clean: ## Remove what was built; images and tools stay
	cargo clean
