package bridge_test

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/linkrun/linkrun/bridge"
	"github.com/linkrun/linkrun/netns/netnstest"
)

func isIsolated(t testing.TB, h *bridge.Host, port string) bool {
	t.Helper()
	s, err := h.Read()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range s.Ports {
		if p.Name == port {
			return p.Isolated
		}
	}
	return false
}

// Nobody asks for it: a port is isolated because it appeared.
func TestNewPortIsIsolated(t *testing.T) {
	l := newLab(t)
	l.bridgeNetfilter(false)
	l.addBridge("br", 10)
	h, log := l.openWithLog()
	enforce(t, h, "br", "later")
	l.follow(h)
	a, b := l.addGuest("br", 10, 2), l.addGuest("br", 10, 3)
	l.addBridge("later", 11)
	c, d := l.addGuest("later", 11, 2), l.addGuest("later", 11, 3)
	l.addBridge("open", 12)
	e := l.addGuest("open", 12, 2)
	for _, g := range []*guest{a, b, c, d} {
		netnstest.Until(t, g.port+" to be isolated", func() bool { return isIsolated(t, h, g.port) })
	}
	expect(t, l, a, b, false)
	expect(t, l, c, d, false)
	netnstest.Until(t, "the settings of the new bridge", func() bool {
		return strings.Contains(state(t, h), `bridge later nf_call_iptables=true nf_call_ip6tables=true`)
	})
	if isIsolated(t, h, e.port) {
		t.Error("a port of an open bridge is isolated")
	}
	if want := `msg="isolated port p11-2 of bridge later"`; !strings.Contains(log.String(), want) {
		t.Errorf("%s is missing in\n%s", want, log)
	}
}

// A port that moves from an open bridge to a closed one is new to it.
func TestPortThatMoves(t *testing.T) {
	l := newLab(t)
	l.addBridge("br", 10)
	l.addBridge("open", 11)
	a := l.addGuest("open", 11, 2)
	h := l.open()
	enforce(t, h, "br")
	l.follow(h)
	l.do(func() error {
		port, err := netlink.LinkByName(a.port)
		if err != nil {
			return err
		}
		br, err := netlink.LinkByName("br")
		if err != nil {
			return err
		}
		return netlink.LinkSetMaster(port, br)
	})
	netnstest.Until(t, "the port to be isolated", func() bool { return isIsolated(t, h, a.port) })
}

// What somebody opens is closed again.
func TestOpenedPortIsIsolatedAgain(t *testing.T) {
	l := newLab(t)
	l.addBridge("br", 10)
	a := l.addGuest("br", 10, 2)
	h := l.open()
	enforce(t, h, "br")
	l.follow(h)
	for range 3 {
		l.do(func() error {
			port, err := netlink.LinkByName(a.port)
			if err != nil {
				return err
			}
			return netlink.LinkSetIsolated(port, false)
		})
		netnstest.Until(t, "the port to be isolated again", func() bool { return isIsolated(t, h, a.port) })
	}
}

// More news than the socket holds, while nobody reads them: none may be
// missed for good.
func TestNewsThatWereDropped(t *testing.T) {
	l := newLab(t)
	l.addBridge("br", 10)
	h, log := l.openWithLog()
	enforce(t, h, "br")
	// Make the news overflow by changing an interface over and over, and
	// only then add the port, whose news is dropped.
	l.do(func() error {
		br, err := netlink.LinkByName("br")
		if err != nil {
			return err
		}
		for i := range 3000 {
			if err := netlink.LinkSetAlias(br, fmt.Sprint("a", i)); err != nil {
				return err
			}
		}
		return nil
	})
	a := l.addGuest("br", 10, 2)
	if isIsolated(t, h, a.port) {
		t.Fatal("the port is isolated, and nobody follows")
	}
	l.follow(h)
	netnstest.Until(t, "the port to be isolated", func() bool { return isIsolated(t, h, a.port) })
	if strings.Contains(log.String(), "level=ERROR") {
		t.Errorf("the log is\n%s", log)
	}
}

// Close ends Follow, and a second Close does no harm.
func TestCloseEndsFollow(t *testing.T) {
	l := newLab(t)
	before := runtime.NumGoroutine()
	h := l.open()
	done := make(chan error)
	go func() { done <- h.Follow(context.Background()) }()
	h.Close()
	if err := <-done; err != nil {
		t.Errorf("Follow: %v", err)
	}
	h.Close()
	netnstest.Until(t, "the goroutines to end", func() bool { return runtime.NumGoroutine() <= before })
}
