// Package bridge keeps containers on one bridge apart below the firewall: it
// isolates the ports they are behind, so that the bridge hands no frame of
// one to another, whatever protocol it carries. It knows neither containers
// nor rules; which bridges are closed it is told.
//
// Isolation is a flag of a bridge port. The bridge itself is no such port:
// host to container, container to outside, and what the host routes, pass as
// before. What the host routes from one container to another is for the
// firewall to refuse; see package iptables.
package bridge

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Host is the bridges of one network namespace. See Open.
type Host struct {
	log     *slog.Logger
	request *nl.SocketHandle
	news    *nl.NetlinkSocket

	done  chan struct{} // closed by Close
	close sync.Once

	mu     sync.Mutex // one change at a time
	closed map[string]bool
}

// Open returns the bridges of the calling thread's network namespace. The
// caller calls Close. News of ports are collected from here on, for Follow.
func Open(log *slog.Logger) (*Host, error) {
	request, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("opening netlink: %w", err)
	}
	news, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK)
	if err != nil {
		request.Close()
		return nil, fmt.Errorf("subscribing to links: %w", err)
	}
	return &Host{
		log:     log,
		request: &nl.SocketHandle{Socket: request},
		news:    news,
		done:    make(chan struct{}),
		closed:  make(map[string]bool),
	}, nil
}

// Close ends Follow, and leaves the bridges as they are: what was closed
// stays closed without us.
func (h *Host) Close() error {
	h.close.Do(func() {
		close(h.done)
		h.news.Close()
		h.request.Close()
	})
	return nil
}

// Enforce makes the bridges of these names the closed ones, and returns what
// it had to do, in words. On a closed bridge every container's port is
// isolated, and bridge netfilter is on, so that the firewall sees the frames
// of a port that appears while nobody follows. On a bridge that is not closed
// any more, ports and settings go back to how they were found. A name that is
// no bridge yet is closed when it becomes one.
//
// What one port refuses is reported when all others have been seen to.
func (h *Host) Enforce(names []string) ([]string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(h.closed)
	for _, name := range names {
		h.closed[name] = true
	}
	return h.settle()
}

// Restore leaves everything as it was found, and says what it gave back.
func (h *Host) Restore() ([]string, error) { return h.Enforce(nil) }

// Check says what Enforce would do.
func (h *Host) Check(names []string) ([]string, error) {
	state, err := h.Read()
	if err != nil {
		return nil, err
	}
	closed := make(map[string]bool)
	for _, name := range names {
		closed[name] = true
	}
	var todo []string
	for _, d := range state.duties(closed) {
		todo = append(todo, d.what)
	}
	return todo, nil
}

// settle looks at every bridge and port.
func (h *Host) settle() ([]string, error) {
	state, err := h.Read()
	if err != nil {
		return nil, err
	}
	var done []string
	var failed []error
	for _, d := range state.duties(h.closed) {
		switch err := d.do(h); {
		case errors.Is(err, unix.ENODEV): // gone since it was read
		case err != nil:
			failed = append(failed, fmt.Errorf("%s: %w", d.what, err))
		default:
			done = append(done, d.what)
		}
	}
	return done, errors.Join(failed...)
}

// Closed lists the names last given to Enforce.
func (h *Host) Closed() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Sorted(maps.Keys(h.closed))
}

// duty is one thing to do to a bridge or port.
type duty struct {
	what string
	do   func(h *Host) error
}

// duties is what is to be done so that the bridges named are closed, and no
// other one is by our doing.
func (s State) duties(closed map[string]bool) (todo []duty) {
	for _, b := range s.Bridges {
		todo = append(todo, b.duties(closed[b.Name])...)
	}
	for _, p := range s.Ports {
		todo = append(todo, p.duties(closed[p.Bridge])...)
	}
	return todo
}

func (b Bridge) duties(closed bool) (todo []duty) {
	for _, k := range knobs {
		switch on, ours := b.on(k), b.mark.has(k.name); {
		case closed && !on:
			todo = append(todo, duty{
				fmt.Sprintf("switched %s on for bridge %s", k.name, b.Name),
				func(h *Host) error {
					b.mark = b.mark.with(k.name)
					if err := h.setAlias(b.Index, b.mark); err != nil {
						return err
					}
					return h.setKnob(b.Index, k, true)
				}})
		case !closed && ours:
			todo = append(todo, duty{
				fmt.Sprintf("switched %s off again for bridge %s", k.name, b.Name),
				func(h *Host) error {
					if err := h.setKnob(b.Index, k, false); err != nil {
						return err
					}
					b.mark = b.mark.without(k.name)
					return h.setAlias(b.Index, b.mark)
				}})
		}
	}
	return todo
}

func (p Port) duties(closed bool) []duty {
	switch ours := p.mark.has(isolated); {
	case closed && p.Guest() && !p.Isolated:
		return []duty{{
			fmt.Sprintf("isolated port %s of bridge %s", p.Name, p.Bridge),
			func(h *Host) error {
				// The mark comes first: a port that is isolated without one
				// is taken for somebody else's doing. But no mark is no
				// reason to leave the port open.
				marked := h.setAlias(p.Index, p.mark.with(isolated))
				return errors.Join(h.setIsolated(p.Index, true), marked)
			}}}
	case !closed && ours && p.Bridge == "":
		// The flag went when the port left its bridge.
		return []duty{{
			fmt.Sprintf("forgot that %s was isolated", p.Name),
			func(h *Host) error { return h.setAlias(p.Index, p.mark.without(isolated)) },
		}}
	case !closed && ours:
		return []duty{{
			fmt.Sprintf("gave port %s of bridge %s back", p.Name, p.Bridge),
			func(h *Host) error {
				if err := h.setIsolated(p.Index, false); err != nil {
					return err
				}
				return h.setAlias(p.Index, p.mark.without(isolated))
			}}}
	}
	return nil
}
