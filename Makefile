# On a fresh Debian 12 with Go, as root, `make demo` and `make test` install
# through apt what they need and the machine lacks.

GO          = go
PREFIX      = /usr/local
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOVULNCHECK = golang.org/x/vuln/cmd/govulncheck@v1.8.0

.PHONY: build demo test soak lint bench image install clean

build:
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/ ./cmd/...

demo: build
	demo/demo.sh

# Without root or an engine, the tests that need one are skipped, and say so.
test:
	-packaging/prerequisites.sh dockerd docker iptables ip nsenter umount cc setpriv systemd-analyze haproxy socat wrk stunnel4
	$(GO) test -race -count=1 -timeout 15m $(TESTFLAGS) ./... # uncached: go does not see the programs that tests build

# What `make test` does briefly: connections between two hosts for DURATION, a
# thousand at a time; and everything that can befall two hosts, the network away for a minute included.
DURATION = 4m
soak:
	LINKRUN_TEST_SOAK=$(DURATION) LINKRUN_TEST_PARTITION=60s $(GO) test -count=1 -timeout 0 -v \
		-run 'TestPartitions|TestKilled|TestHeld|TestFaults|TestBlackHole|TestHalfOpen|TestSoak' $(TESTFLAGS) ./peering

lint:
	@test -z "$$(gofmt -l .)" || { gofmt -d .; exit 1; }
	$(GO) vet ./...
	GOOS=darwin $(GO) vet ./cmd/linkrun # the engine may be on another host
	$(GO) run $(STATICCHECK) ./...
	# Status 3 says that a vulnerability was found, others that its database cannot be read from here.
	GOBIN=$(CURDIR)/.cache $(GO) install $(GOVULNCHECK) && { .cache/govulncheck ./... || test $$? -ne 3; }

bench:
	-packaging/prerequisites.sh dockerd docker iptables ip nsenter umount haproxy socat wrk stunnel4
	$(GO) run ./bench $(BENCHFLAGS)

image: build
	mkdir -p bin/link
	docker build -t linkrun/ambassador .

install: build
	packaging/install.sh $(PREFIX)

clean:
	rm -rf bin .cache
