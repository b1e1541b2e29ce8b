SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# Everything that is installed for building and testing stays in .cache,
# but for Debian's packages.
CACHE := $(CURDIR)/.cache
TOOLS := $(CACHE)/bin
VENV  := $(CACHE)/venv

GOLANGCI_LINT_VERSION := v2.15.0
GOTESTSUM_VERSION     := v1.13.0
VERSITYGW_VERSION     := v1.8.0
MOTO_VERSION          := 5.2.5

# The order in which a fault shows soonest.
CHECKS := deps fmt-check lint build cross-build bench-check

##@ Using it
.PHONY: dev
dev: build ## Run a demonstration with everything embedded; ARGS="…" are its flags
	bin/ownbucket dev $(ARGS)

.PHONY: build
build: ## Build the programs into bin/
	go build -o bin/ ./cmd/...

##@ Working on it
.PHONY: quick
quick: ## Test what changed, without the race detector and the end-to-end tests
	go vet ./...
	go test -short $$(go list ./... | grep -vE '/(e2e|bench)(/|$$)')

.PHONY: fmt
fmt: $(TOOLS)/.golangci-lint-$(GOLANGCI_LINT_VERSION) ## Format the code
	$(TOOLS)/golangci-lint fmt

.PHONY: lint
lint: $(TOOLS)/.golangci-lint-$(GOLANGCI_LINT_VERSION) ## Look for faults and for imports that point upwards
	go vet ./...
	$(TOOLS)/golangci-lint run --allow-parallel-runners

.PHONY: test
test: ## Everything that CI does: install, check, build, and all tests with the race detector
	@for check in $(CHECKS); do \
		echo "== $$check"; started=$$SECONDS; \
		$(MAKE) --no-print-directory $$check; \
		echo "== $$check: $$((SECONDS - started)) s"; \
	done
	@$(MAKE) --no-print-directory test-race

.PHONY: test-race
test-race: ## All tests with the race detector; PACKAGES="./…" for some
	@echo "== test"
	PATH="$(TOOLS):$$PATH" $(TOOLS)/gotestsum --format pkgname-and-test-fails --format-hide-empty-pkg \
		--post-run-command "$(CURDIR)/.ci/summary" -- \
		-race -timeout 20m $(or $(PACKAGES),./...)

DURATION ?= 10m
.PHONY: soak
soak: deps ## Kill, stop, restart and drain real workers under load, for DURATION (10m) each
	go build -race -o $(CACHE)/soak/ownbucket-race ./cmd/ownbucket
	OWNBUCKET_TEST_PROGRAM=$(CACHE)/soak/ownbucket-race OWNBUCKET_SOAK=$(DURATION) \
		go test -race -count=1 -parallel=1 -timeout=0 -v -run '^(TestNothingIsLost|TestARollingRestart)' ./e2e
	# The race detector keeps memory of every goroutine that there ever was.
	go build -o $(CACHE)/soak/ownbucket ./cmd/ownbucket
	OWNBUCKET_TEST_PROGRAM=$(CACHE)/soak/ownbucket OWNBUCKET_SOAK=$(DURATION) \
		go test -race -count=1 -timeout=0 -v -run '^TestWhatAWorkerHasOpen' ./e2e

.PHONY: histories
histories: postgresql ## Hold random histories against a model, one after the other, for DURATION (10m)
	OWNBUCKET_HISTORIES=$(DURATION) go test -race -count=1 -timeout=0 -v ./e2e/history

.PHONY: fmt-check
fmt-check:
	@unformatted=$$(gofmt -l $$(go list -f '{{.Dir}}' ./...)); \
	if [ -n "$$unformatted" ]; then echo "run make fmt for:"; echo "$$unformatted"; exit 1; fi

.PHONY: cross-build
cross-build: ## Build for another platform, without C
	CGO_ENABLED=0 GOOS=linux GOARCH=arm64 go build -o /dev/null ./cmd/ownbucket

.PHONY: bench
bench: ## Measure it beside River and watermill-sql (about an hour); ARGS="-only REGEXP" for some
	cd bench && go run . $(ARGS)

.PHONY: bench-quick
bench-quick: ## The same with small sizes, for a look
	cd bench && go run . -scale small $(ARGS)

# A module of its own, so that who uses ours doesn't depend on what it is compared with.
.PHONY: bench-check
bench-check: $(TOOLS)/.golangci-lint-$(GOLANGCI_LINT_VERSION)
	cd bench && go vet ./... && go build -o /dev/null . && $(TOOLS)/golangci-lint run --allow-parallel-runners

.PHONY: clean
clean: ## Remove what was built; make clean-cache removes what was installed, too
	rm -rf bin coverage.out

.PHONY: clean-cache
clean-cache: clean
	rm -rf $(CACHE)

##@ What tests need
.PHONY: deps
deps: ## Install what is missing: PostgreSQL, linter, test runner, AWS stand-ins
deps: postgresql pgbouncer \
	$(TOOLS)/.golangci-lint-$(GOLANGCI_LINT_VERSION) \
	$(TOOLS)/.gotestsum-$(GOTESTSUM_VERSION) \
	$(TOOLS)/.versitygw-$(VERSITYGW_VERSION) \
	$(VENV)/.moto-$(MOTO_VERSION)

# Found in the places where internal/pgtest looks.
.PHONY: postgresql
postgresql:
	@command -v postgres >/dev/null || [ -x "$${PGBIN:-}/postgres" ] \
		|| compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null \
		|| .ci/apt-install postgresql

.PHONY: pgbouncer
pgbouncer:
	@command -v pgbouncer >/dev/null || [ -x /usr/sbin/pgbouncer ] || .ci/apt-install pgbouncer

# The file that marks a version as installed is made last.
$(TOOLS)/.golangci-lint-%:
	GOBIN=$(TOOLS) go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$*
	@touch $@

$(TOOLS)/.gotestsum-%:
	GOBIN=$(TOOLS) go install gotest.tools/gotestsum@$*
	@touch $@

$(TOOLS)/.versitygw-%:
	GOBIN=$(TOOLS) go install github.com/versity/versitygw/cmd/versitygw@$*
	@touch $@

$(VENV)/.moto-%:
	rm -rf $(VENV)
	python3 -m venv $(VENV) || { rm -rf $(VENV); .ci/apt-install python3-venv; python3 -m venv $(VENV); }
	$(VENV)/bin/pip install --quiet 'moto[server]==$*'
	@touch $@

.PHONY: help
help:
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@/ { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
