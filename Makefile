# What people and CI run. `make` lists the targets.
#
# On Debian and Ubuntu the tools that are missing are installed, which needs root; a machine that has
# them all needs neither. RocksDB is compiled once, which takes 10 to 15 minutes on two cores.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PREFIX ?= /usr/local
DESTDIR ?=
# Outside the source tree, so that a fresh checkout does not compile RocksDB again.
export CARGO_TARGET_DIR ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/rowd/target
RELEASE := $(CARGO_TARGET_DIR)/release

BUILD_PACKAGES := clang libclang-dev cmake pkg-config make g++
# The databases of the acceptance runs; each run starts a server of its own.
ACCEPTANCE_PACKAGES := mariadb-server postgresql shellcheck
DEMO_PACKAGES := libnbd-bin fuse3 e2fsprogs mount
DEB_PACKAGES := dpkg-dev binutils gzip
RPM_PACKAGES := binutils gzip
TEST_PACKAGES := nbdkit libnbd-bin python3-libnbd fio nbd-server qemu-utils xfsprogs e2fsprogs strace \
	fuse3 mount qemu-system-x86 debootstrap cpio binutils jq prometheus bsdutils zsh fish

.PHONY: help
help: ## Show this list
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

.PHONY: demo
demo: build ## See a file system survive its destruction: snapshot, damage, rollback in milliseconds
	@$(call need,$(DEMO_PACKAGES))
	tests/demo/demo.sh $(RELEASE)

.PHONY: test
test: build cargo-deb cargo-generate-rpm ## Run all tests: behaviour, model, kills, power cuts, seeded faults, other people's clients
	@$(call need,$(TEST_PACKAGES) $(ACCEPTANCE_PACKAGES) $(DEB_PACKAGES) $(RPM_PACKAGES))
	cargo test --release --workspace

# A seed that failed is given again: make soak SEED=17
KILLS ?= 5000
POWER_CUTS ?= 20000
SEED ?= $(shell date +%s)

.PHONY: soak
soak: build ## Thousands of kills and power cuts, for hours (KILLS, POWER_CUTS, SEED)
	$(RELEASE)/rowd-soak kill $(KILLS) $(SEED)
	$(RELEASE)/rowd-soak power $(POWER_CUTS) $(SEED)

.PHONY: bench
bench: build ## Compare with other NBD servers, and measure snapshots; writes the table of RESULTS.md
	@$(call need,$(TEST_PACKAGES))
	$(RELEASE)/rowd-bench

.PHONY: lint
lint: ## Check the format and let clippy look
	@$(call need,$(BUILD_PACKAGES))
	cargo fmt --all --check
	cargo clippy --release --workspace --all-targets -- -D warnings

.PHONY: fmt
fmt: ## Format the sources
	cargo fmt --all

.PHONY: install
install: release ## Install programs, units, man pages and completions (PREFIX, DESTDIR)
	@$(MAKE) --no-print-directory install-files

# Of programs that are built already, wherever they are.
PROGRAMS ?= $(RELEASE)
UNITS := rowd.service rowd-attach@.service
# Debian's packages have a directory of their own: vendor-completions.
ZSH_FUNCTIONS ?= site-functions
.PHONY: install-files
install-files:
	install -D -m 755 -t $(DESTDIR)$(PREFIX)/sbin $(PROGRAMS)/rowd $(PROGRAMS)/rowd-freeze
	install -D -m 755 -t $(DESTDIR)$(PREFIX)/bin $(PROGRAMS)/rowctl
	$(PROGRAMS)/rowctl --quiet man $(DESTDIR)$(PREFIX)/share/man/man1
	install -d $(DESTDIR)$(PREFIX)/share/man/man5 $(DESTDIR)$(PREFIX)/share/man/man8
	$(PROGRAMS)/rowd man > $(DESTDIR)$(PREFIX)/share/man/man8/rowd.8
	$(PROGRAMS)/rowd man rowd.toml > $(DESTDIR)$(PREFIX)/share/man/man5/rowd.toml.5
	install -d $(DESTDIR)$(PREFIX)/share/bash-completion/completions \
		$(DESTDIR)$(PREFIX)/share/zsh/$(ZSH_FUNCTIONS) $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d
	$(PROGRAMS)/rowctl completion bash > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/rowctl
	$(PROGRAMS)/rowctl completion zsh > $(DESTDIR)$(PREFIX)/share/zsh/$(ZSH_FUNCTIONS)/_rowctl
	$(PROGRAMS)/rowctl completion fish > $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/rowctl.fish
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	for unit in $(UNITS); do \
		sed 's|@PREFIX@|$(PREFIX)|g' systemd/$$unit > $(DESTDIR)$(PREFIX)/lib/systemd/system/$$unit; \
	done
	install -D -m 644 systemd/modprobe-nbd.conf \
		$(DESTDIR)$(PREFIX)/lib/systemd/system/modprobe@nbd.service.d/rowd.conf
	install -D -m 644 systemd/sysusers.conf $(DESTDIR)$(PREFIX)/lib/sysusers.d/rowd.conf
	install -D -m 644 systemd/modules-load.conf $(DESTDIR)$(PREFIX)/lib/modules-load.d/rowd.conf
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/lib/udev/rules.d systemd/61-rowd.rules
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/doc/rowd systemd/rowd.toml
	@# What the administrator has written stays.
	test -e $(DESTDIR)/etc/rowd/rowd.toml || \
		install -D -m 644 -t $(DESTDIR)/etc/rowd systemd/rowd.toml

