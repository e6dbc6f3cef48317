# SPDX-License-Identifier: Apache-2.0

GO      ?= go
DEPS    ?= .ci/deps

PREFIX      ?= /usr/local
BINDIR      ?= $(PREFIX)/bin
UNITDIR     ?= $(PREFIX)/lib/systemd/system
CNI_BIN_DIR ?= /opt/cni/bin
SYSCONFDIR  ?= /etc

GOLANGCI_LINT_VERSION := v2.15.0
GOLANGCI_LINT := bin/tools/golangci-lint-$(GOLANGCI_LINT_VERSION)
CLANG_FORMAT  := clang-format-19

# TESTFLAGS go to go test, KERNEL (5.10, 6.1, 6.12 or 7) and KERNELFLAGS to test/kernels, with KERNEL_DIRS.
TESTFLAGS   ?=
KERNEL      ?=
KERNELFLAGS ?=
# Not empty to use the machines of the Vagrantfile.
VAGRANT     ?=
# FUZZ chooses fuzz tests by name, FUZZTIME is for each.
FUZZ        ?= .
FUZZTIME    ?= 30s
STORIES     ?= 1000000
# SOAKTIME is how long the load lasts, SOAKFLAGS go to test/soak.
SOAKTIME    ?= 1h
SOAKFLAGS   ?=

# The folders whose tests run on every kernel of the matrix.
KERNEL_DIRS := test/kernels/selftest pkg/datapath pkg/maps pkg/wiring pkg/uplink test/e2e
# What they run besides the tools that each machine has: a DHCP server and a client for it.
KERNEL_TOOLS := /usr/sbin/dnsmasq /usr/lib/cni/dhcp

