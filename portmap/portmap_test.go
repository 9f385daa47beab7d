//go:build linux

package portmap_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"

	ebpflink "github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/linkrun/linkrun/link"
	"github.com/linkrun/linkrun/netns"
	"github.com/linkrun/linkrun/netns/netnstest"
	"github.com/linkrun/linkrun/portmap"
)

func TestReachAnAlias(t *testing.T) {
	n := netnstest.New(t)
	m, _ := serve(t, n)
	if !m.Steered() {
		t.Fatal("this kernel refuses the program: see the log")
	}
	set(t, m, webdb, append(tcp(5432, 80), udp(53)...), "db")
	set(t, m, cache, append(tcp(6379, 80), udp(53)...), "redis")
	for _, test := range []struct{ network, to, want string }{
		{"tcp", "127.77.0.2:5432", "db 127.77.0.2:5432"},
		{"tcp", "127.77.0.2:80", "db 127.77.0.2:80"},
		{"tcp", "127.77.0.3:80", "redis 127.77.0.3:80"},
		{"tcp", "127.77.0.3:6379", "redis 127.77.0.3:6379"},
		{"udp", "127.77.0.2:53", "db 127.77.0.2:53"},
		{"udp", "127.77.0.3:53", "redis 127.77.0.3:53"},
		// Not exposed by this one, or not with this protocol, or at all.
		{"tcp", "127.77.0.2:6379", "refused"},
		{"tcp", "127.77.0.2:53", "refused"},
		{"udp", "127.77.0.2:80", "refused"},
		{"udp", "127.77.0.3:5353", "refused"},
		// No alias, and nobody is there.
		{"tcp", "127.77.0.4:80", "refused"},
		{"udp", "127.77.0.4:53", "refused"},
	} {
		wantWho(t, n, test.network, test.to, test.want)
	}

	// An AF_INET6 socket, as many programs use for everything.
	wantWho(t, n, "tcp mapped", "127.77.0.2:80", "db 127.77.0.2:80")
	wantWho(t, n, "udp mapped", "127.77.0.2:53", "db 127.77.0.2:53")
	wantWho(t, n, "tcp mapped", "127.77.0.2:81", "refused")
	wantWho(t, n, "udp mapped", "127.77.0.2:54", "refused")

	set(t, m, webdb, tcp(80), "db2")
	wantWho(t, n, "tcp", "127.77.0.2:80", "db2 127.77.0.2:80")
	wantWho(t, n, "tcp", "127.77.0.2:5432", "refused")
	wantWho(t, n, "udp", "127.77.0.2:53", "refused")
	wantWho(t, n, "tcp", "127.77.0.3:80", "redis 127.77.0.3:80")
}

// A server of the recipient's own on all addresses must not be taken for the
// source of a link: not on ports that are not exposed, nor while the source is
// down. And what is no alias is none of our business.
func TestOwnServersAreNotReachedThroughAnAlias(t *testing.T) {
	n := netnstest.New(t)
	netnstest.Address(t, n, "lo", netip.MustParsePrefix("10.77.0.3/32"))
	m, _ := serve(t, n)
	for _, network := range []string{"tcp", "udp"} {
		for _, port := range []string{"80", "81"} {
			ownServer(t, n, network, "0.0.0.0:"+port)
		}
		ownServer(t, n, network, "[::1]:80")
	}
	own := func(network, addr string) string {
		if network == "udp" {
			return "own"
		}
		return "own " + addr
	}
	for _, network := range []string{"tcp", "udp"} {
		proto := link.Proto(network)
		port80 := portsOf(proto, []uint16{80})

		wantWho(t, n, network, "127.77.0.2:80", own(network, "127.77.0.2:80"))
		set(t, m, webdb, port80, "db")
		wantWho(t, n, network, "127.77.0.2:80", "db 127.77.0.2:80")
		wantWho(t, n, network, "127.77.0.2:81", "refused")
		set(t, m, webdb, nil, "db") // the source is down
		wantWho(t, n, network, "127.77.0.2:80", "refused")
		wantWho(t, n, network, "127.77.0.2:81", "refused")
		set(t, m, webdb, port80, "db")
		wantWho(t, n, network, "127.77.0.2:80", "db 127.77.0.2:80")
		for _, addr := range []string{"127.0.0.1", "127.0.0.2", "10.77.0.3", "127.77.0.9", "127.77.1.2", "127.78.0.2", "[::1]"} {
			wantWho(t, n, network, addr+":80", own(network, addr+":80"))
		}
		if err := m.Delete(webdb); err != nil {
			t.Fatal(err)
		}
		wantWho(t, n, network, "127.77.0.2:80", own(network, "127.77.0.2:80"))
	}
}

