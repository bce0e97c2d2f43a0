# Two commands for a bare machine: `make run` captures into ./captures, `make test` runs the checks of this kernel.
# Both first install what is missing (tools/setup). `make test-all` runs the other checks, too: virtual machines with
# other kernels, clean Debian systems, the package. `make install` and `make deb` are for a machine that keeps skbcapd;
# the rest are parts of those (CONTRIBUTING.md), and `make bench`.

CONFIG = etc/skbcapd.yaml
DURATION =
KERNEL =
NO_SKIPS =
# With sudo, the captures of `make run` belong to the user who runs it.
OWNER = $(if $(filter-out 0,$(shell id -u)),--set files.owner=$(shell id -u):$(shell id -g))
COVERED = tests/unit tests/golden tests/kernel

VENV = .venv/bin
AS_ROOT = tools/as-root
# No caches: root would leave files that their owner cannot remove.
PYTEST = $(AS_ROOT) env PYTHONDONTWRITEBYTECODE=1 SKBCAPD_VM_KERNELS="$(KERNEL)" $(VENV)/python -m pytest -p no:cacheprovider $(NO_SKIPS)
C_SOURCES = $(shell find bpf bench -name "*.[ch]")

# Directories of `make install`. DESTDIR is prepended to each, for packages.
prefix = /usr/local
sysconfdir = /etc
bindir = $(prefix)/bin
pythondir = $(prefix)/lib/skbcapd
unitdir = $(prefix)/lib/systemd/system
sysusersdir = $(prefix)/lib/sysusers.d
mandir = $(prefix)/share/man
docdir = $(prefix)/share/doc/skbcapd
completionsdir = $(prefix)/share/bash-completion/completions
# Wireshark reads no files below /usr/local.
wireshark_libdir = /usr/lib/$(shell $(PYTHON) -c 'import sysconfig; print(sysconfig.get_config_var("MULTIARCH"))')/wireshark
wireshark_datadir = /usr/share/wireshark
# The Python of Debian has bcc and systemd.
PYTHON = /usr/bin/python3

.PHONY: run fleet test test-all setup setup-test setup-fleet test-fleet lint format generate unit fuzz test-kernel test-faults test-many test-package test-vm
.PHONY: test-beside-stream soak coverage bench bench-quick screenshots install uninstall deb rpm image clean check-unit check-unit-rest check-golden vm-oldest vm-newest vm-further vm-others vm-arm64

run: setup
	@mkdir -p -m 750 captures
	$(AS_ROOT) $(VENV)/skbcapd run --config $(CONFIG) --set files.directory=./captures $(OWNER) \
		$(if $(DURATION),--duration $(DURATION))

# A skipped test is a failed run. What needs no kernel program runs on both processors. The kernel tests have the machine
# to themselves: they measure, and have deadlines.
test: NO_SKIPS = --no-skips
test: setup-test
	$(MAKE) --no-print-directory --jobs=3 --output-sync=target check-golden check-unit check-unit-rest lint NO_SKIPS=$(NO_SKIPS)
	$(PYTEST) -m "not faults" tests/kernel

# In two halves, because many of them wait for a time.
check-unit: setup-test
	$(PYTEST) $(sort $(wildcard tests/unit/test_[a-l]*.py))

check-unit-rest: setup-test
	$(PYTEST) tests/unit --ignore-glob="*/test_[a-l]*.py"

check-golden: setup-test
	$(PYTEST) tests/golden tests/package/test_manual.py

# All that `make test` leaves out or does in part only.
test-all: test
	$(MAKE) --no-print-directory --keep-going test-fleet test-faults test-many test-package test-vm NO_SKIPS=--no-skips

setup:
	@tools/setup run

setup-test:
	@tools/setup test

setup-fleet:
	@tools/setup fleet

# `skbcapd fleet`, with its libraries.
test-fleet: setup-fleet
	PYTHONDONTWRITEBYTECODE=1 .venv-fleet/bin/python -m pytest -p no:cacheprovider $(NO_SKIPS) tests/fleet

# A fleet of 200 hosts on this machine, from nothing to the packets of one question (docs/fleet.md).
fleet: setup-fleet
	PYTHONDONTWRITEBYTECODE=1 .venv-fleet/bin/python -m tools.fleet_trial

