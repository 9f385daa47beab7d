package peering

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/linkrun/linkrun/internal/exchange"
	"github.com/linkrun/linkrun/internal/faultline"
	"github.com/linkrun/linkrun/netns"
	"github.com/linkrun/linkrun/netns/netnstest"
)

// wire is two hosts as processes in namespaces that a cable joins, a recipient
// at hosta that is linked to a source at hostb, and connections between them
// that know their every byte.
type wire struct {
	a, b   *process
	ca     root
	line   *faultline.Line // what hosta dials hostb through; nil is nothing but the cable
	server *exchange.Server
	load   *exchange.Load
	seed   uint64

	dials chan struct{} // bounds the threads that are in a namespace
}

const (
	addrA, addrB = "10.79.0.1", "10.79.0.2"
	linkAt       = "127.0.0.1:5432" // at hosta, the recipient's address of the link
	sourceAt     = "127.0.0.1:6543" // at hostb
	lineAt       = "127.0.0.1:7444" // at hosta
)

// seedVar picks another seed, to see a failure again.
const seedVar = "LINKRUN_TEST_SEED"

// lay makes all that, and runs it until the test is over.
func lay(t *testing.T, throughLine bool, hold time.Duration) *wire {
	t.Helper()
	w := &wire{ca: newRoot(t), seed: rand.Uint64() >> 32, server: new(exchange.Server), dials: make(chan struct{}, 4)}
	if s := os.Getenv(seedVar); s != "" {
		seed, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		w.seed = seed
	}
	t.Logf("%s=%d", seedVar, w.seed)
	nsa, nsb := netnstest.New(t), netnstest.New(t)
	netnstest.Connect(t, "eth0", nsa, netip.MustParsePrefix(addrA+"/24"), nsb, netip.MustParsePrefix(addrB+"/24"))

	var served sync.WaitGroup
	ln := w.listen(t, nsb, sourceAt)
	served.Go(func() { w.server.Serve(ln) })
	t.Cleanup(func() { ln.Close(); served.Wait() })

	hostb := addrB + ":7443"
	if throughLine {
		hostb = lineAt
		w.line = &faultline.Line{Seed: w.seed, Dial: func(ctx context.Context) (net.Conn, error) { return w.dial(nsa, addrB+":7443") }}
		ln := w.listen(t, nsa, lineAt)
		ctx, cancel := context.WithCancel(context.Background())
		served.Go(func() { w.line.Serve(ctx, ln) })
		t.Cleanup(cancel)
	}
	w.a = &process{ns: nsa, part: part{
		Files: files(t, t.TempDir(), w.ca.leaf(t, "hosta", nil), w.ca), Listen: addrA + ":7443",
		Peer: "hostb", At: hostb, Hold: hold, Link: linkAt, Source: sourceAt,
	}}
	w.b = &process{ns: nsb, part: part{
		Files: files(t, t.TempDir(), w.ca.leaf(t, "hostb", nil), w.ca), Listen: addrB + ":7443",
		Link: linkAt, Source: sourceAt, // it is called, and calls nobody
	}}
	for _, p := range []*process{w.a, w.b} {
		p.launch(t)
		t.Cleanup(func() {
			p.stop(t)
			if t.Failed() {
				t.Logf("the log of %s:\n%s", p.name(), &p.log)
			}
		})
	}
	w.load = &exchange.Load{
		Dial:    func(context.Context) (exchange.Conn, error) { return w.dial(nsa, linkAt) },
		Clients: 24, Seed: w.seed, Most: 1 << 20, Pause: 50 * time.Millisecond,
		// Longer than it takes to notice that a host is dead, and short enough.
		Patience: 20 * time.Second,
	}
	w.back(t, "at first", time.Now())
	return w
}

func (p *process) name() string {
	if p.part.Listen == addrA+":7443" {
		return "hosta"
	}
	return "hostb"
}

func (w *wire) listen(t testing.TB, ns *netns.Namespace, addr string) (ln net.Listener) {
	t.Helper()
	netnstest.Do(t, ns, func() (err error) {
		var lc net.ListenConfig
		lc.SetMultipathTCP(false)
		ln, err = lc.Listen(context.Background(), "tcp", addr)
		return err
	})
	return ln
}

