package peering

import (
	"cmp"
	"context"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/linkrun/linkrun/internal/exchange"
	"github.com/linkrun/linkrun/internal/growth"
)

const (
	// soakStreams is how many connections are open at the same time.
	soakStreams = 1000
	// warmUp is how many rounds it takes until everything that is made once is
	// there, and soakRounds how many it takes at least to call growth by its
	// name.
	warmUp     = 3
	soakRounds = 12
)

// soakTime is how long connections are made for; `make soak` has longer.
func soakTime() time.Duration {
	d, err := time.ParseDuration(cmp.Or(os.Getenv("LINKRUN_TEST_SOAK"), "15s"))
	if err != nil {
		panic(err)
	}
	return d
}

// TestSoak has two hosts carry a thousand connections at a time, again and
// again, in sessions that are replaced meanwhile; what they hold when they
// rest does not grow. Then one of them gets leaks, and they are found.
func TestSoak(t *testing.T) {
	w := lay(t, false, 0)
	s := &soak{wire: w, seen: map[string]bool{}, settle: 3 * time.Second}
	w.load.Most = 128 << 10
	var each time.Duration // a round has 1,000 connections at least, and others for so long
	if soakTime() > time.Minute {
		w.load.Most = 4 << 20
		each = min(soakTime()/30, 20*time.Second)
	}
	w.load.Pause, w.load.Patience = 0, time.Minute
	start := time.Now()
	for n := 0; n < warmUp+soakRounds || time.Since(start) < soakTime(); n++ {
		if n%3 == 1 {
			// Another certificate, and with it another session.
			files(t, filepath.Dir(w.a.part.Files.Cert), w.ca.leaf(t, "hosta", nil), w.ca)
		}
		s.round(t, soakStreams, each)
		if n == warmUp-1 {
			s.series = nil
		}
	}
	w.check(t)
	clients, took := w.load.Tally.Now(), time.Since(start)
	if clients.Failed+clients.Refused > 0 {
		t.Errorf("on a good network, %v: %v", clients, clients.Errors)
	}
	gb := float64(clients.Bytes) / 1e9
	t.Logf("%v: %d connections, %d at a time, in %d sessions; %.2f GB, which is %.0f first windows; %.0f MB/s",
		took.Round(time.Second), clients.Whole, s.most, len(s.seen), gb, gb*1e9/(256<<10), gb*1e3/took.Seconds())
	if s.most < soakStreams {
		t.Errorf("there were never more than %d streams, want %d", s.most, soakStreams)
	}
	if len(s.seen) < 2 {
		t.Error("the session was never replaced")
	}
	for i, p := range []*process{w.a, w.b} {
		series := s.of(i)
		t.Logf("%s at rest, %d times:\n%v", p.name(), len(series), series)
		for _, trend := range series.Trends() {
			if trend.Name == "heap" || trend.Name == "resident" {
				t.Logf("%s: for 100 GB, that is %+.0f kB of %s", p.name(), trend.Total/gb*100/1e3, trend.Name)
			}
		}
		for _, trend := range series.Growing() {
			t.Errorf("%s grows: %v", p.name(), trend)
		}
	}

	t.Run("with leaks", func(t *testing.T) {
		if _, err := w.a.tell("leak 25"); err != nil {
			t.Fatal(err)
		}
		s.series, s.settle = nil, 100*time.Millisecond // it does not rest any more
		w.load.Most = 4 << 10
		for range soakRounds {
			s.round(t, 200, 0)
		}
		found := map[string]bool{}
		for _, trend := range s.of(0).Growing() {
			found[trend.Name] = true
			t.Logf("found: %v", trend)
		}
		for _, name := range []string{"descriptors", "goroutines", "heap"} {
			if !found[name] {
				t.Errorf("the leak of %s was not found:\n%v", name, s.of(0))
			}
		}
		if more := s.of(1).Growing(); len(more) > 0 {
			t.Errorf("the other host grows, too: %v", more)
		}
	})
}

// soak is the rounds of a wire.
type soak struct {
	*wire
	settle time.Duration // how long a host gets to come to rest as it did before
	rounds uint64
	most   int             // streams seen at a time
	seen   map[string]bool // sessions, by hosta's address
	series [][2]growth.Sample
}

func (s *soak) of(i int) (series growth.Series) {
	for _, both := range s.series {
		series = append(series, both[i])
	}
	return series
}

// round has n connections open at once, and as many clients make others for a
// while. When all are over, both hosts are looked at.
func (s *soak) round(t *testing.T, n int, d time.Duration) {
	t.Helper()
	s.rounds++
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	all := make(chan struct{})
	var dialed atomic.Int64
	dial := s.load.Dial
	defer func() { s.load.Dial = dial }()
	s.load.Dial = func(ctx context.Context) (exchange.Conn, error) {
		conn, err := dial(ctx)
		if err != nil || dialed.Add(1) > int64(n) {
			return conn, err
		}
		return gated{conn, all}, nil
	}
	s.load.Clients, s.load.Seed = n, s.seed+s.rounds
	var load sync.WaitGroup
	load.Go(func() { s.load.Run(ctx) })
	open := sync.OnceFunc(func() { close(all) })
	defer load.Wait()
	defer cancel()
	defer open()
	until(t, "all streams to be there at once", func() bool {
		a, errA := s.a.tell("state")
		b, errB := s.b.tell("state")
		if errA != nil || errB != nil {
			t.Fatal(errA, errB)
		}
		for _, h := range b.Hosts {
			s.seen[h.Address] = h.Address != ""
		}
		here := min(a.streams(), b.streams())
		s.most = max(s.most, here)
		return here >= n
	})
	open()
	if d == 0 {
		cancel()
	}
	after := time.AfterFunc(d, cancel)
	defer after.Stop()
	load.Wait()
	s.series = append(s.series, [2]growth.Sample{s.rest(t, 0), s.rest(t, 1)})
}

// rest is a sample of a host once it has come to rest: sessions that were
// replaced take a while to end.
func (s *soak) rest(t *testing.T, i int) growth.Sample {
	t.Helper()
	p := []*process{s.a, s.b}[i]
	until(t, "streams to end", func() bool {
		r, err := p.tell("state")
		if err != nil {
			t.Fatal(err)
		}
		return r.streams() == 0
	})
	var best growth.Sample
	for tries, deadline := 0, time.Now().Add(s.settle); ; tries++ {
		r, err := p.tell("sample")
		if err != nil {
			t.Fatal(err)
		}
		if tries == 0 || r.Goroutines <= best.Goroutines && r.Descriptors <= best.Descriptors {
			best = r.Sample
		}
		if s.atRest(i, best) || time.Now().After(deadline) {
			return best
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// atRest tells whether a host has no more than it had at its last rest.
func (s *soak) atRest(i int, now growth.Sample) bool {
	if len(s.series) == 0 {
		return false
	}
	last := s.series[len(s.series)-1][i]
	return now.Goroutines <= last.Goroutines && now.Descriptors <= last.Descriptors
}

// gated is a connection whose client does nothing before the gate is open.
type gated struct {
	exchange.Conn
	gate <-chan struct{}
}

func (g gated) Read(p []byte) (int, error) {
	<-g.gate
	return g.Conn.Read(p)
}

func (g gated) Write(p []byte) (int, error) {
	<-g.gate
	return g.Conn.Write(p)
}