lint: setup-test
	$(VENV)/ruff format --check
	$(VENV)/ruff check
	$(VENV)/mypy
	$(if $(C_SOURCES),$(VENV)/clang-format --dry-run -Werror $(C_SOURCES))

format: setup-test
	$(VENV)/ruff format
	$(VENV)/ruff check --fix
	$(if $(C_SOURCES),$(VENV)/clang-format -i $(C_SOURCES))

generate: setup-test
	$(VENV)/python -m tools.manual

unit: setup-test
	$(VENV)/python -m pytest -p no:cacheprovider tests/unit tests/golden

# Tests of all code that reads untrusted data, with many examples; takes some minutes.
fuzz: setup-test
	SKBCAPD_HYPOTHESIS=fuzz $(VENV)/python -m pytest -p no:cacheprovider -m fuzz tests/unit

test-kernel: setup-test
	$(PYTEST) tests/kernel

# What goes wrong on a production host, on purpose.
test-faults: setup-test
	$(PYTEST) -m faults tests/kernel

# The tests that try something many times, with all their tries (tests/support/amount.py).
test-many: setup-test
	$(AS_ROOT) env SKBCAPD_TRIES=all $(PYTEST) -m many tests/golden tests/kernel

test-package: setup-test
	@tools/setup browser
	@tools/setup image
	@tools/setup ansible
	$(PYTEST) tests/package

# Two machines at once: each is emulated by one thread (tests/vm/boot.py). The longest first, so that both end together.
test-vm: setup-test
	$(MAKE) --no-print-directory --jobs=2 --output-sync=target --keep-going \
		vm-oldest vm-newest vm-arm64 vm-further vm-others NO_SKIPS=$(NO_SKIPS)

vm-oldest: setup-test
	$(PYTEST) tests/vm -k "test_kernels and not newest"

vm-newest: setup-test
	$(PYTEST) tests/vm -k "test_kernels and newest"

vm-further: setup-test
	$(PYTEST) tests/vm -k test_further

vm-others: setup-test
	$(PYTEST) tests/vm -k "not test_kernels and not test_further and not test_arm64"

vm-arm64: setup-test
	$(PYTEST) tests/vm -k test_arm64

# Other traffic on the machine disturbs no test.
test-beside-stream: setup-test
	$(AS_ROOT) $(VENV)/python -m tests.support.beside_stream $(PYTEST) tests/kernel

# Branch coverage by the tests that need no virtual machine; the report ends with the sum, also if a test failed. Data
# of children that a test killed is missing or broken: coverage says so.
coverage: setup-test
	$(AS_ROOT) rm -rf build/coverage
	mkdir -p build/coverage
	$(AS_ROOT) env PYTHONDONTWRITEBYTECODE=1 $(VENV)/python -m coverage run -m pytest -p no:cacheprovider $(COVERED); \
		code=$$?; \
		$(AS_ROOT) $(VENV)/python -m coverage combine --quiet; \
		$(AS_ROOT) $(VENV)/python -m coverage report; \
		exit $$code

soak: setup-test
	$(PYTEST) tests/kernel/soak.py

bench: setup-test
	$(AS_ROOT) $(VENV)/python -m bench

bench-quick: setup-test
	$(AS_ROOT) $(VENV)/python -m bench --quick

# The pictures of the documentation; needs no display.
screenshots: setup-test
	@tools/setup browser
	$(AS_ROOT) tools/screenshots docs

install uninstall:
	@prefix=$(prefix) sysconfdir=$(sysconfdir) bindir=$(bindir) pythondir=$(pythondir) unitdir=$(unitdir) \
		sysusersdir=$(sysusersdir) mandir=$(mandir) docdir=$(docdir) completionsdir=$(completionsdir) \
		wireshark_libdir=$(wireshark_libdir) wireshark_datadir=$(wireshark_datadir) PYTHON=$(PYTHON) DESTDIR=$(DESTDIR) tools/install $@

deb:
	tools/deb dist

rpm:
	tools/rpm dist

image:
	tools/image dist

clean:
	rm -rf .venv .venv-fleet build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
