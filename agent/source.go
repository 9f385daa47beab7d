package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync/atomic"
	"syscall"

	"github.com/linkrun/linkrun/docker"
	"github.com/linkrun/linkrun/netns"
)

// source is the network namespace of one running source, and what makes
// sockets there. All links to the source share it.
type source struct {
	ctr    docker.Container
	ns     *netns.Namespace
	dialer *netns.Dialer
}

// sourceOf returns the source that ctr is, opening it on first use. It is
// closed by dropUnusedSources.
func (a *Agent) sourceOf(ctr docker.Container) (*source, error) {
	key := incarnation(ctr)
	if s := a.sources[key]; s != nil {
		return s, nil
	}
	ns, err := openNamespace(ctr)
	if err != nil {
		return nil, err
	}
	dialer, err := ns.PrepareSource()
	if err != nil {
		ns.Close()
		return nil, fmt.Errorf("preparing source %q: %w", ctr.Name, err)
	}
	s := &source{ctr: ctr, ns: ns, dialer: dialer}
	a.sources[key] = s
	return s, nil
}

// dropUnusedSources closes the sources no link, here or of another host, leads
// to any more. Sockets in
// stock pin a namespace, and a stopped container's has to go.
func (a *Agent) dropUnusedSources() {
	used := make(map[*source]bool, len(a.sources))
	for _, r := range a.recipients {
		for _, c := range r.links {
			used[c.source] = true
		}
	}
	for _, e := range a.exports.all() {
		used[e.source] = true
	}
	for key, s := range a.sources {
		if used[s] {
			continue
		}
		delete(a.sources, key)
		if err := errors.Join(s.dialer.Close(), s.ns.Close()); err != nil {
			a.log.Warn("leaving a source", "source", s.ctr.Name, "err", err)
		}
	}
}

// incarnation tells one run of a container from the next: each has a network
// namespace of its own.
func incarnation(ctr docker.Container) string {
	return ctr.ID + " " + ctr.StartedAt + " " + strconv.Itoa(ctr.PID)
}

// openNamespace opens the network namespace of a running container. The
// engine's own path for it names this run of the container and no other,
// while a process id may have been given to somebody else meanwhile, so that
// is the second choice, for engines whose mount namespace is not ours. The
// error is fs.ErrNotExist when the container has stopped.
func openNamespace(ctr docker.Container) (*netns.Namespace, error) {
	if ctr.SandboxKey != "" {
		ns, err := netns.Open(ctr.SandboxKey)
		if err == nil {
			return ns, nil
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, netns.ErrNotNamespace) {
			return nil, err
		}
	}
	ns, err := netns.Open("/proc/" + strconv.Itoa(ctr.PID) + "/ns/net")
	if err != nil {
		return nil, fmt.Errorf("finding the network of container %q: %w", ctr.Name, err)
	}
	if err := checkProcess(ctr, ns); err != nil {
		ns.Close()
		return nil, fmt.Errorf("finding the network of container %q: %w", ctr.Name, err)
	}
	return ns, nil
}

// checkProcess makes sure that ns, which was found by the number of ctr's
// process, is ctr's. The number is another process's by now if the container
// has stopped, and from the start if the engine is on another host: a link
// would be made in a stranger's namespace, or in the host's, open to everyone.
func checkProcess(ctr docker.Container, ns *netns.Namespace) error {
	// Engines name a container's control group after its id.
	group, err := os.ReadFile("/proc/" + strconv.Itoa(ctr.PID) + "/cgroup")
	if err != nil {
		return err
	}
	if !bytes.Contains(group, []byte(ctr.ID)) {
		return fmt.Errorf("process %d is not the container's; the engine has to be on this host", ctr.PID)
	}
	host, err := netns.Open("/proc/self/ns/net")
	if err != nil {
		return err
	}
	defer host.Close()
	if same(ns, host) {
		return fmt.Errorf("process %d is on the host's network", ctr.PID)
	}
	return nil
}

func same(a, b *netns.Namespace) bool {
	aDev, aIno := a.ID()
	bDev, bIno := b.ID()
	return aDev == bDev && aIno == bIno
}

// target is where the connections of a link go at the moment. The relay keeps
// it for the link's whole life, while sources come and go. The zero target
// leads nowhere.
type target struct {
	now atomic.Pointer[netns.Source]
}

// errDown is for a connection that was accepted just before its source went.
var errDown = fmt.Errorf("the source is down: %w", os.ErrClosed)

func (t *target) Socket(port uint16) (int, netip.AddrPort, error) {
	s := t.now.Load()
	if s == nil {
		return -1, netip.AddrPort{}, errDown
	}
	return s.Socket(port)
}

func (t *target) PacketSocket(port uint16) (int, netip.AddrPort, error) {
	s := t.now.Load()
	if s == nil {
		return -1, netip.AddrPort{}, errDown
	}
	return s.PacketSocket(port)
}

// dial connects to a port of the source.
func (t *target) dial(ctx context.Context, port uint16) (*net.TCPConn, error) {
	s := t.now.Load()
	if s == nil {
		return nil, fmt.Errorf("%w: %w", errDown, syscall.ECONNREFUSED)
	}
	return s.Dial(ctx, port)
}

// swap makes s, which may be nil, the one to use, and closes the one before.
func (t *target) swap(s *netns.Source) error {
	if old := t.now.Swap(s); old != nil {
		return old.Close()
	}
	return nil
}