func (w *wire) dial(ns *netns.Namespace, addr string) (conn *net.TCPConn, err error) {
	w.dials <- struct{}{}
	defer func() { <-w.dials }()
	dialer := net.Dialer{Timeout: 1500 * time.Millisecond}
	dialer.SetMultipathTCP(false)
	err = ns.Do(func() error {
		c, err := dialer.Dial("tcp4", addr)
		if err == nil {
			conn = c.(*net.TCPConn)
		}
		return err
	})
	return conn, err
}

// run carries connections while fn does its worst, and checks them all. What
// began before the end is waited for.
func (w *wire) run(t *testing.T, fn func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var load sync.WaitGroup
	load.Go(func() { w.load.Run(ctx) })
	netnstest.Until(t, "connections", func() bool { return w.load.Tally.Now().Whole > 50 })
	fn()
	cancel()
	load.Wait()
	w.check(t)
}

// check looks at every connection there was.
func (w *wire) check(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		a, errA := w.a.tell("state")
		b, errB := w.b.tell("state")
		if errA == nil && errB == nil && a.streams()+b.streams() == 0 {
			break
		}
		if time.Now().After(deadline) {
			w.a.tell("stacks")
			w.b.tell("stacks")
			t.Errorf("streams do not end: %+v, %v; %+v, %v", a.Hosts, errA, b.Hosts, errB)
			break
		}
	}
	clients, server := w.load.Tally.Now(), w.server.Tally.Now()
	t.Logf("clients: %v %v", clients, clients.Errors)
	t.Logf("server: %v %v", server, server.Errors)
	for _, wrong := range append(clients.Wrong, server.Wrong...) {
		t.Errorf("%s", wrong)
	}
	for _, p := range []*process{w.a, w.b} {
		t.Logf("%s has logged %d lines:\n%s", p.name(), strings.Count(p.log.String(), "\n"), &p.log)
	}
}

// during logs what befalls connections while fn runs.
func (w *wire) during(t *testing.T, what string, fn func()) exchange.Counts {
	t.Helper()
	before, start := w.load.Tally.Now(), time.Now()
	fn()
	now := w.load.Tally.Now()
	now.Whole, now.Failed, now.Refused = now.Whole-before.Whole, now.Failed-before.Failed, now.Refused-before.Refused
	t.Logf("%s: %v long; %d connections whole, %d failed, %d refused", what,
		time.Since(start).Round(time.Millisecond), now.Whole, now.Failed, now.Refused)
	return now
}

// back waits until a new connection is answered, and logs how long after start
// that is. It begins one every few milliseconds, since those that begin too
// early may hang until their host is given up.
func (w *wire) back(t *testing.T, what string, start time.Time) time.Duration {
	t.Helper()
	answered := make(chan time.Duration, 1)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	heart := &exchange.Heart{
		Dial:  func(context.Context) (exchange.Conn, error) { return w.dial(w.a.ns, linkAt) },
		Every: 20 * time.Millisecond,
		Answer: func(at time.Time) {
			select {
			case answered <- at.Sub(start):
			default:
			}
			cancel()
		},
	}
	heart.Run(ctx)
	select {
	case took := <-answered:
		t.Logf("%s: the link is back after %v", what, took.Round(time.Millisecond))
		return took
	default:
		t.Fatalf("%s: the link is not back", what)
		return 0
	}
}

// noticed waits until a process knows that its peer is gone, and logs how long
// after start that is.
func (w *wire) noticed(t *testing.T, p *process, start time.Time) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		r, err := p.tell("state")
		if up, why := r.up(); err == nil && !up {
			t.Logf("%s has noticed after %v: %s", p.name(), time.Since(start).Round(time.Millisecond), why)
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s has not noticed: %+v, %v", p.name(), r, err)
		}
	}
}

// cable sets one end of the cable up or down.
func (w *wire) cable(t *testing.T, p *process, up bool) {
	t.Helper()
	netnstest.Do(t, p.ns, func() error {
		dev, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if up {
			return netlink.LinkSetUp(dev)
		}
		return netlink.LinkSetDown(dev)
	})
}

