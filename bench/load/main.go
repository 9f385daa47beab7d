// Command load is one side of a measurement: the server, or a client that
// prints what it measured. The benchmark runs it inside of containers.
//
//	load serve ADDRESS:PORT   answer, on TCP and UDP, until told to stop
//	load run PLAN             do what a traffic.Plan in JSON says, print the Result
//	load secure-serve ADDRESS:PORT IDENTITY   answer over TLS
//	load secure-run IDENTITY PLAN             do that over TLS
//	load secure-forward LISTEN TO IDENTITY SIDE   be an end of a plain TLS tunnel
//	load delay LISTEN TO DELAY MBIT           be a long line between two addresses
//	load knock ADDRESS:PORT   find out whether somebody listens there
//	load hold PLAN            open connections, say "held", close them at the end of stdin
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"syscall"

	"github.com/linkrun/linkrun/bench/traffic"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdin, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdin io.Reader, stdout io.Writer) error {
	switch {
	case len(args) == 3 && args[0] == "secure-serve":
		return secureServe(ctx, args[1:])
	case len(args) == 3 && args[0] == "secure-run":
		return secureRun(args[1:], stdout)
	case len(args) == 5 && args[0] == "secure-forward":
		return secureForward(ctx, args[1:])
	case len(args) > 0 && args[0] == "delay":
		return delay(ctx, args[1:])
	}
	if len(args) != 2 {
		return errors.New("want serve, run or hold, and an argument")
	}
	switch args[0] {
	case "serve":
		return serve(ctx, args[1])
	case "knock":
		return knock(ctx, args[1])
	}
	var plan traffic.Plan
	if err := json.Unmarshal([]byte(args[1]), &plan); err != nil {
		return fmt.Errorf("reading the plan %q: %w", args[1], err)
	}
	switch args[0] {
	case "run":
		result, err := traffic.Run(plan)
		if err != nil {
			return err
		}
		return json.NewEncoder(stdout).Encode(result)
	case "hold":
		return hold(plan, stdin, stdout)
	}
	return fmt.Errorf("there is no %q", args[0])
}

func serve(ctx context.Context, address string) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	server, err := traffic.Listen(at)
	if err != nil {
		return err
	}
	return errors.Join(server.Wait(ctx), server.Close())
}

func knock(ctx context.Context, address string) error {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	return conn.Close()
}

func hold(plan traffic.Plan, stdin io.Reader, stdout io.Writer) error {
	held, err := traffic.Open(plan)
	if err != nil {
		return err
	}
	defer held.Close()
	fmt.Fprintln(stdout, "held")
	_, err = io.Copy(io.Discard, stdin)
	return err
}
