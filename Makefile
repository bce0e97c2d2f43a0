# Two commands for a bare machine: `make run` captures into ./captures, `make test` runs every check.
# Both first install what is missing (tools/setup). `make install` and `make deb` are for a machine that keeps skbcapd;
# the rest are parts of `make test`, and `make bench`.

CONFIG = etc/skbcapd.yaml
DURATION =
KERNEL =

VENV = .venv/bin
AS_ROOT = tools/as-root
# No caches: root would leave files that their owner cannot remove.
PYTEST = $(AS_ROOT) env PYTHONDONTWRITEBYTECODE=1 SKBCAPD_VM_KERNELS="$(KERNEL)" $(VENV)/python -m pytest -p no:cacheprovider
C_SOURCES = $(shell find bpf bench -name "*.[ch]")

# Directories of `make install`. DESTDIR is prepended to each, for packages.
prefix = /usr/local
sysconfdir = /etc
bindir = $(prefix)/bin
pythondir = $(prefix)/lib/skbcapd
unitdir = $(prefix)/lib/systemd/system
sysusersdir = $(prefix)/lib/sysusers.d
mandir = $(prefix)/share/man
completionsdir = $(prefix)/share/bash-completion/completions
# Wireshark reads no files below /usr/local.
wireshark_libdir = /usr/lib/$(shell $(PYTHON) -c 'import sysconfig; print(sysconfig.get_config_var("MULTIARCH"))')/wireshark
wireshark_datadir = /usr/share/wireshark
# The Python of Debian has bcc and systemd.
PYTHON = /usr/bin/python3

.PHONY: run test setup setup-test lint format generate unit fuzz test-kernel test-vm soak bench bench-quick install
.PHONY: uninstall deb clean

run: setup
	$(AS_ROOT) $(VENV)/skbcapd run --config $(CONFIG) --set files.directory=./captures \
		$(if $(DURATION),--duration $(DURATION))

test: lint
	$(PYTEST) --no-skips

setup:
	@tools/setup run

setup-test:
	@tools/setup test

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

test-vm: setup-test
	$(PYTEST) tests/vm

soak: setup-test
	$(PYTEST) tests/kernel/soak.py

bench: setup-test
	$(AS_ROOT) $(VENV)/python -m bench

bench-quick: setup-test
	$(AS_ROOT) $(VENV)/python -m bench --quick

install uninstall:
	@prefix=$(prefix) sysconfdir=$(sysconfdir) bindir=$(bindir) pythondir=$(pythondir) unitdir=$(unitdir) \
		sysusersdir=$(sysusersdir) mandir=$(mandir) completionsdir=$(completionsdir) \
		wireshark_libdir=$(wireshark_libdir) wireshark_datadir=$(wireshark_datadir) PYTHON=$(PYTHON) DESTDIR=$(DESTDIR) tools/install $@

deb:
	tools/deb dist

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