C_FILES := $(wildcard bpf/*.c bpf/*.h bpf/lib/*.h)
SCRIPTS := $(wildcard .ci/run .ci/deps test/demo/run test/demo/story test/bench/run)
UNITS   := $(wildcard deploy/*.service deploy/*.socket)

# The go command stamps the version, which it takes from the tags of the repository, if this is one.
BUILD := CGO_ENABLED=0 $(GO) build -trimpath -ldflags='-s -w' \
	-buildvcs=$(if $(shell git rev-parse HEAD 2>/dev/null),true,false)

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-22s %s\n", $$1, $$2 }' Makefile

.PHONY: build
build: ## build bin/tendril-agent, bin/tendril-cni and bin/tendril
	$(BUILD) -o bin/tendril-agent ./cmd/agent
	$(BUILD) -o bin/tendril-cni ./cmd/cni
	$(BUILD) -o bin/tendril ./cmd/tendril

.PHONY: deps
deps: ## install the packages that all other targets need (Debian, Ubuntu; as root)
	$(DEPS)

.PHONY: generate
generate: ## compile bpf/ and generate the Go code for it
	$(DEPS) generate
	$(GO) generate ./...

# Compares with what was there before rather than with the last commit, so that
# it also serves in a tree with changes.
.PHONY: check-generate
check-generate: ## fail when generated files are not what their sources make
	@before=$$(mktemp) && trap 'rm -f "$$before"' EXIT && $(call checksums) >"$$before" && \
	$(MAKE) --no-print-directory generate && \
	{ $(call checksums) | diff "$$before" - || { echo "generated files differ from their sources: run make generate" >&2; exit 1; }; }
checksums = find . -path ./.git -prune -o \( -name '*_bpfel.*' -o -name '*_string.go' \) -print0 | sort -z | xargs -0r sha256sum

.PHONY: lint
lint: $(GOLANGCI_LINT) ## check Go, C and shell code
	$(DEPS) lint
	$(GOLANGCI_LINT) run ./...
	$(GO) vet -tags failpoint ./...
	$(CLANG_FORMAT) --dry-run -Werror $(C_FILES)
	shellcheck $(SCRIPTS)

.PHONY: fmt
fmt: $(GOLANGCI_LINT) ## format Go and C code
	$(DEPS) lint
	$(GOLANGCI_LINT) fmt
	$(CLANG_FORMAT) -i $(C_FILES)

$(GOLANGCI_LINT):
	GOBIN=$(CURDIR)/bin/tools $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT_VERSION)
	mv bin/tools/golangci-lint $@

.PHONY: check
check: ## run the tests that need no privilege
	$(GO) test $(TESTFLAGS) ./...

.PHONY: test
test: ## run every test (as root)
	$(DEPS) build test
	TENDRIL_TEST_PRIVILEGED=1 $(GO) test -race -timeout 25m $(TESTFLAGS) ./...

.NOTPARALLEL: test-kernels
.PHONY: test-kernels
test-kernels: test-kernels-single $(if $(KERNEL)$(VAGRANT),,test-kernels-wire) ## run the matrix: tests on other kernels, in virtual machines (VAGRANT=1: those of the Vagrantfile)

.PHONY: test-kernels-single
test-kernels-single: build-failpoint ## run the tests of programs, maps, wiring, uplinks and whole journeys on other kernels
	$(if $(VAGRANT),,$(DEPS) kernels)
	$(GO) run ./test/kernels $(on-kernel) $(addprefix -tool ,$(KERNEL_TOOLS)) $(KERNELFLAGS) $(with-programs) \
	 $(patsubst %/,./%,$(sort $(dir $(wildcard $(KERNEL_DIRS:=/*_test.go)))))

.PHONY: test-kernels-wire
test-kernels-wire: build-failpoint ## run two nodes of different kernels on one wire, such as KERNEL=5.10+7
	$(DEPS) kernels
	$(GO) run ./test/kernels -wire $(on-kernel) $(KERNELFLAGS) $(with-programs) ./test/wire

.PHONY: build-failpoint
build-failpoint: build
	$(BUILD) -tags failpoint -o bin/failpoint/tendril-agent ./cmd/agent
	$(BUILD) -tags failpoint -o bin/failpoint/tendril-cni ./cmd/cni
# What machines that run nodes need besides the test binary.
with-programs = $(addprefix -with bin/,tendril-agent tendril-cni tendril failpoint)
on-kernel = $(if $(VAGRANT),-vagrant) $(if $(KERNEL),-kernel $(KERNEL))

.PHONY: mutations
mutations: ## put faults into the programs, one by one, and see that a test catches each (as root)
	$(DEPS) generate test
	$(GO) run ./test/mutations

.PHONY: stories
stories: ## show the programs mutated packets for ten minutes, always the same, and judge what becomes of them (as root)
	$(tell-stories) -timeout 12m -run '^TestStories$$' ./pkg/datapath
	$(tell-stories) -timeout 5m -run '^TestTownStories$$' ./pkg/datapath
tell-stories = TENDRIL_TEST_PRIVILEGED=1 TENDRIL_TEST_STORIES=$(STORIES) $(GO) test -v -count=1

.PHONY: soak
soak: build ## load and disturb a node for SOAKTIME, then see that nothing leaked and no flow was mistranslated (as root)
	$(DEPS) test
	$(BUILD) -o bin/soak ./test/soak
	bin/soak -for $(SOAKTIME) $(SOAKFLAGS)

.PHONY: fuzz
fuzz: ## run each fuzz test whose name matches FUZZ for FUZZTIME (as root)
	@grep -rl --include='*_test.go' '^func Fuzz' . | xargs -r -n 1 dirname | sort -u | while read -r dir; do \
		for name in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\).*/\1/p' $$dir/*_test.go | grep -- '$(FUZZ)'); do \
			echo "=== $$dir $$name"; \
			TENDRIL_TEST_PRIVILEGED=1 $(GO) test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) $$dir </dev/null || exit 1; \
		done; \
	done

.PHONY: bench
bench: build ## measure the datapath and compare it with the reference plugins (as root)
	$(DEPS) bench
	./test/bench/run

.PHONY: demo
demo: build ## show containers of Podman talking, in namespaces of their own (as root)
	$(DEPS) demo
	./test/demo/run

.PHONY: install
install: build ## install the programs and systemd units under PREFIX, the plugin in CNI_BIN_DIR, a configuration where there is none
	install -d $(DESTDIR)$(BINDIR) $(DESTDIR)$(CNI_BIN_DIR) $(DESTDIR)$(UNITDIR)
	install bin/tendril-agent bin/tendril $(DESTDIR)$(BINDIR)
	install bin/tendril-cni $(DESTDIR)$(CNI_BIN_DIR)
	if [ ! -e $(DESTDIR)$(SYSCONFDIR)/tendril/agent.yaml ]; then \
		install -D -m 644 deploy/agent.yaml $(DESTDIR)$(SYSCONFDIR)/tendril/agent.yaml; fi
	for unit in $(notdir $(UNITS)); do \
		sed -e 's|/usr/local/bin|$(BINDIR)|' -e 's|/etc/tendril|$(SYSCONFDIR)/tendril|' deploy/$$unit >$(DESTDIR)$(UNITDIR)/$$unit || exit 1; \
	done
	if [ $(LIVE) ]; then systemctl daemon-reload; fi

.PHONY: uninstall
uninstall: ## stop the agent, clear its programs and maps, remove what install put
	for unit in $(notdir $(UNITS)); do \
		if [ $(LIVE) ] && [ -e $(UNITDIR)/$$unit ]; then systemctl disable --now $$unit || exit 1; fi; \
	done
	if [ -z "$(DESTDIR)" ] && [ -x $(BINDIR)/tendril-agent ]; then \
		config=$(SYSCONFDIR)/tendril/agent.yaml; $(BINDIR)/tendril-agent cleanup $$([ -e $$config ] && echo --config $$config); fi
	rm -f $(DESTDIR)$(BINDIR)/tendril-agent $(DESTDIR)$(BINDIR)/tendril $(DESTDIR)$(CNI_BIN_DIR)/tendril-cni \
		$(addprefix $(DESTDIR)$(UNITDIR)/,$(notdir $(UNITS)))
	if cmp -s deploy/agent.yaml $(DESTDIR)$(SYSCONFDIR)/tendril/agent.yaml; then \
		rm $(DESTDIR)$(SYSCONFDIR)/tendril/agent.yaml; rmdir --ignore-fail-on-non-empty $(DESTDIR)$(SYSCONFDIR)/tendril; fi
	if [ $(LIVE) ]; then systemctl daemon-reload; fi

# Not empty when this system, and not a tree to be packed, is installed to and runs systemd.
LIVE = $(if $(DESTDIR),,$(wildcard /run/systemd/system))

.PHONY: clean
clean: ## remove what was built
	rm -rf bin