// partition takes one end of the cable down for a while.
func (w *wire) partition(t *testing.T, p *process, d time.Duration) {
	t.Helper()
	what := fmt.Sprintf("partition of %v at %s", d, p.name())
	w.during(t, what, func() {
		start := time.Now()
		w.cable(t, p, false)
		if d > 10*time.Second {
			w.noticed(t, w.a, start)
			w.during(t, "after that", func() { time.Sleep(d - time.Since(start)) })
		}
		time.Sleep(d - time.Since(start)) // the length of a partition is what it is about
		w.cable(t, p, true)
		up := time.Now()
		var network sync.WaitGroup
		network.Go(func() { w.network(t, what, up) })
		w.back(t, what, up)
		network.Wait()
	})
}

// network logs how long after start a packet gets to hostb and another one
// back: the kernel takes up to a second to see that a cable is plugged in.
func (w *wire) network(t *testing.T, what string, start time.Time) {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		var errno error
		w.a.ns.Do(func() error {
			// Nobody listens there.
			_, errno = (&net.Dialer{Timeout: 50 * time.Millisecond}).Dial("tcp4", addrB+":9")
			return nil
		})
		if errors.Is(errno, syscall.ECONNREFUSED) {
			t.Logf("%s: the network itself is back after %v", what, time.Since(start).Round(time.Millisecond))
			return
		}
	}
}

// TestPartitions takes the network away and gives it back.
func TestPartitions(t *testing.T) {
	for name, hold := range map[string]time.Duration{"refusing": 0, "holding": 5 * time.Second} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := lay(t, false, hold)
			w.run(t, func() {
				w.partition(t, w.a, 5*time.Second)
				w.partition(t, w.b, 5*time.Second)
			})
		})
	}
	for i, name := range []string{"long at hosta", "long at hostb"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := lay(t, false, 0)
			w.run(t, func() {
				w.partition(t, []*process{w.a, w.b}[i], longPartition())
			})
		})
	}
}

// longPartition is one that a session does not survive. The full minute is for
// `make soak`: what is different in it is that more attempts fail.
func longPartition() time.Duration {
	d, err := time.ParseDuration(cmp.Or(os.Getenv("LINKRUN_TEST_PARTITION"), "15s"))
	if err != nil {
		panic(err)
	}
	return d
}

// TestKilled kills the hosts, one after the other and both at once.
func TestKilled(t *testing.T) {
	t.Parallel()
	w := lay(t, false, 0)
	w.run(t, func() {
		chance := rand.New(rand.NewPCG(w.seed, 1))
		cases := [][]*process{{w.a}, {w.b}, {w.a, w.b}, {w.b, w.a}, {w.a}, {w.b}}
		chance.Shuffle(len(cases), func(i, j int) { cases[i], cases[j] = cases[j], cases[i] })
		for _, victims := range cases {
			var names []string
			for _, p := range victims {
				names = append(names, p.name())
			}
			what := strings.Join(names, " and ") + " killed"
			w.during(t, what, func() {
				start := time.Now()
				for _, p := range victims {
					p.kill()
				}
				if len(victims) == 1 && victims[0] == w.b {
					w.noticed(t, w.a, start)
				}
				time.Sleep(time.Duration(chance.Int64N(int64(time.Second)))) // as long as a restart takes
				for _, p := range victims {
					p.launch(t)
				}
				w.back(t, what, time.Now())
			})
		}
	})
}

// TestHeld has a recipient connect while there is no session: the connection
// waits for one.
func TestHeld(t *testing.T) {
	t.Parallel()
	w := lay(t, false, time.Minute)
	start := time.Now()
	w.b.kill()
	w.noticed(t, w.a, start)
	var held sync.WaitGroup
	for n := range uint64(10) {
		conn, err := w.dial(w.a.ns, linkAt)
		if err != nil {
			t.Fatal(err)
		}
		held.Go(func() {
			o := exchange.Run(conn, exchange.Plan{Number: n, Kind: exchange.Bulk, Up: 100_000, Down: 100_000}, time.Minute)
			if !o.Whole() {
				t.Error(o)
			}
			t.Log("held:", o)
		})
	}
	w.b.launch(t)
	held.Wait()
	w.check(t)
}

