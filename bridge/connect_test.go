package bridge_test

import (
	"context"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/linkrun/linkrun/netns"
	"github.com/linkrun/linkrun/netns/netnstest"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// serve listens on an address in a namespace, and says who connected to each
// who does.
func serve(t testing.TB, ns *netns.Namespace, at netip.AddrPort) netip.AddrPort {
	t.Helper()
	var ln net.Listener
	netnstest.Do(t, ns, func() (err error) {
		ln, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
		return err
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			io.WriteString(conn, conn.RemoteAddr().String())
			conn.Close()
		}
	}()
	t.Cleanup(func() { ln.Close(); <-done })
	return ln.Addr().(*net.TCPAddr).AddrPort()
}

// dial connects from a namespace, and returns what the server says of that.
func dial(ns *netns.Namespace, to netip.AddrPort, timeout time.Duration) (greeting string, err error) {
	d := net.Dialer{Timeout: timeout}
	var conn net.Conn
	if err := ns.Do(func() error {
		conn, err = d.DialContext(context.Background(), "tcp", to.String())
		return err
	}); err != nil {
		return "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	text, err := io.ReadAll(conn)
	return string(text), err
}

func connects(t testing.TB, from, to *netns.Namespace, at netip.Addr) {
	t.Helper()
	server := serve(t, to, netip.AddrPortFrom(at, 0))
	if _, err := dial(from, server, 5*time.Second); err != nil {
		t.Errorf("%v is not reached: %v", server, err)
	}
}

// echoesUDP sends a datagram and waits for the one that comes back.
func echoesUDP(t testing.TB, from, to *netns.Namespace, at netip.AddrPort) {
	t.Helper()
	var server, client *net.UDPConn
	netnstest.Do(t, to, func() (err error) {
		server, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		return err
	})
	defer server.Close()
	netnstest.Do(t, from, func() (err error) {
		client, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(at))
		return err
	})
	defer client.Close()
	deadline := time.Now().Add(5 * time.Second)
	server.SetDeadline(deadline)
	client.SetDeadline(deadline)
	if _, err := client.Write([]byte("there")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 16)
	n, peer, err := server.ReadFromUDPAddrPort(buf)
	if err != nil {
		t.Fatalf("a datagram to %v: %v", at, err)
	}
	if _, err := server.WriteToUDPAddrPort(buf[:n], peer); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Read(buf); err != nil {
		t.Errorf("the answer from %v: %v", at, err)
	}
}

// held is a connection that stays open.
type held struct{ near, far net.Conn }

func (p *pair) holdConnection(from *guest, at netip.AddrPort, to *guest) held {
	p.t.Helper()
	var ln net.Listener
	netnstest.Do(p.t, to.Namespace, func() (err error) {
		ln, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(to.ip4, 0)))
		return err
	})
	defer ln.Close()
	var h held
	d := net.Dialer{Timeout: 5 * time.Second, LocalAddr: net.TCPAddrFromAddrPort(at)}
	netnstest.Do(p.t, from.Namespace, func() (err error) {
		h.near, err = d.Dial("tcp", ln.Addr().String())
		return err
	})
	var err error
	if h.far, err = ln.Accept(); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { h.near.Close(); h.far.Close() })
	return h
}

// exchange sends a byte there and one back.
func (h held) exchange(timeout time.Duration) error {
	deadline := time.Now().Add(timeout)
	b := []byte{1}
	for _, way := range [][2]net.Conn{{h.near, h.far}, {h.far, h.near}} {
		way[0].SetDeadline(deadline)
		way[1].SetDeadline(deadline)
		if _, err := way[0].Write(b); err != nil {
			return err
		}
		if _, err := io.ReadFull(way[1], b); err != nil {
			return err
		}
	}
	return nil
}
