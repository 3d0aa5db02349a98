# make help lists the targets.

SHELL      := /bin/bash
VERSION    ?= $(shell git describe --tags --match 'v[0-9]*' --always --dirty 2>/dev/null || echo devel)
GO_BUILD   = CGO_ENABLED=0 go build -trimpath -ldflags '-s -w -X main.version=$(VERSION)'
STATICCHECK = go run honnef.co/go/tools/cmd/staticcheck@v0.8.2
NFPM        = go run github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.45.2
GOTESTSUM   = go run gotest.tools/gotestsum@v1.13.0

# What "make packages" builds, and where: make packages ARCHITECTURES=amd64 builds for one. What is in
# packages is as old as the commit.
ARCHITECTURES     ?= amd64 arm64
PACKAGES          ?= bin
SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || date +%s)

# Debian packages that each target installs by itself, and FTP servers that exclude each other as packages:
# these are only unpacked.
DEMO_PACKAGES      := nftables curl kmod
LAB_PACKAGES       := $(DEMO_PACKAGES) conntrack lftp tcpdump
RACE_PACKAGES      := gcc libc6-dev
UNIT_PACKAGES      := $(RACE_PACKAGES) netbase iproute2 procps nftables iptables conntrack kmod libnetfilter-queue-dev systemd
INSTALLED_PACKAGES := $(RACE_PACKAGES) mandoc man-db bash-completion lintian rpm systemd
NETNS_PACKAGES     := $(LAB_PACKAGES) $(UNIT_PACKAGES) bsdutils busybox-static \
	tnftp ncftp inetutils-ftp ftp-ssl wget aria2 rclone perl python3 python3-pyftpdlib python3-aioftp default-jre-headless:java bsh \
	ufw firewalld shorewall shorewall6 docker.io:dockerd
KUBERNETES_PACKAGES := $(LAB_PACKAGES) podman podman-compose runc:runc catatonit
KERNELS_PACKAGES   := $(LAB_PACKAGES) $(UNIT_PACKAGES) bsdutils $(shell cat test/vm/packages)
SERVERS            := vsftpd pure-ftpd proftpd-core inetutils-ftpd ftpd-ssl
BENCH_PACKAGES     := nftables conntrack kmod gcc libc6-dev libnetfilter-queue-dev
BENCH_VM_PACKAGES  := $(BENCH_PACKAGES) conntrackd nfct $(shell cat test/vm/packages)

# How long each fuzz target runs: a count, as "go test" takes the end of a time for a
# failure when the machine is busy.
FUZZTIME ?= 30000x
# Stock Debian kernels to test on.
KERNELS ?= 6.1 6.12

# Only some tests: of the packages PKG those that RUN matches, such as
# make netns PKG=./test/netns RUN=TestMatrix
RUN ?=
PKG ?=
# How the tests of a target run: "go test", its closing lines as Go prints them, a summary at the end; the events
# are kept for test/stages.
FORMAT  ?= standard-quiet
GO_TEST = $(GOTESTSUM) --format $(FORMAT) --hide-summary skipped --jsonfile $(CURDIR)/bin/test/$@.json -- $(RUN:%=-run '%')

# The image that "make image" builds, and with what: podman or docker.
IMAGE     ?= localhost/nfq-ftphelper:devel
CONTAINER ?= podman

# More for bench, such as BENCH_FLAGS="-rounds 20".
BENCH_FLAGS ?=

.PHONY: help build packages packages-files image demo test test-kernels test-bare lint unit installed fuzz netns kubernetes sum-up bench bench-vm bench-build clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build bin/nfq-ftphelper, a static binary
	$(GO_BUILD) -o bin/nfq-ftphelper ./cmd/nfq-ftphelper

packages: $(ARCHITECTURES:%=packages-%) ## build a deb and an rpm for each of ARCHITECTURES (amd64 arm64), in bin/

packages-%: packages-files
	GOARCH=$* $(GO_BUILD) -o bin/package/$*/nfq-ftphelper ./cmd/nfq-ftphelper
	@for format in deb rpm; do \
		SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH) ARCH=$* PACKAGE_VERSION=$$(cat bin/package/version) \
			$(NFPM) package -f deploy/package/nfpm.yaml -p $$format -t $(PACKAGES)/ || exit 1; \
	done

packages-files:
	@mkdir -p $(PACKAGES)
	SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH) deploy/package/files bin/package '$(VERSION)'

image: build ## build the container image IMAGE, of bin/nfq-ftphelper
	$(CONTAINER) build --build-arg VERSION=$(VERSION) --tag $(IMAGE) --file Containerfile .

demo: ## show the main job on this machine, in network namespaces (root)
	@test/require 'make demo'
	@test/install $(DEMO_PACKAGES)
	@test/unpack vsftpd
	@echo 'building the daemon and the demo'
	@$(MAKE) --no-print-directory --silent build
	@go run ./test/netns/demo -daemon bin/nfq-ftphelper

