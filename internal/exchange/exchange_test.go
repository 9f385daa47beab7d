package exchange

import (
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const patience = 20 * time.Second

// serving runs a server until the test is over.
func serving(t *testing.T) (*Server, string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := new(Server)
	var served sync.WaitGroup
	served.Go(func() {
		if err := s.Serve(ln); err != nil {
			t.Errorf("serving: %v", err)
		}
	})
	t.Cleanup(func() { ln.Close(); served.Wait() })
	return s, ln.Addr().String()
}

func dial(t *testing.T, addr string) Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return c.(Conn)
}

// tampered is a connection that something happens to.
type tampered struct {
	Conn
	read func([]byte) (int, error)
}

func (t tampered) Read(p []byte) (int, error) { return t.read(p) }

func TestKinds(t *testing.T) {
	s, addr := serving(t)
	n := 0
	for kind := Talk; kind < kinds; kind++ {
		for _, size := range [][2]int64{{0, 0}, {1, 0}, {0, 1}, {turn, 3*turn + 1}, {5, 1 << 20}, {1 << 20, 7}} {
			n++
			p := Plan{uint64(n), kind, size[0], size[1]}
			o := Run(dial(t, addr), p, patience)
			if !o.Whole() {
				t.Error(o)
			}
			for deadline := time.Now().Add(patience); s.Tally.Now().Whole < n; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) || s.Tally.Now().Failed+s.Tally.Now().Wrongs > 0 {
					t.Fatalf("at the server, after %v: %v %q", o, s.Tally.Now(), s.Tally.Now().Wrong)
				}
			}
		}
	}
}

// TestWrong spoils connections in every way that must not happen; each is
// found.
func TestWrong(t *testing.T) {
	const size = 100_000
	for name, c := range map[string]struct {
		kind  Kind
		spoil func(Conn) func([]byte) (int, error)
		want  string
	}{
		"a byte changed": {Turn, func(c Conn) func([]byte) (int, error) {
			total := 0
			return func(p []byte) (int, error) {
				n, err := c.Read(p)
				if total <= 777 && total+n > 777 {
					p[777-total] ^= 1
				}
				total += n
				return n, err
			}
		}, "byte 777 is"},
		"bytes doubled": {Bulk, func(c Conn) func([]byte) (int, error) {
			var last []byte
			return func(p []byte) (int, error) {
				if len(last) >= 100 {
					n := copy(p, last)
					last = nil
					return n, nil
				}
				n, err := c.Read(p)
				last = append([]byte(nil), p[:n]...)
				return n, err
			}
		}, "instead of"},
		"an end too early": {Turn, func(c Conn) func([]byte) (int, error) {
			r := io.LimitReader(c, 1000)
			return r.Read
		}, "ended after 1000 bytes, with 99000 to come"},
		"no receipt": {Turn, func(c Conn) func([]byte) (int, error) {
			r := io.LimitReader(c, size)
			return r.Read
		}, "ended after 0 bytes of the receipt"},
		"no end": {Turn, func(c Conn) func([]byte) (int, error) {
			return func(p []byte) (int, error) { time.Sleep(200 * time.Millisecond); return c.Read(p) }
		}, "neither went on nor ended"},
		"more than there was": {Turn, func(c Conn) func([]byte) (int, error) {
			r := io.MultiReader(c, strings.NewReader("more"))
			return r.Read
		}, "more than the 100000 bytes"},
		"an end instead of a reset": {Rebuff, func(c Conn) func([]byte) (int, error) {
			return func(p []byte) (int, error) {
				n, err := c.Read(p)
				if err != nil {
					err = io.EOF
				}
				return n, err
			}
		}, "ended "},
	} {
		t.Run(name, func(t *testing.T) {
			_, addr := serving(t)
			conn, wait := dial(t, addr), patience
			if name == "no end" {
				wait = 100 * time.Millisecond
			}
			o := Run(tampered{conn, c.spoil(conn)}, Plan{1, c.kind, size, size}, wait)
			if o.Wrong == nil || !strings.Contains(o.Wrong.Error(), c.want) {
				t.Errorf("got %v, want %q", o, c.want)
			}
		})
	}
}

// TestServerNotices has clients do what they must not.
func TestServerNotices(t *testing.T) {
	for name, c := range map[string]struct {
		send func(Conn)
		want string
	}{
		"too short": {func(c Conn) { c.Write(Plan{1, Turn, 10, 0}.append(nil)[:5]) }, "ended after 5 bytes of the plan"},
		"half":      {func(c Conn) { c.Write(Plan{1, Turn, 10, 0}.append(nil)) }, "ended after 0 bytes, with 10 to come"},
		"no plan":   {func(c Conn) { c.Write(make([]byte, planSize)) }, "a plan that nobody has sent"},
		"no aborts": {func(c Conn) { c.Write(Plan{1, Abort, 0, 0}.append(nil)) }, "but was reset"},
	} {
		t.Run(name, func(t *testing.T) {
			s, addr := serving(t)
			conn := dial(t, addr)
			defer conn.Close()
			c.send(conn)
			conn.CloseWrite()
			for deadline := time.Now().Add(patience); s.Tally.Now().Wrongs == 0; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("nothing was found wrong")
				}
			}
			if got := s.Tally.Now().Wrong[0]; !strings.Contains(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// TestFailed resets connections: that is an error and no wrong, and what came
// before it was right.
func TestFailed(t *testing.T) {
	s, addr := serving(t)
	conn := dial(t, addr)
	var read atomic.Int64
	o := Run(tampered{conn, func(p []byte) (int, error) {
		if read.Load() > 1000 {
			conn.SetLinger(0)
			conn.Close()
		}
		n, err := conn.Read(p)
		read.Add(int64(n))
		return n, err
	}}, Plan{1, Bulk, 10 << 20, 10 << 20}, patience)
	if o.Err == nil || o.Wrong != nil || o.Got <= 1000 {
		t.Errorf("got %v", o)
	}
	for deadline := time.Now().Add(patience); s.Tally.Now().Failed == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the server has %v", s.Tally.Now())
		}
	}
}

func TestLoad(t *testing.T) {
	s, addr := serving(t)
	var dialed atomic.Int64
	ctx, cancel := context.WithCancel(t.Context())
	l := &Load{Clients: 8, Seed: 1, Most: 100_000, Patience: patience, Dial: func(ctx context.Context) (Conn, error) {
		if dialed.Add(1) == 100 {
			cancel()
		}
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return nil, err
		}
		return c.(Conn), nil
	}}
	l.Run(ctx)
	if n := l.Tally.Now(); n.Whole < 100 || n.Failed+n.Refused+n.Wrongs > 0 {
		t.Errorf("the clients have %v", n)
	}
	t.Logf("clients: %v; server: %v", l.Tally.Now(), s.Tally.Now())
}
