//go:build linux

package portmap_test

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/linkrun/linkrun/link"
	"github.com/linkrun/linkrun/netns"
	"github.com/linkrun/linkrun/netns/netnstest"
	"github.com/linkrun/linkrun/portmap"
)

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// logged is a log to look into.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

// take returns what was logged since the last call.
func (l *logged) take() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.b.Reset()
	return l.b.String()
}

// refuse opens a Map as on a kernel that refuses the program.
func refuse(t testing.TB, n *netns.Namespace) (*portmap.Map[string], *sink, *logged) {
	t.Helper()
	log := new(logged)
	noTime := func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}
	m, s := serveWith(t, func(s *sink) (*portmap.Map[string], error) {
		logger := slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{ReplaceAttr: noTime}))
		return portmap.OpenRefused[string](n, s, logger, fmt.Errorf("loading: %w", ebpf.ErrNotSupported))
	})
	return m, s, log
}

func TestListenOnEveryPort(t *testing.T) {
	n := netnstest.New(t)
	m, s, log := refuse(t, n)
	if m.Steered() {
		t.Error("Steered, without a program")
	}
	const want = `level=WARN msg="listening on every port of a link, since connections cannot be steered" ` +
		`err="loading: not supported" hint="steering needs Linux 5.9 or later, and CAP_BPF or CAP_SYS_ADMIN on the host; ` +
		`without, a server of the recipient cannot have the same port as one of its links"` + "\n"
	if got := log.take(); got != want {
		t.Errorf("the log says\n%swant\n%s", got, want)
	}

	set(t, m, webdb, append(tcp(80, 5432, 80), udp(53)...), "db")
	set(t, m, cache, append(tcp(80), link.Port{Number: 9, Proto: link.SCTP}), "redis")
	for _, test := range []struct{ network, to, want string }{
		{"tcp", "127.77.0.2:80", "db 127.77.0.2:80"},
		{"tcp", "127.77.0.2:5432", "db 127.77.0.2:5432"},
		{"tcp", "127.77.0.3:80", "redis 127.77.0.3:80"},
		{"udp", "127.77.0.2:53", "db 127.77.0.2:53"},
		{"tcp mapped", "127.77.0.2:80", "db 127.77.0.2:80"},
		{"udp mapped", "127.77.0.2:53", "db 127.77.0.2:53"},
		{"tcp", "127.77.0.2:81", "refused"},
		{"udp", "127.77.0.3:53", "refused"},
	} {
		wantWho(t, n, test.network, test.to, test.want)
	}
	if s.tcp != 3 || s.udp != 1 {
		t.Errorf("the sink serves %d and %d sockets, want 3 and 1", s.tcp, s.udp)
	}

	set(t, m, webdb, tcp(80, 81), "db2")
	wantWho(t, n, "tcp", "127.77.0.2:80", "db2 127.77.0.2:80")
	wantWho(t, n, "tcp", "127.77.0.2:81", "db2 127.77.0.2:81")
	wantWho(t, n, "tcp", "127.77.0.2:5432", "refused")
	wantWho(t, n, "udp", "127.77.0.2:53", "refused")

	set(t, m, webdb, nil, "db2")
	wantWho(t, n, "tcp", "127.77.0.2:80", "refused")
	if err := m.Delete(cache); err != nil {
		t.Error(err)
	}
	wantWho(t, n, "tcp", "127.77.0.3:80", "refused")
	if s.tcp != 0 || s.udp != 0 {
		t.Errorf("the sink serves %d and %d sockets, want none", s.tcp, s.udp)
	}
	if got := log.take(); got != "" {
		t.Errorf("the log says %s", got)
	}
}

// Without steering, a port can have one server. The warning says which.
func TestConflictIsNamed(t *testing.T) {
	for _, network := range []string{"tcp", "udp"} {
		n := netnstest.New(t)
		m, _, log := refuse(t, n)
		log.take()
		own := ownServer(t, n, network, "0.0.0.0:5000")
		ports := portsOf(link.Proto(network), []uint16{5000, 5001})
		set(t, m, webdb, ports, "db")
		want := fmt.Sprintf(`level=WARN msg="a port of a link cannot be reached" addr=127.77.0.2:5000 proto=%s `+
			`err="listening on 127.77.0.2:5000/%[1]s: bind: address already in use" `+
			`hint="a server of the recipient has that port; have it bind a single address, such as 127.0.0.1"`+"\n", network)
		if got := log.take(); got != want {
			t.Errorf("the log says\n%swant\n%s", got, want)
		}
		wantWho(t, n, network, "127.77.0.2:5001", "db 127.77.0.2:5001")

		// The next Set finds it gone.
		own.Close()
		set(t, m, webdb, ports, "db")
		if got := log.take(); got != "" {
			t.Errorf("the log says %s", got)
		}
		wantWho(t, n, network, "127.77.0.2:5000", "db 127.77.0.2:5000")

		// And the other way round.
		if _, err := tryOwnServer(n, network, "0.0.0.0:5000", true); err == nil || !strings.Contains(err.Error(), "address already in use") {
			t.Errorf("the recipient's server on a link's port: %v, want EADDRINUSE", err)
		}
	}
}

func TestListenOnEveryPortLeavesNothing(t *testing.T) {
	n := netnstest.New(t)
	fds := descriptors(t)
	m, s, _ := refuse(t, n)
	set(t, m, webdb, append(tcp(80), udp(53)...), "db")
	set(t, m, cache, append(tcp(80), udp(53)...), "redis")
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if s.tcp != 0 || s.udp != 0 {
		t.Errorf("the sink serves %d and %d sockets, want none", s.tcp, s.udp)
	}
	if now := descriptors(t); now > fds {
		t.Errorf("%d descriptors are left", now-fds)
	}

	// A sink that refuses leaves the sockets to us.
	s2 := &sink{t: t, fail: unix.EMFILE}
	m, err := portmap.OpenRefused[string](n, s2, quiet(), unix.EPERM)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Set(webdb, udp(53), "db"); err == nil || err.Error() != "setting the ports of alias 127.77.0.2: too many open files" {
		t.Errorf("Set = %v", err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if now := descriptors(t); now > fds {
		t.Errorf("%d descriptors are left", now-fds)
	}
}