.PHONY: uninstall
uninstall: ## Remove what install has installed; pools and /etc/rowd stay
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/,sbin/rowd sbin/rowd-freeze bin/rowctl \
		share/man/man8/rowd.8 share/man/man5/rowd.toml.5 share/bash-completion/completions/rowctl \
		share/zsh/$(ZSH_FUNCTIONS)/_rowctl share/fish/vendor_completions.d/rowctl.fish \
		$(addprefix lib/systemd/system/,$(UNITS)) lib/systemd/system/modprobe@nbd.service.d/rowd.conf \
		lib/sysusers.d/rowd.conf lib/modules-load.d/rowd.conf lib/udev/rules.d/61-rowd.rules share/doc/rowd/rowd.toml)
	rm -f $(DESTDIR)$(PREFIX)/share/man/man1/rowctl.1 $(DESTDIR)$(PREFIX)/share/man/man1/rowctl-*.1
	rmdir --ignore-fail-on-non-empty $(DESTDIR)$(PREFIX)/lib/systemd/system/modprobe@nbd.service.d || :

# Packages have the files of `make install`, below /usr and without debug information. They are packed from below the
# target directory; what else belongs into them is in daemon/Cargo.toml.
PACKAGE := $(RELEASE)/package
# Of this packaging of a version; counts from 1.
REVISION ?= 1

.PHONY: deb
deb: release ## Build a Debian package (REVISION)
	@$(MAKE) --no-print-directory deb-files

.PHONY: rpm
rpm: release ## Build an RPM package (REVISION)
	@$(MAKE) --no-print-directory rpm-files

# Of programs that are built already, as install-files. DEB_OPTIONS are options of cargo-deb.
DEB_OPTIONS ?=
.PHONY: deb-files
deb-files: cargo-deb
	@$(call need,$(DEB_PACKAGES))
	@$(MAKE) --no-print-directory package-files ZSH_FUNCTIONS=vendor-completions
	install -d $(PACKAGE)-deb
	packaging/debian/changelog.sh $(REVISION) | gzip -9n > $(PACKAGE)-deb/changelog.Debian.gz
	gzip -9nc CHANGELOG.md > $(PACKAGE)-deb/changelog.gz
	$(TOOLS)/bin/cargo-deb --quiet -p rowd --no-build --no-strip --no-dbgsym --deb-revision $(REVISION) $(DEB_OPTIONS)

# RPM_OPTIONS are options of cargo-generate-rpm.
RPM_OPTIONS ?=
.PHONY: rpm-files
rpm-files: cargo-generate-rpm
	@$(call need,$(RPM_PACKAGES))
	@$(MAKE) --no-print-directory package-files
	$(TOOLS)/bin/cargo-generate-rpm -p daemon --set-metadata 'release = "$(REVISION)"' $(RPM_OPTIONS)
	@ls $(CARGO_TARGET_DIR)/generate-rpm/*.rpm

.PHONY: package-files
package-files:
	rm -rf $(PACKAGE) $(PACKAGE)-deb
	$(MAKE) --no-print-directory install-files PREFIX=/usr DESTDIR=$(PACKAGE)
	strip --strip-unneeded --remove-section=.comment $(PACKAGE)/usr/sbin/rowd $(PACKAGE)/usr/sbin/rowd-freeze \
		$(PACKAGE)/usr/bin/rowctl
	find $(PACKAGE)/usr/share/man -type f -exec gzip -9n {} +
	install -D -m 644 -t $(PACKAGE)/usr/lib/rowd packaging/in-use

# Tools that cargo builds, kept outside the source tree and the target directory. Theirs is removed again.
TOOLS := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/rowd/tools
cargo-deb: VERSION := 3.8.0
cargo-generate-rpm: VERSION := 0.21.1
.PHONY: cargo-deb cargo-generate-rpm
cargo-deb cargo-generate-rpm:
	@[[ $$($(TOOLS)/bin/$@ --version 2> /dev/null) == "$@ $(VERSION)" ]] || \
		cargo install --locked --quiet --root $(TOOLS) --target-dir $(TOOLS)/target --version $(VERSION) $@
	@rm -rf $(TOOLS)/target

# The tests turn on the feature `faults`, and building all crates at once gives it to rowd too. So the
# two programs are built once more, alone: what is tested, measured and installed has no fail points.
.PHONY: build
build:
	@$(call need,$(BUILD_PACKAGES))
	cargo build --release --workspace
	cargo build --release -p rowd -p rowctl

.PHONY: release
release:
	@$(call need,$(BUILD_PACKAGES))
	cargo build --release -p rowd -p rowctl

# Installs those of the packages that are missing; says so on machines where it cannot. Packages from
# several suites may be refused in one call and accepted one after the other.
define need
missing=; for package in $(1); do \
	[[ $$(dpkg-query -W -f '$${db:Status-Status}' $$package 2>/dev/null) == installed ]] || missing+=" $$package"; \
done; \
if [[ $$missing ]] && ! command -v apt-get > /dev/null; then \
	echo "This is not Debian or Ubuntu; going on without knowing whether there is:$$missing"; \
elif [[ $$missing && $$EUID != 0 ]]; then \
	echo "As root: apt-get install$$missing"; exit 1; \
elif [[ $$missing ]]; then \
	apt-get update -qq; export DEBIAN_FRONTEND=noninteractive; \
	get="apt-get install -y -qq --no-install-recommends"; \
	$$get $$missing || for package in $$missing; do \
		$$get $$package || { echo "apt-get cannot install $$package"; exit 1; }; \
	done; \
fi
endef
