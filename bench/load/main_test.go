package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/linkrun/linkrun/bench/traffic"
)

func plan(t *testing.T, p traffic.Plan) string {
	t.Helper()
	s, err := traffic.Listen(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if p.Server, err = s.Addr(); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestRunPrintsResult(t *testing.T) {
	var out bytes.Buffer
	p := plan(t, traffic.Plan{Kind: traffic.Exchange, Duration: 20 * time.Millisecond})
	if err := run(t.Context(), []string{"run", p}, nil, &out); err != nil {
		t.Fatal(err)
	}
	var r traffic.Result
	if err := json.Unmarshal(out.Bytes(), &r); err != nil || r.Count == 0 {
		t.Errorf("it printed %q, %v", &out, err)
	}
}

func TestHoldEndsWithItsInput(t *testing.T) {
	stdin, close := io.Pipe()
	out, stdout := io.Pipe()
	done := make(chan error, 1)
	args := []string{"hold", plan(t, traffic.Plan{Conns: 3})}
	go func() { done <- run(context.Background(), args, stdin, stdout) }()
	var word string
	if _, err := fmt.Fscanln(out, &word); err != nil || word != "held" {
		t.Errorf("it said %q, %v", word, err)
	}
	close.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestServeEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := run(ctx, []string{"serve", "127.0.0.1:0"}, nil, nil); err != nil {
		t.Error(err)
	}
}

func TestErrors(t *testing.T) {
	for args, want := range map[string]string{
		"":           "want serve, run or hold, and an argument",
		"run":        "want serve, run or hold, and an argument",
		"run x":      `reading the plan "x": invalid character 'x'`,
		"dance {}":   `there is no "dance"`,
		"serve here": `not an ip:port`,
	} {
		err := run(t.Context(), strings.Fields(args), nil, nil)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want %q", args, err, want)
		}
	}
}
