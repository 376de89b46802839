# Works with GNU make 3.81, which macOS ships. `make` without a target lists the targets.

PYTHON := .venv/bin/python
READY := .venv/.ready
PYTEST_ARGS ?= -n 2

# Tests see HOME, PATH and CI only, because anything else in the environment could hide a fault, or cause one.
# PATIENCE=3 makes them wait three times as long.
PYTEST = env -i HOME="$$HOME" PATH="$$PATH" $${CI:+CI="$$CI"} $(if $(PATIENCE),PATIENCE=$(PATIENCE)) $(TEST_VARIABLES) \
  $(PYTHON) -m pytest

# What `make run` uses unless the environment sets it. Not exported by make, because then the tests would see it.
SERVE = exec env PROXY_LISTEN="$${PROXY_LISTEN:-127.0.0.1}" PROXY_PORT="$${PROXY_PORT:-11500}" \
  PROXY_UPSTREAM="$${PROXY_UPSTREAM:-http://127.0.0.1:11434}" $(PYTHON) -m proxy

# The installed command knows the running service, so use it if there is one, otherwise the checkout.
INSTALLED := $(wildcard $(HOME)/.local/bin/remote-ollama-proxy)
COMMAND = $(if $(INSTALLED),$(INSTALLED),$(PYTHON) -m proxy)
NEEDED = $(if $(INSTALLED),,$(READY))

.DEFAULT_GOAL := help
.PHONY: help setup demo run check status verify logs warm start stop restart disable enable install uninstall lint format test coverage quick fuzz test-net test-tailnet test-browser go-json soak pictures compare-security security-report mutants wheel sbom audit release bench bench-litellm bench-guard lock

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' Makefile

setup: $(READY)  ## make .venv with everything pinned (needs Python 3.11 or newer)

# --no-deps, because the lock is complete: older pips ignore it for a package with extras, and stop at a newer release.
# Each candidate is run, not only looked up, because pyenv leaves commands on the PATH that fail.
$(READY): requirements-dev.lock pyproject.toml
	@if ! $(PYTHON) -c '' 2>/dev/null; then \
	  found=; \
	  for python in python3.14 python3.13 python3.12 python3.11 python3; do \
	    if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo 'error: no Python 3.11 or newer, with venv, was found' >&2; \
	    echo 'hint: macOS: the installer from https://www.python.org/downloads/, or `uv python install 3.13`' >&2; \
	    echo 'hint: Linux: `sudo apt install python3 python3-venv`, `sudo dnf install python3`, or `uv python install 3.13`' >&2; \
	    exit 1; \
	  fi; \
	  $$found -m venv --clear .venv || exit 1; \
	fi
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements-dev.lock
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(READY)  ## take a tour on loopback with a simulated Ollama (KEEP=1 leaves it running)
	$(PYTHON) -m proxy demo $(if $(KEEP),--keep)

run: $(READY)  ## serve your Ollama on 127.0.0.1:11500 in the foreground; Ctrl-C ends it
	@$(SERVE)

check: $(READY)  ## show the configuration, and what is wrong with it
	$(PYTHON) -m proxy --check

status: $(NEEDED)  ## show whether the installed proxy and Ollama are running
	@$(COMMAND) status

verify: $(NEEDED)  ## test that the running proxy does what it promises (ARGS=--skip-model-tests: in seconds)
	@$(COMMAND) verify $(ARGS)

logs: $(NEEDED)  ## follow the access log; Ctrl-C ends it (ARGS='--summary --since 24h')
	@$(COMMAND) logs $(ARGS)

warm: $(NEEDED)  ## load models before someone needs them (MODEL='qwen3:8b gpt-oss:20b', ARGS=--at-login)
	@$(COMMAND) warm $(MODEL) $(ARGS)

start: $(NEEDED)  ## start both services (SERVICE=proxy or ollama for one, here and below)
stop: $(NEEDED)  ## stop them until the next login
restart: $(NEEDED)  ## restart them (SERVICE=proxy: streams finish first; ARGS=--yes: don't ask)
disable: $(NEEDED)  ## stop them, and keep them from starting at login
enable: $(NEEDED)  ## start them, now and at each login
start stop restart disable enable:
	@$(COMMAND) $@ $(SERVICE) $(ARGS)

install: $(READY)  ## install on this Mac, or upgrade an install to this clone (ARGS=--dry-run: only show it)
	@$(PYTHON) -m proxy install $(ARGS)

uninstall: $(NEEDED)  ## remove what install made (ARGS=--purge: settings and logs too)
	@$(COMMAND) uninstall $(ARGS)

lint: $(READY)  ## check format, lint and types; changes nothing
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy --strict proxy

format: $(READY)  ## correct the format, and what else ruff can fix
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

# Tests that compare times or memory run after the others, one by one.
ALONE := $(shell grep -rl --include='test_*.py' 'mark\.alone' tests)

test: lint  ## lint, then all tests
	$(PYTEST) --dist worksteal $(PYTEST_ARGS) -m "not alone"
	$(PYTEST) -m alone $(ALONE)

coverage: $(READY)  ## run all tests, and check that they reach 95 % of the code; takes half as long again as without
	$(PYTEST) --dist worksteal $(PYTEST_ARGS) -m "not alone" --cov --cov-branch --cov-report=
	$(PYTEST) -m alone $(ALONE) --cov --cov-branch --cov-append --cov-fail-under=95