// listening returns the ports on which there are sockets at 127.77.0.1 in n.
func listening(t testing.TB, n *netns.Namespace, network string) []int {
	t.Helper()
	var ports []int
	netnstest.Do(t, n, func() error {
		b, err := os.ReadFile("/proc/thread-self/net/" + network)
		if err != nil {
			return err
		}
		for _, line := range strings.Split(string(b), "\n") {
			var slot, addr, port int
			if k, _ := fmt.Sscanf(line, "%d: %X:%X", &slot, &addr, &port); k == 3 && addr == 0x01004d7f {
				ports = append(ports, port)
			}
		}
		return nil
	})
	return ports
}

func TestTheListenersThemselvesRefuse(t *testing.T) {
	n := netnstest.New(t)
	m, s := serve(t, n)
	set(t, m, webdb, append(tcp(80), udp(80)...), "db")
	for _, network := range []string{"tcp", "udp"} {
		ports := listening(t, n, network)
		if len(ports) != 1 || ports[0] < 61000 {
			t.Fatalf("there are sockets on the %s ports %v of 127.77.0.1, want one above the clients' ports", network, ports)
		}
		wantWho(t, n, network, fmt.Sprintf("127.77.0.1:%d", ports[0]), "refused")
		wantWho(t, n, network, "127.77.0.1:80", "refused")
	}
	if s.stray != 0 {
		t.Errorf("%d connections got in without an alias", s.stray)
	}
}

// The agent's own address has the ports it was given, and takes none away.
func TestTheAgentsOwnAddress(t *testing.T) {
	n := netnstest.New(t)
	m, _ := serve(t, n)
	ownServer(t, n, "tcp", "0.0.0.0:1080")
	wantWho(t, n, "tcp", "127.77.0.1:1080", "refused")
	set(t, m, link.LocalAddr, tcp(1080), "socks")
	wantWho(t, n, "tcp", "127.77.0.1:1080", "socks 127.77.0.1:1080")
	wantWho(t, n, "tcp", "127.77.0.1:1081", "refused")
	wantWho(t, n, "udp", "127.77.0.1:1080", "refused")
	wantWho(t, n, "tcp", "127.0.0.1:1080", "own 127.0.0.1:1080")
	if err := m.Delete(link.LocalAddr); err != nil {
		t.Fatal(err)
	}
	wantWho(t, n, "tcp", "127.77.0.1:1080", "refused")
}

// The listeners keep out of the range that clients get their ports from, or
// they would be in the way of those, or these in theirs.
func TestTheListenersLeaveClientsTheirPorts(t *testing.T) {
	for _, test := range []struct{ clients, want string }{
		{"32768 60999", "[65535] [65535]"},
		{"20000 65535", "[19999] [19999]"},
		{"1024 65535", "[65535] [65535]"}, // there is no way to
	} {
		n := netnstest.New(t)
		netnstest.Do(t, n, func() error {
			return os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte(test.clients), 0)
		})
		serve(t, n)
		if got := fmt.Sprint(listening(t, n, "tcp"), listening(t, n, "udp")); got != test.want {
			t.Errorf("where clients have %s, the listeners are on %s, want %s", test.clients, got, test.want)
		}
	}

	// One port after the other is tried.
	n := netnstest.New(t)
	ownServer(t, n, "tcp", "0.0.0.0:65535")
	ownServer(t, n, "udp", "127.77.0.1:65535")
	ownServer(t, n, "udp", "0.0.0.0:65534")
	serve(t, n)
	if got := fmt.Sprint(listening(t, n, "tcp")); got != "[65534]" {
		t.Errorf("the listener is on %s", got)
	}
	if got := listening(t, n, "udp"); !slices.Contains(got, 65533) {
		t.Errorf("the packet sockets are on %v", got)
	}
}

