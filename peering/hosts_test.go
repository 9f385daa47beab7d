package peering

import (
	"context"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/linkrun/linkrun/internal/logbook"
	"github.com/linkrun/linkrun/tunnel"
)

func TestAddress(t *testing.T) {
	for s, want := range map[string]string{
		"7443":              ":7443",
		":80":               ":80",
		"hostb":             "hostb:7443",
		"hostb:80":          "hostb:80",
		"hostb.example.org": "hostb.example.org:7443",
		"192.0.2.1":         "192.0.2.1:7443",
		"192.0.2.1:80":      "192.0.2.1:80",
		"::1":               "[::1]:7443",
		"[::1]":             "[::1]:7443",
		"[::1]:80":          "[::1]:80",
		"fe80::1%eth0":      "[fe80::1%eth0]:7443",
	} {
		if got := Address(s); got != want {
			t.Errorf("Address(%q) = %q, want %q", s, got, want)
		}
	}
}

// One session carries what both ask, whoever has dialed it.
func TestTwoHosts(t *testing.T) {
	a, b := two(t)
	defer a.Want("hostb")()
	there, who := a.ask(t, "hostb")
	if who != "hosta asks for db" {
		t.Errorf("hostb heard that %q", who)
	}
	back, who := b.ask(t, "hosta")
	if who != "hostb asks for db" {
		t.Errorf("hosta heard that %q", who)
	}
	echoes(t, there, "hello")
	echoes(t, back, "hello")
	st := a.State("hostb")
	if !st.Up || st.Since.IsZero() || st.Reason != "" || st.Streams != 2 || st.Address != b.addr || !st.Dialed {
		t.Errorf("the state is %+v", st)
	}
	if st := b.State("hosta"); !st.Up || st.Dialed {
		t.Errorf("the state of the other side is %+v", st)
	}
	if list := a.List(); len(list) != 1 || list[0].Name != "hostb" || !list[0].Wanted || !list[0].Up {
		t.Errorf("hosta lists %+v", list)
	}
	if list := b.List(); len(list) != 1 || list[0].Name != "hosta" || list[0].Wanted {
		t.Errorf("hostb lists %+v", list)
	}
	there.Close()
	back.Close()
}

// What is wanted is kept: a host that goes is dialed until it is back.
func TestHostsComeAndGo(t *testing.T) {
	a, b := two(t)
	changes := make(chan string, 100)
	b.stop()
	defer a.Want("hostb")()
	a.log.Only(t, `msg="peer cannot be reached; trying again" peer=hostb`, "connect: connection refused")
	if st := a.State("hostb"); st.Up || st.Reason == "" || st.Since.IsZero() {
		t.Errorf("the state is %+v", st)
	}
	// The same host again, at the same address.
	ln, err := tunnel.Listen(context.Background(), b.addr)
	if err != nil {
		t.Fatal(err)
	}
	again := &host{Hosts: &Hosts{Store: b.Store, Handle: echo, Changed: func(host string) { changes <- host }}, log: new(logbook.Log)}
	again.run(t, ln)
	st, _ := a.ask(t, "hostb")
	if name := <-changes; name != "hosta" {
		t.Errorf("a session changed with %q", name)
	}
	again.stop()
	if _, err := st.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("a stream to a host that has gone ends with %v", err)
	}
	st.Close()
	a.log.Only(t, `msg="peer down" peer=hostb`)
}

