# icapgate; `make help` lists the targets.

# Tools of the exact version that CI uses; fetched into .cache/bin when they are missing.
STATICCHECK := honnef.co/go/tools/cmd/staticcheck v0.8.2
GOVULNCHECK := golang.org/x/vuln/cmd/govulncheck v1.8.0

# What only icapbench may use.
BENCH_ONLY := HdrHistogram|vbauerster/mpb|^icapgate/bench(/(capacity|load|report|result|scenario|serve))?$$

TESTFLAGS ?=
FUZZTIME ?= 10s
BENCH ?= .
ROWS ?=
ROUNDS ?= 15
NAME ?=
FLAGS ?=

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help build run test race check format vet staticcheck deps-check deps-list vulncheck deps fuzz bench compare trial clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' | expand -t 14

build: ## build both programs into bin/
	go build -trimpath -o bin/ ./cmd/...

run: build ## build, then show the demo: icaps on 127.0.0.1:11344, two fake DLP servers
	bin/icapgate run --demo

test: deps ## install the peers that the tests use, if it may, and run every test
	go test $(TESTFLAGS) ./...

race: deps ## the same with the race detector
	go test -race $(TESTFLAGS) ./...

check: format vet staticcheck deps-check vulncheck ## all that looks at the code without running it

format: ## is the code gofmt'ed?
	@files=$$(gofmt -l .); [ -z "$$files" ] || { echo "gofmt -w is needed for:"; echo "$$files"; exit 1; }

vet:
	go vet ./...

staticcheck: ## lint, skipped if the tool cannot be fetched
	@tool=$$(scripts/tool $(STATICCHECK)) || { echo "staticcheck: skipped, it cannot be fetched"; exit 0; }; \
	echo staticcheck ./...; "$$tool" ./...

# Every package outside the standard library that is linked into icapgate, so that a new one is seen in review.
LIST_DEPS = GOOS=linux GOARCH=amd64 go list -deps -f '{{if not .Standard}}{{.ImportPath}}{{end}}' ./cmd/icapgate | LC_ALL=C sort

deps-check: ## does icapgate import what cmd/icapgate/deps.txt says, and nothing of the load generator?
	@list=$$($(LIST_DEPS)) && echo "$$list" | diff -u cmd/icapgate/deps.txt - || \
		{ echo "the packages in icapgate differ from cmd/icapgate/deps.txt; if that is wanted: make deps-list"; exit 1; }
	@! grep -nE '$(BENCH_ONLY)' cmd/icapgate/deps.txt || { echo "that belongs to icapbench only"; exit 1; }

deps-list: ## write cmd/icapgate/deps.txt
	@list=$$($(LIST_DEPS)) && echo "$$list" >cmd/icapgate/deps.txt

# Exit code 3 of govulncheck: it has found something. All other failures are for lack of a network.
vulncheck: ## known vulnerabilities in what is used, skipped without a network
	@tool=$$(scripts/tool $(GOVULNCHECK)) || { echo "govulncheck: skipped, it cannot be fetched"; exit 0; }; \
	echo govulncheck ./...; out=$$("$$tool" ./... 2>&1); code=$$?; \
	case $$code in \
	0) ;; \
	3) echo "$$out"; exit 1 ;; \
	*) echo "govulncheck: skipped: $$(echo "$$out" | tail -n 1)" ;; \
	esac

deps: ## install the Debian packages that the tests use (as root)
	@scripts/deps

fuzz: ## fuzz every target for FUZZTIME (10s)
	@for package in $$(go list ./...); do \
		for target in $$(go test -list '^Fuzz' $$package | grep '^Fuzz'); do \
			echo "$$package $$target"; \
			go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 200x $$package || exit 1; \
		done; \
	done

bench: ## run the benchmarks of the packages (BENCH=regexp)
	go test -run '^$$' -bench '$(BENCH)' -benchmem ./...

compare: ## measure icapgate against the HAProxy, nginx and stunnel that are installed (ROWS=, ROUNDS=15)
	go run ./bench/compare --rows '$(ROWS)' --rounds $(ROUNDS)

trial: ## prove something under load and faults (NAME=, FLAGS=); without a name: the list
	go run ./bench/trial $(NAME) $(FLAGS)

clean: ## remove what make has built and fetched
	rm -rf bin .cache
