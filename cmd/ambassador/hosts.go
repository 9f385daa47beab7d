package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"github.com/linkrun/linkrun/control"
	"github.com/linkrun/linkrun/identity"
	"github.com/linkrun/linkrun/peering"
	"github.com/linkrun/linkrun/tunnel"
)

// hostFlags are the flags of serve about other hosts.
type hostFlags struct {
	listen []string
	peers  []string
	dir    string
	files  identity.Files // all empty for those of dir
	hold   time.Duration
}

func (f *hostFlags) add(flags *pflag.FlagSet) {
	flags.StringArrayVar(&f.listen, "listen", nil, "")
	flags.StringArrayVar(&f.peers, "peer", nil, "")
	flags.StringVar(&f.dir, "identity", "", "")
	flags.StringVar(&f.files.Cert, "cert", "", "")
	flags.StringVar(&f.files.Key, "key", "", "")
	flags.StringVar(&f.files.Roots, "roots", "", "")
	flags.DurationVar(&f.hold, "hold", 0, "")
}

// known are the addresses of --peer.
func (f *hostFlags) known() (map[string]string, error) {
	known := make(map[string]string)
	for _, p := range f.peers {
		host, addr, ok := strings.Cut(p, "=")
		if !ok || host == "" || addr == "" {
			return nil, fmt.Errorf("--peer %q is not of the form HOST=ADDR", p)
		}
		known[host] = peering.Address(addr)
	}
	return known, nil
}

// check finds mistakes before anything is done.
func (f *hostFlags) check() error {
	given := 0
	for _, file := range []string{f.files.Cert, f.files.Key, f.files.Roots} {
		if file != "" {
			given++
		}
	}
	_, err := f.known()
	switch {
	case given != 0 && given != 3:
		err = errors.New("--cert, --key and --roots are given together or not at all")
	case f.hold < 0:
		err = fmt.Errorf("--hold %v is less than nothing", f.hold)
	}
	if err != nil {
		return usageError{err, "ambassador serve"}
	}
	return nil
}

// hosts is what serve keeps with other hosts. It does so once this host has an
// identity, which may be given to it while it serves.
type hosts struct {
	peering.Hosts
	flags     hostFlags
	log       *slog.Logger
	listeners []net.Listener

	mu    sync.Mutex
	store *identity.Store // nil while there is none
}

// openHosts opens the listeners. The caller calls Run or Close.
func openHosts(ctx context.Context, f hostFlags, log *slog.Logger) (_ *hosts, err error) {
	h := &hosts{flags: f, log: log}
	defer func() {
		if err != nil {
			h.Close()
		}
	}()
	h.Hold, h.Log = f.hold, log
	if h.Known, err = f.known(); err != nil {
		return nil, err
	}
	for _, at := range f.listen {
		ln, err := tunnel.Listen(ctx, peering.Address(at))
		if err != nil {
			return nil, noListener(err)
		}
		h.listeners = append(h.listeners, ln)
	}
	// Files that were named have to be there. An identity may come later.
	if err := h.open(); f.files.Cert != "" && err != nil {
		return nil, err
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, noIdentity(err)
	}
	return h, nil
}

func noListener(err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return hinted{err, "choose another port with --listen, and tell it the other hosts with --peer"}
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return hinted{err, "name an address of this host with --listen, or a port alone for all of them"}
	}
	return err
}

// open reads who this host is. The error is fs.ErrNotExist if it is nobody yet.
func (h *hosts) open() error {
	files := h.flags.files
	if files.Cert == "" {
		files = identity.In(h.flags.dir)
		authority, err := identity.OpenAuthority(identity.AuthorityIn(h.flags.dir))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		joined, err := identity.LoadJoined(h.flags.dir)
		if err != nil {
			return err
		}
		h.Authority, h.AuthorityAt = authority, joined.Host
		if joined.Host != "" && h.Known[joined.Host] == "" {
			h.Known[joined.Host] = joined.Address
		}
	}
	store, err := identity.Open(files)
	if err != nil {
		return err
	}
	h.Store = store
	h.mu.Lock()
	defer h.mu.Unlock()
	h.store = store
	return nil
}

// Run keeps sessions until ctx ends. It waits for an identity if there is none.
func (h *hosts) Run(ctx context.Context) error {
	defer h.Close()
	if !h.await(ctx) {
		return nil
	}
	own := h.Store.Current()
	if err := own.Check(time.Now()); err != nil && h.Authority == nil {
		h.log.Error("no other host will talk to this one", "err", err,
			"hint", "set the clock right; if it is, get a token where the authority is, and `ambassador join`")
	}
	h.log.Info("keeping sessions with other hosts", "own", own, "listening", h.addresses())
	return h.Hosts.Run(ctx, h.listeners...)
}

// await waits for an identity.
func (h *hosts) await(ctx context.Context) bool {
	if h.Store != nil {
		return true
	}
	if len(h.listeners) > 0 || len(h.flags.peers) > 0 {
		h.log.Warn("this host has no identity yet, so there are no links with others", "dir", h.flags.dir,
			"hint", "make an authority with `ambassador ca init`, or join one with `ambassador join`")
	}
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	var told string
	for {
		select {
		case <-ctx.Done():
			return false
		case <-ticker.C:
		}
		err := h.open()
		if err == nil {
			return true
		}
		if text := err.Error(); !errors.Is(err, fs.ErrNotExist) && text != told {
			told = text
			h.log.Error("this host's identity cannot be used", "err", err)
		}
	}
}

// Close closes the listeners.
func (h *hosts) Close() {
	for _, ln := range h.listeners {
		ln.Close()
	}
}

func (h *hosts) addresses() []string {
	at := []string{}
	for _, ln := range h.listeners {
		at = append(at, ln.Addr().String())
	}
	return at
}

// Name is what others call this host, "" while it has no identity.
func (h *hosts) Name() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.store == nil {
		return ""
	}
	return h.store.Current().ID.Host
}

// Peers answers `ambassador peers`.
func (h *hosts) Peers() control.Peers {
	p := control.Peers{Self: control.Self{Listens: h.addresses()}, Hosts: []control.Peer{}}
	h.mu.Lock()
	store := h.store
	h.mu.Unlock()
	if store == nil {
		return p
	}
	own := store.Current()
	p.Self.ID, p.Self.Until = own.ID.String(), own.NotAfter
	p.Self.Authority = h.AuthorityAt
	if h.Authority != nil {
		p.Self.Authority = own.ID.Host
	}
	if err := own.Check(time.Now()); err != nil {
		p.Self.Problem = err.Error()
	}
	for _, peer := range h.List() {
		state := control.StateDown
		if peer.Up {
			state = control.StateUp
		}
		p.Hosts = append(p.Hosts, control.Peer{
			Host:    peer.Name,
			State:   state,
			Since:   peer.Since,
			Reason:  peer.Reason,
			Address: cmp.Or(peer.Address, h.Known[peer.Name]),
			Dialed:  peer.Dialed,
			RTT:     peer.RTT,
			Streams: peer.Streams,
			Wanted:  peer.Wanted,
		})
	}
	return p
}