quick: TEST_VARIABLES = EXAMPLES=0.1
quick: lint  ## lint, then the tests that need no other process, with a tenth of the examples: a minute, for every save
	$(PYTEST) --dist worksteal $(PYTEST_ARGS) -q -m "not process"

fuzz: TEST_VARIABLES = FUZZ_MINUTES=$(or $(MINUTES),10) FUZZ_SEED=$(SEED)
fuzz: $(READY)  ## play random clients, Ollamas and bytes against the proxy (MINUTES=10; SEED=… repeats a round)
	$(PYTEST) --timeout 0 $(PYTEST_ARGS) tests/hostile/test_fuzz.py tests/hostile/test_differential.py

test-net: $(READY)  ## test who can reach what, in network namespaces that it makes and removes (Linux, as root)
	$(PYTEST) -rs tests/serving/test_namespaces.py

test-tailnet: $(READY)  ## test the proxy in a real tailnet of network namespaces (Linux, as root, with Go; ARGS='-k stream')
	$(PYTHON) -m tests.tailnet $(ARGS)

go-json: $(READY)  ## record what Go's encoding/json and Ollama's own types read (Go 1.26 or newer; MADE_UP=1000 random bodies)
	@MADE_UP=$(MADE_UP) $(PYTHON) -m tests.go_json

# A package that drives a browser which is installed already: it brings none.
BROWSER := .venv/.browser

$(BROWSER): requirements-browser.lock $(READY)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements-browser.lock
	@touch $@

test-browser: $(BROWSER)  ## test the dashboard's page in Chromium (ARGS=--pictures: write docs/dashboard/*.png too)
	$(PYTHON) -m tests.dashboard.browser $(ARGS)

soak: $(READY)  ## run all SDKs with trouble of every kind for MINUTES=10, and draw the result
	@$(PYTHON) -m bench.soak --minutes $(or $(MINUTES),10) $(ARGS)

pictures: $(READY)  ## draw docs/img/*.svg from real runs with the simulated Ollama
	$(PYTHON) -m tests.tools.pictures

compare-security: $(READY)  ## send the same attacks to this proxy, HAProxy, nginx, Caddy and aiohttp; writes docs/security-comparison.md
	@$(PYTHON) -m tests.peers.compare
bench: $(READY)  ## measure the proxy next to others on the PATH, in ten minutes (QUICK=1: in one or two; PEERS=, ONLY=: some; ON=3.13: that Python)
	@python=$$($(PYTHON) -m bench.python $(ON)) && exec $$python -m bench $(if $(QUICK),--scale quick) $(if $(PEERS),--peers '$(PEERS)') $(addprefix --part ,$(ONLY)) $(if $(WRITE),--write)

LITELLM := 1.100.5

bench-litellm:  ## install LiteLLM in .venv-litellm, to measure it with PEERS=litellm or PEERS=all
	python3 -m venv .venv-litellm
	.venv-litellm/bin/python -m pip install --quiet --disable-pip-version-check 'litellm[proxy]==$(LITELLM)'

bench-guard: $(READY)  ## count instructions of a chat, a GET and a chunk, and compare (UPDATE=1: keep them); needs valgrind
	$(PYTHON) -m bench.guard $(if $(UPDATE),--update)

security-report: $(READY)  ## run the tests that docs/security.md names, and write the number of cases there
	$(PYTHON) -m tests.tools.security_report

# Tools that tests don't need, into the same .venv, pinned and with hashes too.
TOOLS := .venv/.tools

$(TOOLS): requirements-tools.lock $(READY)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements-tools.lock
	@touch $@

mutants: $(TOOLS)  ## change the code in thousands of ways, one at a time, and check that a test fails each time (hours)
	$(PYTHON) -m tests.tools.mutants $(MODULES)

wheel: $(READY)  ## build the wheel, which installs without a clone, into dist/
	$(PYTHON) -m hatchling build -t wheel -d dist

sbom: $(TOOLS)  ## write dist/sbom.json, a CycloneDX list of all packages in an install, with their licenses
	@mkdir -p dist
	$(PYTHON) -m tests.tools.supply sbom dist/sbom.json

audit: $(TOOLS)  ## ask PyPI for known vulnerabilities in the packages of an install
	$(PYTHON) -m tests.tools.supply audit

release: $(TOOLS)  ## test and build a release into dist/VERSION/ (VERSION=1.2.3); publishes nothing
	@$(PYTHON) -m tests.tools.release $(VERSION)

COMPILE = uv pip compile --quiet $(if $(UPGRADE),--upgrade) --universal --python-version 3.11 --generate-hashes \
  --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' pyproject.toml

lock:  ## update the lock files to pyproject.toml (UPGRADE=1: to the newest packages too); needs uv
	$(COMPILE) --group dev --output-file requirements-dev.lock
	$(COMPILE) --constraint requirements-dev.lock --output-file requirements.lock
	$(COMPILE) --group tools --constraint requirements-dev.lock --output-file requirements-tools.lock
	$(COMPILE) --group browser --constraint requirements-dev.lock --output-file requirements-browser.lock
