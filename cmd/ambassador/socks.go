package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/linkrun/linkrun/control"
	"github.com/linkrun/linkrun/internal/descriptor"
	"github.com/linkrun/linkrun/relay"
	"github.com/linkrun/linkrun/socks"
)

const socksUsage = `Usage: ambassador socks --as RECIPIENT [flags]

Reaches what a container reaches by its links, from the host and by SOCKS5, to
look at the links from outside. It prints the address, and serves until it is
interrupted; connections end with it.

Flags:
      --as RECIPIENT   the container whose links are reached
      --listen ADDR    where to listen (default 127.0.0.1:1080):
                       127.0.0.1:PORT   whoever is on the host can connect there,
                                        so a password is needed, a new one each
                                        time; it is in the address printed
                       unix:/PATH       a socket for the user who runs this, and
                                        no password
      --dir DIR        where the ambassador keeps its socket
                       (default AMBASSADOR_DIR, else /run/ambassador)

The names are those of the recipient. Nothing is looked up elsewhere.

Example:
  $ ambassador socks --as web --listen unix:/tmp/web.sock &
  socks5h://localhost/tmp/web.sock
  $ curl -x socks5h://localhost/tmp/web.sock http://rest/
`

func runSocks(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := pflag.NewFlagSet("socks", pflag.ContinueOnError)
	as := flags.String("as", "", "")
	at := flags.String("listen", "127.0.0.1:1080", "")
	dir := flags.String("dir", control.Dir(), "")
	if err := parse(flags, args, stdout, socksUsage); err != nil {
		return err
	}
	if *as == "" {
		return usageError{errors.New("--as is missing: whose links?"), "ambassador socks"}
	}
	network, where, err := socksAddress(*at)
	if err != nil {
		return err
	}
	client := control.Dial(*dir)
	if err := waitForRecipient(ctx, client, *as); err != nil {
		return err
	}
	ln, err := listenForSocks(network, where)
	if err != nil {
		return err
	}
	password, url := "", "socks5h://localhost"+where
	if network == "tcp" {
		password = rand.Text()
		url = fmt.Sprintf("socks5h://ambassador:%s@%s", password, ln.Addr())
	}
	p := proxy{client: client, as: *as}
	p.server = socks.Server{Connect: p.connect, Password: password, Log: slog.New(slog.NewTextHandler(stderr, nil))}
	if err := p.mover.Start(); err != nil {
		ln.Close()
		return err
	}
	fmt.Fprintln(stdout, url)
	p.serve(ctx, ln)
	return nil
}

// recipientPatience is how long a container may take to become known that was
// started just before.
const recipientPatience = time.Second

func waitForRecipient(ctx context.Context, client *control.Client, name string) error {
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for end := time.Now().Add(recipientPatience); ; {
		list, err := client.Links(ctx)
		if err != nil {
			return noAgent(err)
		}
		if slices.ContainsFunc(list, func(l control.Link) bool { return l.Recipient == name }) {
			return nil
		}
		if time.Now().After(end) {
			return hinted{fmt.Errorf("there is no recipient %q", name), "`ambassador links` lists those there are"}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-ticker.C:
		}
	}
}

// socksAddress splits the value of --listen.
func socksAddress(at string) (network, where string, err error) {
	if path, isPath := strings.CutPrefix(at, "unix:"); isPath && filepath.IsAbs(path) {
		return "unix", path, nil
	}
	addr, err := netip.ParseAddrPort(at)
	if err != nil || !addr.Addr().IsLoopback() {
		return "", "", hinted{fmt.Errorf("listening at %q: it is neither 127.0.0.1:PORT nor unix:/PATH", at),
			"SOCKS5 sends passwords in clear text, so it stays on this host"}
	}
	return "tcp", at, nil
}

func listenForSocks(network, where string) (net.Listener, error) {
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	// The umask closes the moment between bind and chmod.
	old := syscall.Umask(0o177)
	ln, err := config.Listen(context.Background(), network, where)
	syscall.Umask(old)
	if err != nil {
		return nil, hinted{fmt.Errorf("listening: %w", err), "choose another address with --listen"}
	}
	return ln, nil
}

// proxy answers the handshakes itself, and asks the ambassador for what comes
// of them: nobody gets to talk to the ambassador who does not have the password.
type proxy struct {
	client *control.Client
	as     string
	server socks.Server
	mover  relay.Engine
	link   relay.Link // of all connections
}

// serve closes ln when ctx ends, and returns when nothing is left.
func (p *proxy) serve(ctx context.Context, ln net.Listener) {
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	defer p.mover.Close()
	defer p.server.Close()
	const firstWait, lastWait = 5 * time.Millisecond, time.Second
	wait := firstWait
	for ctx.Err() == nil {
		conn, err := ln.Accept()
		if err != nil {
			// For want of descriptors, most likely: others give them back.
			select {
			case <-ctx.Done():
			case <-time.After(wait):
			}
			wait = min(2*wait, lastWait)
			continue
		}
		wait = firstWait
		if fd, err := takeDescriptor(conn); err == nil {
			p.server.Handle(fd, nil)
		}
	}
}

// takeDescriptor closes conn but for its socket, which is the caller's.
func takeDescriptor(conn net.Conn) (fd int, err error) {
	defer conn.Close()
	return descriptor.Duplicate(conn.(syscall.Conn))
}

func (p *proxy) connect(ctx context.Context, host string, port uint16) (socks.Way, error) {
	fd, err := p.client.Connect(ctx, p.as, host, port)
	var refused *control.RefusedError
	if errors.As(err, &refused) {
		switch refused.Status {
		case control.StatusNotAllowed:
			err = fmt.Errorf("%w: %w", socks.ErrNotAllowed, err)
		case control.StatusRefused:
			err = fmt.Errorf("%w: %w", syscall.ECONNREFUSED, err)
		case control.StatusUnreachable:
			err = fmt.Errorf("%w: %w", syscall.EHOSTUNREACH, err)
		}
	}
	if err != nil {
		return nil, err
	}
	return throughAgent{p, fd}, nil
}

// throughAgent is the way to a source by the ambassador's socket.
type throughAgent struct {
	p  *proxy
	fd int
}

func (w throughAgent) Carry(client int) {
	if err := w.p.mover.Pair(client, w.fd, &w.p.link); err != nil {
		unix.Close(client)
		unix.Close(w.fd)
	}
}

func (w throughAgent) Close() error { return unix.Close(w.fd) }
