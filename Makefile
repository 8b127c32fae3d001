SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.NOTPARALLEL:
.PHONY: help venv fmt check coverage test test-kernel test-e2e test-dataplane test-runtimes test-faults \
    test-all test-faults-all test-kubernetes test-launcher test-vm storm demo dist install uninstall bench bench-quick schemas completion lock \
    clean

# Python keeps what it has compiled, also where the caller's environment says otherwise: a start takes half as long.
export PYTHONDONTWRITEBYTECODE :=

python := .venv/bin/python
pytest := $(python) -m pytest
sandboxed := tests/in-sandbox --or-skip $(pytest)
# Processes at a time, each in a sandbox of its own: a look at all namespaces finds none of another's tests.
isolated = $(sandboxed) --dist $(or $(2),load) --tx '$(1)*popen//python=tests/in-sandbox $(python)'
shell_scripts := .ci/run deploy/*.sh deploy/interpreter/compile deploy/release/scripts/* tests/in-sandbox \
    tests/kubernetes/upstream/build.sh tests/parts tests/pythons
pure := cni_common/spec/schema.py,cni_common/spec/undo.py,cni_common/spec/result.py,cni_common/spec/wire.py,plugins/host_local/ranges.py

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' Makefile

venv: ## install all that the other targets need: packages, .venv, cnitool, links to the plugins
	@deploy/prerequisites.sh

fmt: venv ## format, and mend findings that need no thought
	$(python) -m ruff format
	$(python) -m ruff check --fix

check: venv ## format, lint, types, unit tests: no root, a minute
	$(python) -m ruff format --check
	$(python) -m ruff check
	$(python) -m mypy
	$(python) -m tests.conformance build/conformance.py && $(python) -m mypy build/conformance.py
	[[ ! -x .venv/bin/shellcheck ]] || .venv/bin/shellcheck $(shell_scripts)
	$(pytest) -n 2 tests/unit

coverage: venv ## coverage of the unit tests; parts without input or output must reach 100 %
	$(pytest) tests/unit --cov --cov-report=term
	$(python) -m coverage report --include=$(pure) --fail-under=100

test: ## all tests, also with failures among the first: check and the eight below; a quarter of an hour or two
	@deploy/prerequisites.sh --reference
	@tests/parts check,dist test-kernel,test-vm \
	    test-e2e,test-runtimes+test-launcher,test-agent+test-faults+test-dataplane

test-all: ## the same with every case, both edges, Go plugins beside ours, two kernels; and the storm
	@deploy/prerequisites.sh --reference
	@deploy/prerequisites.sh --kubernetes
	@deploy/prerequisites.sh --upstream
	@PYCNI_TEST_ALL=1 tests/parts check test-packages test-kernel+test-faults,test-vm \
	    test-e2e+test-dataplane,test-runtimes+test-agent+test-launcher storm test-kubernetes

test-kernel: venv ## each plugin on network namespaces of its own
	$(call isolated,6) tests/kernel # which wait for the kernel most of the time

test-e2e: dist ## the executables, driven by cnitool, beside the Go plugins
	$(sandboxed) -n 3 tests/e2e

test-agent: dist agent ## the agent on nodes of namespaces: lists, plugins, engine, routes, masquerading
	$(call isolated,3,loadgroup) tests/agent

test-runtimes: dist ## driven by podman, by containerd as ctr and the kubelet do, and for containers of others
	@deploy/prerequisites.sh --runtimes
	$(sandboxed) -n 5 tests/runtimes # which mostly wait

.PHONY: test-kind
test-kind: dist agent ## a cluster of kind's by one manifest, in a world with a docker daemon of its own
	@deploy/prerequisites.sh --image
	@deploy/prerequisites.sh --runtimes
	@deploy/prerequisites.sh --kubernetes
	@deploy/prerequisites.sh --kind
	$(sandboxed) -n 0 tests/kind

test-kubernetes: agent image ## a cluster of three nodes with real kubelets; its programs are built once: 25 minutes
	@deploy/prerequisites.sh --reference
	@deploy/prerequisites.sh --kubernetes
	@deploy/prerequisites.sh --upstream
	$(sandboxed) -n 0 -rs tests/kubernetes

.PHONY: test-upstream
test-upstream: dist agent image ## judged by all groups of Kubernetes' own tests, and by critest; hours
	@deploy/prerequisites.sh --reference
	@deploy/prerequisites.sh --runtimes
	@deploy/prerequisites.sh --kubernetes
	@deploy/prerequisites.sh --upstream
	PYCNI_TEST_ALL=1 PYCNI_TEST_UPSTREAM=1 $(sandboxed) -n 0 -rs tests/runtimes/test_critest.py tests/kubernetes/test_upstream.py

test-dataplane: dist ## sockets of all kinds across the networks that the executables made
	$(sandboxed) -n 2 -rs tests/dataplane

test-faults: dist ## killed, on a full disk, after a power loss; a short storm: tests/faults/README.md
	$(sandboxed) -n 3 tests/faults

test-faults-all: ## the same at each system call, where test-faults takes a sample; an hour
	@PYCNI_TEST_ALL=1 $(MAKE) --no-print-directory test-faults

test-launcher: dist ## launcher, also under sanitizers; what dist and install make
	$(sandboxed) -n 2 tests/launcher

test-vm: dist ## features that this kernel may lack, under others: in user mode; in test-all in virtual machines, too
	@deploy/prerequisites.sh --reference
	@if ((EUID)) && [[ "$${CI:-}" != true ]]; then \
	    echo "=== SKIPPED, as it needs root: $@ ===" >&2; \
	else \
	    $(python) -m tests.vm.user_mode; \
	    if [[ "$${PYCNI_TEST_ALL:-0}" != 0 ]]; then \
	        deploy/prerequisites.sh --kubernetes; \
	        $(python) -m deploy.freeze_agent; \
	        $(python) -m tests.vm.user_mode --kernel 6.1; \
	        for kernel in 6.1-cloud 6.12-cloud; do tests/vm/boot.py --kernel $$kernel; done; \
	    fi; \
	    $(pytest) -n 2 tests/vm; \
	fi

.PHONY: golden slowest test-pythons
test-pythons: venv ## unit tests and bundle by each accepted version of Python; some minutes
	@tests/pythons

golden: dist ## write tests/golden/ anew: answers of the Go plugins to fixed inputs
	@deploy/prerequisites.sh --reference
	PYCNI_TEST_ALL=1 PYCNI_TEST_GOLDEN=renew $(sandboxed) -n 0 -m golden tests/kernel tests/e2e

slowest: ## print the 40 slowest tests of the last runs: seconds, processor seconds, name
	@sort -rn build/durations/*.txt | head -n 40

storm: dist ## 64 clients, STORM_OPERATIONS=10000 at random, killed at random; some minutes
	@deploy/prerequisites.sh --reference
	tests/in-sandbox $(python) -m tests.faults.storm --operations $(or $(STORM_OPERATIONS),10000)

demo: venv ## two containers on conf/10-mynet.conf, by cnitool, in namespaces made for it
	@deploy/demo.sh

dist: ## make dist/bin: plugins that run where there is no Python
	@deploy/prerequisites.sh --dist
	@$(python) -m deploy.freeze

.PHONY: agent test-agent
agent: ## make dist/agent: the agent of a Kubernetes node, a program of its own
	@deploy/prerequisites.sh --dist
	@$(python) -m deploy.freeze_agent

.PHONY: interpreter release test-packages
interpreter: ## build a Python for the bundle, once, as root: ten minutes; dist and all after it use it
	@deploy/prerequisites.sh --interpreter
	@$(python) -m deploy.interpreter

release: ## make dist/release: tarball, .deb and .rpm with sums and bill of materials
	@deploy/prerequisites.sh --release
	@$(MAKE) --no-print-directory interpreter || echo 'release: with the Python of this machine' >&2
	@$(MAKE) --no-print-directory dist
	@$(python) -m deploy.release

test-packages: ## the files of a release: unpacked, installed, upgraded, removed in a Debian of their own
	@$(MAKE) --no-print-directory interpreter dist
	@deploy/prerequisites.sh --packages
	$(sandboxed) -n 2 tests/packages tests/launcher

install: dist ## put dist/bin into DESTDIR CNI_BIN_DIR (/opt/cni/bin); ENGINE=systemd, on-demand or none
	@DESTDIR='$(DESTDIR)' CNI_BIN_DIR='$(CNI_BIN_DIR)' SHARE_DIR='$(SHARE_DIR)' ENGINE='$(ENGINE)' python3 -m agent.install install

uninstall: ## remove the files that install has put there
	@DESTDIR='$(DESTDIR)' CNI_BIN_DIR='$(CNI_BIN_DIR)' SHARE_DIR='$(SHARE_DIR)' python3 -m agent.install uninstall

.PHONY: image manifests
image: dist agent ## build/image/pycni.tar for Kubernetes, without a container engine; BASE=IMAGE for another base
	@deploy/prerequisites.sh --image
	@$(python) -m deploy.image.build $(if $(BASE),--base $(BASE))

manifests: venv ## write deploy/kubernetes/pycni.yaml anew after a change of its base
	$(python) -m deploy.manifests

bench: dist ## measure beside the Go plugins (BENCH_ROUNDS=100), write docs/benchmarks.md; some minutes
	@deploy/prerequisites.sh --reference
	tests/in-sandbox $(python) -m bench $(if $(BENCH_ROUNDS),--rounds $(BENCH_ROUNDS))

bench-quick: dist ## the same in half a minute, to see that it works: writes below build/, judges nothing
	@deploy/prerequisites.sh --reference
	tests/in-sandbox $(python) -m bench --quick --rounds 3 --no-verdict --output build/bench

.PHONY: bench-kubernetes
bench-kubernetes: dist ## from creation to Ready of 1, 30, 60 pods (BENCH_PODS=110,250) in the lab: docs/benchmarks-kubernetes.md
	@deploy/prerequisites.sh --reference
	@deploy/prerequisites.sh --kubernetes
	tests/in-sandbox $(python) -m tests.kubernetes.measure \
	    $(if $(BENCH_ROUNDS),--rounds $(BENCH_ROUNDS)) $(if $(BENCH_PODS),--add --pods $(BENCH_PODS))

schemas: venv ## write conf/schema/ anew after a change of a SCHEMA
	$(python) -m deploy.schemas

completion: venv ## write docs/completion/ and docs/man/ anew after a change of a verb's options
	$(python) -m deploy.completion

lock: ## write requirements.lock anew after a change of versions in pyproject.toml
	[[ -x .tools/uv/bin/uv ]] || { python3 -m venv .tools/uv && \
	    .tools/uv/bin/python -m pip install --quiet uv==0.13.8; }
	.tools/uv/bin/uv pip compile --quiet pyproject.toml --group dev --extra agent --universal \
	    --python-version 3.11 --generate-hashes --no-annotate \
	    --custom-compile-command "make lock" --output-file requirements.lock

clean: ## remove all that was made here
	rm -rf .venv .tools build dist *.egg-info .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
