# Countersign: every command a developer or CI needs. `make help` lists them.
# Needs Python >= 3.11, make and a package index; everything else is set up in .venv inside the clone.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PYTEST ?= $(BIN)/python -m pytest
SOAK_OPTIONS ?= --full # of bench.soak; empty for a minute
PEERS_OPTIONS ?= # options of tests/peers/install

.DEFAULT_GOAL := help
.PHONY: help demo test check cover docs policies chart image lock peers interop e2e-tools e2e bench bench-full soak clean

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-10s %s\n", $$1, $$2}'

demo: $(VENV)/.runtime ## the main job on an embedded registry: who is admitted, who is denied and why
	$(BIN)/countersign demo

test: $(VENV)/.dev ## the tests that need nothing but Python (others skip with the reason)
	$(PYTEST) -n auto -q

check: $(VENV)/.dev ## lint, types, floors, generated files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m docs.generate --check
	$(BIN)/python -m policies.generate --check
	$(BIN)/python -m charts.generate --check

cover: $(VENV)/.dev ## coverage: 100 % of the trusted core, 95 % of the whole
	rm -f .coverage .coverage.*
	$(PYTEST) -n auto -q --cov --cov-report=
	$(BIN)/coverage report --fail-under=95
	$(BIN)/coverage report --fail-under=100 \
	    --include='provider/notation/*,provider/policy.py,provider/executor.py,provider/gatekeeper/protocol.py'

docs: $(VENV)/.dev ## write the generated parts of docs/ again
	$(BIN)/python -m docs.generate

policies: $(VENV)/.dev ## write the Azure Policy definitions again, from policies/template.yaml
	$(BIN)/python -m policies.generate

chart: $(VENV)/.dev ## write the generated files of the chart again: README.md, custom resource definitions
	$(BIN)/python -m charts.generate

image: ## build the container image (needs docker; docs/image.md)
	docker build --tag countersign:dev --build-arg REVISION="$$(git rev-parse HEAD)" \
	    --build-arg VERSION="$$(sed -n 's/^__version__ = "\(.*\)"/\1/p' provider/__init__.py)" .

lock: $(VENV)/.dev ## resolve the dependencies again (needs uv in .venv)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --upgrade \
	    --python-version 3.11 pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --upgrade \
	    --python-version 3.11 --group dev -c requirements.lock pyproject.toml -o requirements-dev.lock
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --upgrade \
	    --python-version 3.11 --group build -o requirements-build.lock

peers: $(VENV)/.dev ## build the real peers (notation, opa, gator, helm, ...) into .peers/ with Go
	tests/peers/install $(PEERS_OPTIONS)

interop: $(VENV)/.dev ## tests against the real peers
	$(PYTEST) tests/interop tests/policies -q

e2e-tools: ## install a cluster's programs into .peers/: etcd, kube-apiserver, Gatekeeper, helm, ... (needs Go)
	tests/peers/install $(PEERS_OPTIONS) e2e

e2e: $(VENV)/.dev ## end-to-end tests on a real API server with a real Gatekeeper
	$(PYTEST) tests/e2e -q

bench: $(VENV)/.dev ## request counts and processor time against their floors, within a minute
	$(BIN)/python -m bench

bench-full: $(VENV)/.dev ## every measurement of docs/performance.md, some minutes
	$(BIN)/python -m bench --full

soak: $(VENV)/.dev ## two replicas under load, faults, key changes and kills: a million requests, nothing may be wrong
	$(BIN)/python -m bench.soak $(SOAK_OPTIONS)

clean: ## remove what the targets made (not .peers)
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.*

# Two stages, so that the demo does not wait for the developers' tools.
$(VENV)/.runtime: requirements.lock requirements-build.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Countersign needs Python 3.11 or newer, not %d.%d" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes \
	    -r requirements.lock -r requirements-build.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	touch $@