// The standard example of the tutorials: a web server on port 5000, linked to
// a service on port 5000.
func TestOwnServersCanBindALinksPorts(t *testing.T) {
	for _, network := range []string{"tcp", "udp"} {
		for _, addr := range []string{"0.0.0.0:5000", "127.0.0.1:5000", "[::]:5000"} {
			for _, reuse := range []bool{true, false} {
				for _, ownFirst := range []bool{true, false} {
					name := fmt.Sprintf("%s %s reuse=%v ownFirst=%v", network, addr, reuse, ownFirst)
					t.Run(name, func(t *testing.T) {
						n := netnstest.New(t)
						own := func() {
							s, err := tryOwnServer(n, network, addr, reuse)
							if err != nil {
								t.Fatalf("the recipient cannot bind: %v", err)
							}
							t.Cleanup(func() { s.Close() })
						}
						if ownFirst {
							own()
						}
						m, _ := serve(t, n)
						set(t, m, webdb, append(tcp(5000), udp(5000)...), "db")
						if !ownFirst {
							own()
						}
						wantWho(t, n, network, "127.77.0.2:5000", "db 127.77.0.2:5000")
						if got := who(t, n, network, "127.0.0.1:5000"); !strings.HasPrefix(got, "own") {
							t.Errorf("127.0.0.1:5000: %s, want the recipient's own server", got)
						}
					})
				}
			}
		}
	}
}

// An open connection over a link has the alias's address and port in the
// recipient. It does not keep a server there from binding that port, if the
// server sets SO_REUSEADDR, as they do so as not to be kept from it by the
// clients of their last run, or if it binds another address.
func TestOwnServersCanBindWhileAConnectionIsOpen(t *testing.T) {
	for _, test := range []struct {
		addr  string
		reuse bool
		sees  string
	}{
		{"0.0.0.0:5000", true, "127.0.0.1:5000"},
		{"[::]:5000", true, "[::ffff:127.0.0.1]:5000"},
		{"127.0.0.1:5000", true, "127.0.0.1:5000"},
		{"127.0.0.1:5000", false, "127.0.0.1:5000"},
	} {
		t.Run(fmt.Sprintf("%s reuse=%v", test.addr, test.reuse), func(t *testing.T) {
			n := netnstest.New(t)
			m, _ := serve(t, n)
			set(t, m, webdb, tcp(5000), "db")
			c, err := dialIn(n, "tcp", "", "127.77.0.2:5000")
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := c.Read(make([]byte, 1)); err != nil { // it has been accepted
				t.Fatal(err)
			}
			s, err := tryOwnServer(n, "tcp", test.addr, test.reuse)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			wantWho(t, n, "tcp", "127.0.0.1:5000", "own "+test.sees)
			wantWho(t, n, "tcp", "127.77.0.2:5000", "db 127.77.0.2:5000")
		})
	}
}

// A port that stays is never refused, not even when the key of the program's
// map that it is in becomes another one.
func TestSetNeverRefusesAPortThatStays(t *testing.T) {
	n := netnstest.New(t)
	m, s := serve(t, n)
	sets := [][]link.Port{tcp(5000, 5001, 5002, 5003), tcp(5000), tcp(5000, 5002), tcp(4999, 5000, 5001), tcp(5000, 80, 443)}
	set(t, m, webdb, sets[0], "db")
	stop := make(chan struct{})
	var wait sync.WaitGroup
	for range 2 {
		wait.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				wantWho(t, n, "tcp", "127.77.0.2:5000", "db 127.77.0.2:5000")
			}
		})
	}
	for i := range 400 {
		set(t, m, webdb, sets[i%len(sets)], "db")
	}
	close(stop)
	wait.Wait()
	if s.stray != 0 {
		t.Errorf("%d connections had no owner", s.stray)
	}
}

// programs returns how many BPF programs there are on the namespace.
func programs(t testing.TB, n *netns.Namespace) int {
	t.Helper()
	_, ino := n.ID()
	count := 0
	it := new(ebpflink.Iterator)
	defer it.Close()
	for it.Next() {
		info, err := it.Link.Info()
		if err != nil {
			continue // of a kind that the package does not know
		}
		if ns := info.NetNs(); ns != nil && uint64(ns.NetnsInode) == ino {
			count++
		}
	}
	if err := it.Err(); err != nil {
		t.Fatal(err)
	}
	return count
}

