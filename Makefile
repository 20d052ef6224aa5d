# The menu: `make` alone prints it. Everything runs in .venv, which the first target that needs it builds.

PYTHON  ?= $(shell for python in python3.11 python3 python3.12 python3.13; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
BIN     := .venv/bin
ENV     := .venv/.stamp
STUBS    = $(BIN)/python -m grpc_tools.protoc -Iproto \
	--plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc
OUTPUTS  = --python_out=$(1) --grpc_python_out=$(1) --mypy_out=$(1) --mypy_grpc_out=$(1) proto/mien/v1/*.proto
# Three processes take turns with the files of tests, in their order: the long ones come first. That is one more than
# two cores, since every fifth second of a test is waiting.
WORKERS := -n 3 --dist loadfile --no-loadscope-reorder
PACKAGE := scheduling
N       := 20
SEED    := 1
PHOTOS  := 20000
MESSAGES := 20000
MINUTES := 30
BENCH   := serving scheduler_overhead batching overload growth gallery cpu_threads reload
SOURCES := client server samples loadtest bench tools tests

# Tests start hundreds of servers and commands, each of which would compile mien again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo serve models test test-long fuzz soak mutants lint types proto proto-check docs bench loadtest docker-steps clean

help: ## print this menu
	@echo "make TARGET [PORT=8001] [ADDRESS=127.0.0.1:8001] [ARGS=...] [PYTHON=python3.11]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(ENV): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "mien needs Python 3.11 or newer, and none was found." \
	  "Install it, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) tools/environment.py

demo: $(ENV) ## find, embed and verify the six sample portraits; pictures in out/
	$(BIN)/python -m samples.demo $(if $(PORT),--port $(PORT)) $(ARGS)

serve: $(ENV) ## run the server on PORT, default 8001
	$(BIN)/mien-server serve $(if $(PORT),--grpc-port $(PORT)) $(ARGS)

models: $(ENV) ## install the real weights into model_repository/
	$(BIN)/mien-server models install $(ARGS)

test: $(ENV) ## run all tests but the long ones; ARGS="-k verify" picks some
	$(BIN)/python -m pytest -m "not long" $(or $(ARGS),$(WORKERS))

test-long: $(ENV) ## run the long tests: soaks, and models replaced many times
	$(BIN)/python -m pytest -m long $(or $(ARGS),-n 2)

fuzz: $(ENV) ## damaged photos and messages against a server: PHOTOS=20000 MESSAGES=20000 SEED=1
	$(BIN)/mien-server models install
	$(BIN)/python -m tests.fuzz --photos $(PHOTOS) --messages $(MESSAGES) --seed $(SEED) $(ARGS)

soak: $(ENV) ## a server under load while all about it is changed; its picture in out/soak/: MINUTES=30
	$(BIN)/mien-server models install
	$(BIN)/python -m tests.soak --minutes $(MINUTES) $(ARGS)

mutants: $(ENV) ## faults that a package's tests miss: PACKAGE=scheduling N=20 SEED=1
	$(BIN)/python -m tools.mutants $(PACKAGE) $(N) $(SEED)

lint: $(ENV) ## formatting, code, contract, Dockerfile, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/buf lint proto
	$(BIN)/hadolint Dockerfile
	$(BIN)/lint-imports

types: $(ENV) ## mypy --strict
	$(BIN)/mypy $(SOURCES)

proto: $(ENV) ## regenerate client/mien/v1 from proto/
	$(STUBS) $(call OUTPUTS,client)

proto-check: $(ENV) ## fail if client/mien/v1 is not what proto/ generates
	@fresh=$$(mktemp -d) && trap 'rm -r "$$fresh"' EXIT && $(STUBS) $(call OUTPUTS,$$fresh) && \
	  touch "$$fresh/mien/v1/__init__.py" && \
	  { diff -r -x __pycache__ "$$fresh/mien/v1" client/mien/v1 || \
	  { echo "client/mien/v1 is stale: run make proto" >&2; exit 1; }; }

docs: $(ENV) ## regenerate docs/configuration.md from the settings
	$(BIN)/python -m mien_server.settings > docs/configuration.md

bench: $(ENV) ## measure, and print the tables that docs quote; BENCH=serving runs one, BENCH=peers compares
	$(BIN)/mien-server models install
	@for name in $(BENCH); do echo "# $$name" && $(BIN)/python -m bench.$$name $(ARGS) || exit; done

loadtest: $(ENV) ## one minute of locust against ADDRESS, or a server of its own; ARGS=--web for its page
	$(BIN)/python -m loadtest.run $(if $(ADDRESS),--address $(ADDRESS)) $(ARGS)

docker-steps: $(ENV) ## run the Dockerfile's build steps in a fresh environment, without an engine
	$(BIN)/python -m tools.docker_steps $(ARGS)

clean: ## remove .venv, caches and out/; installed models stay
	rm -rf .venv .venv.lock out build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
