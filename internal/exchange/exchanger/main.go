// Command exchanger is the two ends of package exchange as programs, for tests
// that have them in containers. What goes wrong is printed at once, as JSON,
// and the counts at the end.
//
//	exchanger serve ADDRESS
//	exchanger load ADDRESS CLIENTS SEED
//	exchanger probe ADDRESS        until there is an answer, and says when
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/linkrun/linkrun/internal/exchange"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "exchanger:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	switch {
	case len(args) == 2 && args[0] == "serve":
		return serve(ctx, args[1])
	case len(args) == 2 && args[0] == "probe":
		return probe(ctx, args[1])
	case len(args) == 4 && args[0] == "load":
		clients, err := strconv.Atoi(args[2])
		if err != nil {
			return err
		}
		seed, err := strconv.ParseUint(args[3], 10, 64)
		if err != nil {
			return err
		}
		load(ctx, args[1], clients, seed)
		return nil
	}
	return fmt.Errorf("arguments %q", args)
}

// line is what the program prints.
type line struct {
	From, To time.Time        `json:",omitzero"` // of a gap
	Counts   *exchange.Counts `json:",omitempty"`
}

func serve(ctx context.Context, addr string) error {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	ln, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { ln.Close() })()
	// Who has been cut off for good is not waited for.
	s := &exchange.Server{Patience: 30 * time.Second}
	if err := s.Serve(ln); err != nil {
		return err
	}
	counts := s.Tally.Now()
	return json.NewEncoder(os.Stdout).Encode(line{Counts: &counts})
}

func probe(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	h := &exchange.Heart{Dial: dialer(addr), Every: 20 * time.Millisecond}
	h.Answer = func(at time.Time) {
		fmt.Println(at.Format(time.RFC3339Nano))
		os.Exit(0)
	}
	h.Run(ctx)
	return context.Cause(ctx)
}

func dialer(addr string) func(context.Context) (exchange.Conn, error) {
	dialer := net.Dialer{Timeout: 20 * time.Second}
	dialer.SetMultipathTCP(false)
	return func(ctx context.Context) (exchange.Conn, error) {
		conn, err := dialer.DialContext(ctx, "tcp", addr)
		if err != nil {
			return nil, err
		}
		return conn.(exchange.Conn), nil
	}
}

func load(ctx context.Context, addr string, clients int, seed uint64) {
	dial := dialer(addr)
	out := json.NewEncoder(os.Stdout)
	l := &exchange.Load{
		Dial: dial, Clients: clients, Seed: seed, Most: 1 << 20, Pause: 50 * time.Millisecond,
		Patience: 20 * time.Second,
	}
	h := &exchange.Heart{
		Dial: dial, Every: 20 * time.Millisecond,
	}
	var last time.Time
	h.Answer = func(at time.Time) {
		if !last.IsZero() && at.Sub(last) > 200*time.Millisecond {
			out.Encode(line{From: last, To: at})
		}
		last = at
	}
	var both sync.WaitGroup
	both.Go(func() { h.Run(ctx) })
	both.Go(func() { l.Run(ctx) })
	both.Wait()
	counts := l.Tally.Now()
	out.Encode(line{Counts: &counts})
}