func TestManyPortsAndAliases(t *testing.T) {
	n := netnstest.New(t)
	m, _ := serve(t, n)
	fds := descriptors(t)
	var thousand []uint16
	for p := uint16(30000); p < 31000; p++ {
		thousand = append(thousand, p)
	}
	set(t, m, webdb, append(tcp(thousand...), udp(thousand...)...), "many")
	for i := range 100 {
		set(t, m, netip.AddrFrom4([4]byte{127, 77, 1, byte(i)}), tcp(80, 443), fmt.Sprint(i))
	}
	for _, p := range []int{30000, 30499, 30999} {
		wantWho(t, n, "tcp", fmt.Sprintf("127.77.0.2:%d", p), fmt.Sprintf("many 127.77.0.2:%d", p))
		wantWho(t, n, "udp", fmt.Sprintf("127.77.0.2:%d", p), fmt.Sprintf("many 127.77.0.2:%d", p))
	}
	wantWho(t, n, "tcp", "127.77.0.2:29999", "refused")
	wantWho(t, n, "tcp", "127.77.0.2:31000", "refused")
	wantWho(t, n, "tcp", "127.77.1.99:443", "99 127.77.1.99:443")
	if got := programs(t, n); got != 1 {
		t.Errorf("there are %d programs, want 1", got)
	}
	if !routed(t, n) {
		t.Error("there is no route to the aliases")
	}
	if tcp, udp := listening(t, n, "tcp"), listening(t, n, "udp"); len(tcp) != 1 || len(udp) != 1 {
		t.Errorf("listening on %v and %v, want one of each", tcp, udp)
	}
	netnstest.Until(t, "no more descriptors than before the aliases", func() bool { return descriptors(t) <= fds })
	// Our own address, 1,000 ports in a row twice, and a hundred times an
	// alias and two ports.
	if got := m.Keys(); got > 1+1+2*18+100*3 {
		t.Errorf("the program's map has %d keys", got)
	}
}

func descriptors(t testing.TB) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// routed tells whether there is a route to the aliases, beside the kernel's own
// to all of 127.0.0.0/8.
func routed(t testing.TB, n *netns.Namespace) (found bool) {
	t.Helper()
	netnstest.Do(t, n, func() error {
		routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_LOCAL}, netlink.RT_FILTER_TABLE)
		for _, r := range routes {
			found = found || r.Dst != nil && r.Dst.String() == portmap.Aliases.String()
		}
		return err
	})
	return found
}

func TestCloseLeavesNothing(t *testing.T) {
	n := netnstest.New(t)
	serve(t, netnstest.New(t)) // what the BPF package opens once, and keeps
	fds := descriptors(t)
	m, s := serve(t, n)
	set(t, m, webdb, append(tcp(80), udp(53)...), "db")
	if got := programs(t, n); got != 1 {
		t.Errorf("there are %d programs, want 1", got)
	}
	wantWho(t, n, "tcp", "127.77.0.2:80", "db 127.77.0.2:80")
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if got := programs(t, n); got != 0 {
		t.Errorf("after Close there are %d programs", got)
	}
	if tcp, udp := listening(t, n, "tcp"), listening(t, n, "udp"); len(tcp)+len(udp) != 0 {
		t.Errorf("after Close there are sockets on %v and %v", tcp, udp)
	}
	if routed(t, n) {
		t.Error("after Close there is a route")
	}
	netnstest.Until(t, "every descriptor to be closed", func() bool { return descriptors(t) <= fds })
	wantWho(t, n, "tcp", "127.77.0.2:80", "refused")
	if s.tcp != 0 || s.udp != 0 {
		t.Errorf("the sink still serves %d and %d sockets", s.tcp, s.udp)
	}

	if err := m.Close(); err != nil {
		t.Errorf("second Close = %v", err)
	}
	if err := m.Set(webdb, nil, ""); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Set after Close = %v", err)
	}
	if err := m.Delete(webdb); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Delete after Close = %v", err)
	}
	if _, found := m.Lookup(netip.MustParseAddrPort("127.77.0.2:80"), link.TCP); found {
		t.Error("Lookup after Close finds a port")
	}
}

func TestOpenLeavesNothingWhenItFails(t *testing.T) {
	n := netnstest.New(t)
	serve(t, netnstest.New(t)) // what the BPF package opens once, and keeps
	fds := descriptors(t)
	s := &sink{t: t, fail: errors.New("no, thanks")}
	m, err := portmap.Open[string](n, s, quiet())
	if m != nil || err == nil || err.Error() != "listening in the recipient's namespace: no, thanks" {
		t.Errorf("Open = %v, %v", m, err)
	}
	if now := descriptors(t); now > fds {
		t.Errorf("%d descriptors are left", now-fds)
	}
	if got := programs(t, n); got != 0 {
		t.Errorf("%d programs are left", got)
	}

	// Something that has run out is no reason to listen otherwise.
	if _, err := portmap.OpenRefused[string](n, s, quiet(), fmt.Errorf("loading: %w", unix.EMFILE)); !errors.Is(err, unix.EMFILE) {
		t.Errorf("Open without descriptors = %v", err)
	}
}