// TestFaults has the line between the hosts do everything it can that does not
// end a session, and resets, in random order, some at the same time.
func TestFaults(t *testing.T) {
	t.Parallel()
	w := lay(t, true, 0)
	const brief = time.Second
	lasting := func(f faultline.Faults) func(*testing.T) {
		return func(*testing.T) {
			w.line.Set(f)
			time.Sleep(brief) // the length of a fault is part of it
		}
	}
	faults := map[string]func(*testing.T){
		"delay and jitter": lasting(faultline.Faults{Delay: 20 * time.Millisecond, Jitter: 60 * time.Millisecond}),
		"loss":             lasting(faultline.Faults{Delay: 5 * time.Millisecond, Loss: 0.05, Stall: 200 * time.Millisecond}),
		"a slow network":   lasting(faultline.Faults{Delay: 5 * time.Millisecond, Rate: 1 << 20}),
		"single bytes":     lasting(faultline.Faults{Slice: 1}),
		"late and torn":    lasting(faultline.Faults{Slice: 7, Delay: time.Millisecond, Jitter: 20 * time.Millisecond}),
		"silence":          lasting(faultline.Faults{Mute: true}),
		"silence one way": func(*testing.T) {
			w.line.SetEach(faultline.Faults{Mute: true}, faultline.Faults{})
			time.Sleep(brief)
		},
		"silence the other way": func(*testing.T) {
			w.line.SetEach(faultline.Faults{}, faultline.Faults{Mute: true})
			time.Sleep(brief)
		},
		"reset": func(t *testing.T) {
			w.line.Reset()
			w.back(t, "reset", time.Now())
		},
		"reset of a torn line": func(t *testing.T) {
			w.line.Set(faultline.Faults{Slice: 3, Delay: 10 * time.Millisecond})
			time.Sleep(brief / 2)
			w.line.Reset()
			w.line.Set(faultline.Faults{}) // what waits in a slow line is not what this is about
			w.back(t, "reset of a torn line", time.Now())
		},
		"hosta forgotten": func(t *testing.T) {
			w.line.Forget(faultline.Near)
			w.back(t, "hosta forgotten", time.Now())
		},
	}
	w.run(t, func() {
		for _, name := range shuffled(w.seed, faults) {
			before := w.load.Tally.Now()
			during := w.during(t, name, func() { faults[name](t) })
			w.line.Set(faultline.Faults{})
			if took := w.back(t, "after "+name, time.Now()); during.Failed > 0 && strings.HasPrefix(name, "silence") {
				t.Errorf("%d connections failed, of %v before: %s ends no session, and lasted %v more", during.Failed, before, name, took)
			}
		}
	})
}

// shuffled is the names of something in an order that only the seed decides.
func shuffled[T any](seed uint64, of map[string]T) []string {
	var names []string
	for name := range of {
		names = append(names, name)
	}
	// The order of a map is not the seed's.
	slices.Sort(names)
	rand.New(rand.NewPCG(seed, 2)).Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	return names
}

// TestBlackHole has the network swallow everything, from the middle of a frame
// on, while the connections stand: nobody is told.
func TestBlackHole(t *testing.T) {
	t.Parallel()
	w := lay(t, true, 0)
	w.run(t, func() {
		chance := rand.New(rand.NewPCG(w.seed, 3))
		w.during(t, "a black hole", func() {
			start := time.Now()
			w.line.MuteAfter(chance.Int64N(100_000))
			w.noticed(t, w.a, start)
			w.line.Set(faultline.Faults{})
			w.back(t, "a black hole", time.Now())
		})
	})
}

// TestHalfOpen has hostb lose its end of the session without hosta being told.
func TestHalfOpen(t *testing.T) {
	t.Parallel()
	w := lay(t, true, 0)
	w.run(t, func() {
		w.during(t, "hostb forgotten", func() {
			start := time.Now()
			w.line.Forget(faultline.Far)
			w.back(t, "hostb forgotten", start)
		})
	})
}