// What is wanted before Run is dialed once it runs, and until then it is said
// why there is nothing.
func TestBeforeAndAfterRun(t *testing.T) {
	noLeaks(t)
	ca := newRoot(t)
	a, lna := newHost(t, open(t, files(t, t.TempDir(), ca.leaf(t, "hosta", nil), ca)))
	b, lnb := newHost(t, open(t, files(t, t.TempDir(), ca.leaf(t, "hostb", nil), ca)))
	a.Known["hostb"] = b.addr
	release := a.Want("hostb")
	if st, want := a.State("hostb"), "nothing is kept with other hosts yet: this host has no identity"; st.Up || st.Reason != want {
		t.Errorf("before it runs the state is %+v, want %q", st, want)
	}
	if _, err := a.Ask(context.Background(), "hostb", tunnel.Request{Kind: tunnel.TCP}); err == nil ||
		err.Error() != `reaching "hostb": nothing is kept with other hosts yet: this host has no identity` {
		t.Errorf("before it runs, asking gives %v", err)
	}
	b.run(t, lnb)
	a.run(t, lna)
	st, _ := a.ask(t, "hostb")
	echoes(t, st, "hello")
	st.Close()
	a.stop()
	if _, err := a.Ask(context.Background(), "hostb", tunnel.Request{Kind: tunnel.TCP}); err == nil ||
		err.Error() != `reaching "hostb": nothing is kept with other hosts any more` {
		t.Errorf("after it has run, asking gives %v", err)
	}
	a.Want("hostc")()
	release()
	release()
	if len(a.List()) != 0 {
		t.Errorf("after it has run, it lists %+v", a.List())
	}
}

func TestNobody(t *testing.T) {
	a, _ := two(t)
	defer a.Want("hosta")()
	for name, want := range map[string]string{
		"hosta": `reaching "hosta": it is this host`,
		"hostc": `reaching "hostc": it has not connected, and nobody wants it`,
	} {
		if _, err := a.Ask(context.Background(), name, tunnel.Request{Kind: tunnel.TCP}); err == nil || err.Error() != want {
			t.Errorf("asking gives %v, want %s", err, want)
		}
		if st := a.State(name); st.Up || `reaching "`+name+`": `+st.Reason != want {
			t.Errorf("the state of %q is %+v", name, st)
		}
	}
}

// A session that nobody has a use for ends after a while, and no trace of the
// host is left.
func TestUnusedSessionsEnd(t *testing.T) {
	a, b := two(t)
	release := a.Want("hostb")
	st, _ := a.ask(t, "hostb")
	release()
	release() // counts once
	a.forget(time.Now().Add(2 * keepQuiet))
	echoes(t, st, "still there")
	st.Close()
	until(t, "the stream to end", func() bool { return a.State("hostb").Streams == 0 })
	a.forget(time.Now().Add(5 * keepQuiet / 2))
	if !a.State("hostb").Up {
		t.Error("the session ended at once")
	}
	a.forget(time.Now().Add(4 * keepQuiet))
	until(t, "both to forget each other", func() bool { return len(a.List()) == 0 && len(b.List()) == 0 })
	defer a.Want("hostb")()
	st, _ = a.ask(t, "hostb")
	st.Close()
}

// Hosts that are wanted, asked and released all the time.
func TestManyAtATime(t *testing.T) {
	a, b := two(t)
	var wg sync.WaitGroup
	for range 20 {
		for _, p := range []struct {
			h    *host
			name string
		}{{a, "hostb"}, {b, "hosta"}} {
			wg.Go(func() {
				for range 5 {
					release := p.h.Want(p.name)
					st, _ := p.h.ask(t, p.name)
					p.h.State(p.name)
					p.h.List()
					st.Close()
					release()
				}
			})
		}
	}
	wg.Wait()
}

// A host that has this one's name is none to keep a session with.
func TestOwnName(t *testing.T) {
	noLeaks(t)
	ca := newRoot(t)
	a, lna := newHost(t, open(t, files(t, t.TempDir(), ca.leaf(t, "hosta", nil), ca)))
	twin := open(t, files(t, t.TempDir(), ca.leaf(t, "hosta", nil), ca))
	a.run(t, lna)
	conn, err := tunnel.DialTLS(context.Background(), a.addr, twin.ClientTLS(tunnel.Protocol, "hosta"))
	if err != nil {
		t.Fatal(err)
	}
	if s, err := tunnel.Start(context.Background(), conn, tunnel.Config{}); err == nil {
		s.Close()
		t.Error("a host keeps a session with itself")
	}
	a.log.Only(t, `msg="refused a host"`, "it has the name of this host, spiffe://example.org/host/hosta")
}