func TestSetErrors(t *testing.T) {
	m, _ := serve(t, netnstest.New(t))
	for _, test := range []struct {
		alias string
		ports []link.Port
		want  string
	}{
		{"127.77.0.0", nil, "setting the ports of alias 127.77.0.0: not an address for an alias, those are in 127.77.0.0/16, from 127.77.0.2 on"},
		{"127.0.0.1", nil, "setting the ports of alias 127.0.0.1: not an address for an alias, those are in 127.77.0.0/16, from 127.77.0.2 on"},
		{"::1", nil, "setting the ports of alias ::1: not an address for an alias, those are in 127.77.0.0/16, from 127.77.0.2 on"},
		{"127.77.0.2", tcp(0), "setting the ports of alias 127.77.0.2: port 0/tcp: there is no port 0"},
	} {
		if err := m.Set(netip.MustParseAddr(test.alias), test.ports, ""); err == nil || err.Error() != test.want {
			t.Errorf("Set = %v\nwant %s", err, test.want)
		}
	}
	if err := m.Delete(netip.MustParseAddr("127.77.5.5")); err != nil {
		t.Errorf("deleting an alias that is not there = %v", err)
	}
	if err := m.Set(webdb, []link.Port{{Number: 9, Proto: link.SCTP}}, ""); err != nil {
		t.Errorf("setting an SCTP port, which is left out = %v", err)
	}
}

// An agent that takes over from another one opens its Map while the old one's
// is still there.
func TestTheNewerOfTwoMapsServes(t *testing.T) {
	n := netnstest.New(t)
	old, _ := serve(t, n)
	set(t, old, webdb, append(tcp(80), udp(53)...), "old")
	next, _ := serve(t, n)
	wantWho(t, n, "tcp", "127.77.0.2:80", "old 127.77.0.2:80")
	set(t, next, webdb, append(tcp(80), udp(53)...), "new")
	wantWho(t, n, "tcp", "127.77.0.2:80", "new 127.77.0.2:80")
	wantWho(t, n, "udp", "127.77.0.2:53", "new 127.77.0.2:53")
	if err := old.Close(); err != nil {
		t.Error(err)
	}
	wantWho(t, n, "tcp", "127.77.0.2:80", "new 127.77.0.2:80")
	wantWho(t, n, "tcp", "127.77.0.2:81", "refused")
}

func TestLookupWhileItChanges(t *testing.T) {
	m, _ := serve(t, netnstest.New(t))
	var wait sync.WaitGroup
	for i := range 4 {
		alias := netip.AddrFrom4([4]byte{127, 77, 2, byte(i)})
		wait.Go(func() {
			for k := range 100 {
				if err := m.Set(alias, tcp(80, uint16(1000+k)), alias.String()); err != nil {
					t.Error(err)
				}
				if owner, found := m.Lookup(netip.AddrPortFrom(alias, 80), link.TCP); !found || owner != alias.String() {
					t.Errorf("Lookup = %q, %v", owner, found)
				}
				if k%10 == 9 {
					if err := m.Delete(alias); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wait.Wait()
}

func TestLookupDoesNotAllocate(t *testing.T) {
	m, _ := serve(t, netnstest.New(t))
	set(t, m, webdb, tcp(80), "db")
	local := netip.MustParseAddrPort("127.77.0.2:80")
	if n := testing.AllocsPerRun(100, func() { m.Lookup(local, link.TCP) }); n != 0 {
		t.Errorf("Lookup allocates %v times", n)
	}
}

func BenchmarkLookup(b *testing.B) {
	m, _ := serve(b, netnstest.New(b))
	var ports []uint16
	for p := uint16(1000); p < 2000; p++ {
		ports = append(ports, p)
	}
	for i := range 100 {
		set(b, m, netip.AddrFrom4([4]byte{127, 77, 1, byte(i)}), tcp(ports...), "db")
	}
	local := netip.MustParseAddrPort("127.77.1.50:1500")
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, found := m.Lookup(local, link.TCP); !found {
				b.Fail()
			}
		}
	})
}

// BenchmarkConnect is what a client pays: to a listener it finds by itself, and
// to one it is steered to.
func BenchmarkConnect(b *testing.B) {
	n := netnstest.New(b)
	m, _ := serve(b, n)
	ownServer(b, n, "tcp", "127.0.0.1:80")
	set(b, m, webdb, tcp(80), "db")
	for _, to := range []string{"127.0.0.1:80", "127.77.0.2:80"} {
		b.Run(to, func(b *testing.B) {
			for b.Loop() {
				c, err := dialIn(n, "tcp", "", to)
				if err != nil {
					b.Fatal(err)
				}
				c.(*net.TCPConn).SetLinger(0)
				c.Close()
			}
		})
	}
}