test: ## all that this machine's kernel can show: lint, unit, installed, fuzz, netns, kubernetes (root)
	@test/require 'make test'
	@test/stages lint unit installed fuzz netns kubernetes

test-kernels: ## the tests on stock Debian kernels, in virtual machines (root)
	@test/require 'make test-kernels'
	@test/stages $(KERNELS:%=kernel-%)

test-bare: ## the demo and some tests on a bare Debian: what is not installed shows there (root)
	@test/require 'make test-bare'
	@test/bare-check

lint: ## formatting, vet, staticcheck
	@unformatted=$$(gofmt -l .); [[ -z $$unformatted ]] || { echo "gofmt would change: $$unformatted" >&2; exit 1; }
	go mod tidy -diff
	go vet ./...
	$(STATICCHECK) ./...
	go vet -tags manual ./cmd/...
	$(STATICCHECK) -tags manual ./cmd/...
	cd deploy/kubernetes/test && go mod tidy -diff && go vet ./... && $(STATICCHECK) ./...

unit: bin/test ## the packages' own tests, with the race detector (root)
	@test/install $(UNIT_PACKAGES)
	$(GO_TEST) -race $(or $(PKG),./cmd/... ./deploy/systemd/... ./internal/... ./pkg/... ./rules/...)
	$(if $(RUN),,go test -run '^$$' -bench . -benchtime 1x ./internal/... ./pkg/...)

installed: bin/test ## the packages, installed and removed with dpkg and rpm (root)
	@test/install $(INSTALLED_PACKAGES)
	$(GO_TEST) -race -count 1 ./deploy/package/...

fuzz: ## every fuzz target for FUZZTIME
	@for package in $$(go list ./...); do \
		for target in $$(go test -list '^Fuzz' $$package | grep ^Fuzz); do \
			echo "$$package $$target" && go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$package || exit 1; \
		done; \
	done

netns: bin/test ## real clients and servers through NAT, on this kernel (root)
	@test/install $(NETNS_PACKAGES)
	@test/unpack $(SERVERS)
	$(GO_TEST) -race -count 1 -timeout 20m $(or $(PKG),./test/netns/... ./bench)

kubernetes: bin/test ## the manifests, rendered and run by podman, on this kernel (root)
	@test/install $(KUBERNETES_PACKAGES)
	@test/unpack vsftpd
	cd deploy/kubernetes/test && $(GO_TEST) -count 1 ./...

# About FTP programs, and about TCP senders whose timers a stall of the emulator upsets; neither is
# about the router's kernel.
KERNEL_SKIP := ^(TestPrograms|TestByteWrites|TestNagle)$$
KERNEL_PKG  := ./rules ./internal/confine ./internal/cthelper ./internal/doctor ./internal/nfq ./pkg/expect ./test/netns ./test/systemd

# A virtual machine for each package. A test that hangs ends its machine only; -short leaves out what takes an emulator
# too long.
kernel-%: FORMAT = testname
kernel-%: build bin/test
	@test/install $(KERNELS_PACKAGES)
	@test/unpack vsftpd
	FTPHELPER_BIN=$(CURDIR)/bin/nfq-ftphelper \
		$(GO_TEST) -short -count 1 -p 1 -timeout 0 -skip '$(KERNEL_SKIP)' -exec "$(CURDIR)/test/vm/run $*" $(or $(PKG),$(KERNEL_PKG))

# For test/stages: the summary of what several targets have run.
sum-up:
	@$(GOTESTSUM) --format pkgname --format-icons text --raw-command -- cat $(EVENTS)

bin/test:
	@mkdir -p $@

bench: ## measure FTP helpers side by side, on this kernel: bench/results (root)
	@test/install $(BENCH_PACKAGES)
	@$(MAKE) --no-print-directory bench-build
	bin/bench $(BENCH_FLAGS)

bench-vm: ## the same on stock Debian kernels in an emulator, conntrackd's helper among them (root)
	@test/install $(BENCH_VM_PACKAGES)
	@$(MAKE) --no-print-directory bench-build $(KERNELS:%=bench-vm-%)

# What the guest writes is gone with it, so the raw data comes through its standard output.
bench-vm-%: bench-build
	VM_SILENCE=3600 \
		test/vm/run $* bin/bench -stock -rounds 3 -connections 100 $(BENCH_FLAGS) -out - >bin/bench-$*.json
	bin/bench -render bin/bench-$*.json

bench-build: build
	CGO_ENABLED=0 go build -trimpath -o bin/bench ./bench
	gcc -O2 -Wall -Wextra -Werror -o bin/accept bench/accept/accept.c -lnetfilter_queue

clean: ## remove what was built
	rm -rf bin
