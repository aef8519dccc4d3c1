# Chat4All: `make help` lists the targets. All a newcomer needs is Python 3.11 or 3.12 and this file.
.DEFAULT_GOAL := help
.PHONY: help demo run install install-dev test soak lint format bench bench-full bench-gate requirements stack clean clean-cache
SHELL := /bin/sh

VENV := .venv
BIN := $(VENV)/bin
PROFILE ?= local
STATE_DIR ?= .chat4all$(if $(filter cluster,$(PROFILE)),/cluster)
# What `demo` and `run` need: the cluster profile more packages, and servers unless the environment names some.
PARTS := $(if $(filter cluster,$(PROFILE)),dev,local)
RUN_SERVERS := $(BIN)/python -m tests.stack run --only kafka,cassandra,minio,postgres
ON_SERVERS := $(RUN_SERVERS) --
ON_LONG_SERVERS := $(RUN_SERVERS) --long-run --
ON_STACK := $(if $(filter cluster,$(PROFILE)),$(if $(EVENT_LOG_URL),,$(ON_SERVERS)))
PACKAGES := chat4all_project core accounts messaging connectors files realtime web simulator demo tests bench
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --no-input --quiet --prefer-binary --no-compile --require-hashes
UV_COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url

help: ## what can be made (the default)
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.$(PARTS)-installed ## the whole system with real dialogues, until Ctrl-C (DEMO=once: exits after the summary; PROFILE=cluster: on Kafka & Co.)
	@$(if $(ON_STACK),SERVERS=1 .ci/system-parts)
	@STATE_DIR='$(STATE_DIR)' DEMO='$(DEMO)' PROFILE='$(PROFILE)' $(ON_STACK) $(BIN)/python -m demo

run: $(VENV)/.$(PARTS)-installed ## the whole system without the dialogues, until Ctrl-C (PROFILE as above)
	@$(if $(ON_STACK),SERVERS=1 .ci/system-parts)
	@STATE_DIR='$(STATE_DIR)' PROFILE='$(PROFILE)' $(ON_STACK) $(BIN)/python -m demo.supervisor

install: $(VENV)/.local-installed ## .venv with what the demo needs (PYTHON=… chooses the interpreter)

install-dev: $(VENV)/.dev-installed ## .venv with everything to test, lint and measure

test: $(VENV)/.dev-installed ## all tests on real servers (T=path runs a part, STACK=1 with servers; LOCAL=1 the local profile alone)
	@T='$(T)' LOCAL='$(LOCAL)' STACK='$(STACK)' REQUIRE='$(REQUIRE)' .ci/run-tests

soak: $(VENV)/.dev-installed ## every fault again and again until 200,000 messages were acknowledged (SOAK='--profile local --seed 7'; SOAK=--help)
	@$(if $(filter local --help,$(SOAK)),,SERVERS=1 .ci/system-parts)
	@$(BIN)/python -m tests.faults.soak $(SOAK)

stack: $(VENV)/.dev-installed ## Kafka, Cassandra, MinIO, PostgreSQL and Redis, until Ctrl-C (ONLY=kafka,redis picks)
	@SERVERS=1 .ci/system-parts
	@$(BIN)/python -m tests.stack up $(if $(ONLY),--only '$(ONLY)')

lint: $(VENV)/.dev-installed ## format, ruff, mypy --strict, the layers, missing migrations
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy $(sort $(dir $(wildcard $(addsuffix /*.py,$(PACKAGES)))))
	$(BIN)/lint-imports
	@state=$$(mktemp -d) && trap 'rm -rf "$$state"' EXIT && \
	    STATE_DIR="$$state" $(BIN)/python manage.py makemigrations --check --dry-run

format: $(VENV)/.dev-installed ## rewrite the code as `make lint` wants it
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.dev-installed ## measure the cluster profile beside its floors into docs/performance.md, about 14 minutes (BENCH='--only local')
	@SERVERS=1 .ci/system-parts
	@$(ON_LONG_SERVERS) $(BIN)/python -m bench --write $(BENCH)

bench-full: $(VENV)/.dev-installed ## the long form of both profiles, under two hours
	@SERVERS=1 .ci/system-parts
	@$(ON_LONG_SERVERS) $(BIN)/python -m bench --full --write $(BENCH)

bench-gate: $(VENV)/.dev-installed ## fail when the last `make bench` found a ratio to a floor below bench/gate.json
	@$(BIN)/python -m bench.gate

requirements: $(VENV)/.dev-installed ## pin requirements/*.in again (UPGRADE=--upgrade takes newer releases)
	$(UV_COMPILE) $(UPGRADE) requirements/base.in -o requirements/base.txt
	$(UV_COMPILE) $(UPGRADE) requirements/local.in -o requirements/local.txt
	$(UV_COMPILE) $(UPGRADE) requirements/prod.in -o requirements/prod.txt
	$(UV_COMPILE) $(UPGRADE) requirements/dev.in -o requirements/dev.txt

clean: ## remove everything that was made: the environment, the state, the caches (downloaded servers stay: make clean-cache)
	rm -rf $(VENV) '$(STATE_DIR)' .chat4all .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis test-results
	if [ -d .cache ]; then find .cache -mindepth 1 -maxdepth 1 ! -name stack -exec rm -rf {} +; fi
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

clean-cache: clean ## and the downloaded servers
	rm -rf .cache

# One stamp per set of requirements: whatever changed is installed, the rest costs nothing. The larger set holds the
# smaller one, at the same versions.
$(VENV)/.local-installed: requirements/local.txt $(VENV)/.made
	@test $(VENV)/.dev-installed -nt requirements/dev.txt || { echo "Installing requirements/local.txt …" && $(PIP_INSTALL) -r requirements/local.txt; }
	@touch $@

$(VENV)/.dev-installed: requirements/dev.txt $(VENV)/.made
	@echo "Installing requirements/dev.txt …"
	@$(PIP_INSTALL) -r requirements/dev.txt
	@touch $@

# Looked at each time when PYTHON is given: another version replaces the environment.
$(VENV)/.made: .ci/make-venv $(if $(PYTHON),ask-again)
	@.ci/make-venv '$(VENV)' '$(PYTHON)'

.PHONY: ask-again
