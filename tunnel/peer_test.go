package tunnel

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/linkrun/linkrun/internal/leaks"
	"github.com/linkrun/linkrun/internal/logbook"
)

// hosts are two peers of each other, and how they reach each other.
type hosts struct {
	t    testing.TB
	a, b *Peer

	mu       sync.Mutex
	networks []*network
	broken   error // what dialing gives
	config   Config
	stop     context.CancelFunc
}

// newHosts runs two peers that echo what is sent to them. Nobody dials yet.
func newHosts(t testing.TB, config Config, set func(a, b *Peer)) *hosts {
	t.Helper()
	leaks.Check(t)
	h := &hosts{t: t, config: config}
	echo := func(in *Incoming) {
		if err := in.Grant(); err != nil {
			in.Stream.Abort()
			return
		}
		if _, err := io.Copy(struct{ io.Writer }{in.Stream}, in.Stream); err != nil {
			in.Stream.Abort()
			return
		}
		in.Stream.Close()
	}
	h.a = &Peer{Name: "b", Own: "a", Handle: echo}
	h.b = &Peer{Name: "a", Own: "b", Handle: echo}
	if set != nil {
		set(h.a, h.b)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { h.a.Run(ctx) })
	wg.Go(func() { h.b.Run(ctx) })
	h.stop = cancel
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		for _, n := range h.networks {
			n.close()
		}
	})
	return h
}

// dial is how one of the hosts reaches the other, over a network of its own.
func (h *hosts) dial(other *Peer) Dial {
	return func(ctx context.Context) (*Session, error) {
		h.mu.Lock()
		broken := h.broken
		h.mu.Unlock()
		if broken != nil {
			return nil, broken
		}
		n := &network{}
		x, y := n.open(h.t)
		h.mu.Lock()
		h.networks = append(h.networks, n)
		h.mu.Unlock()
		other.Adopt(Server(y, h.config))
		return Start(ctx, x, h.config)
	}
}

func (h *hosts) breakDialing(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.broken = err
}

// network is the i-th that was dialed over.
func (h *hosts) network(i int) *network {
	until(h.t, "a session to be dialed", func() bool { h.mu.Lock(); defer h.mu.Unlock(); return len(h.networks) > i })
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.networks[i]
}

// ask opens a stream and has it answered.
func ask(t testing.TB, p *Peer) *Stream {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	st, err := p.Ask(ctx, requests[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Answer(patience); err != nil {
		t.Fatal(err)
	}
	return st
}

// echoed sends a word and gets it back.
func echoed(st *Stream, word string) error {
	if _, err := st.Write([]byte(word)); err != nil {
		return err
	}
	got := make([]byte, len(word))
	if _, err := io.ReadFull(st, got); err != nil {
		return err
	}
	if string(got) != word {
		return fmt.Errorf("got %q back", got)
	}
	return nil
}

func members(p *Peer) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.sessions)
}

func TestPeerWithoutASession(t *testing.T) {
	h := newHosts(t, Config{}, nil)
	_, err := h.a.Ask(context.Background(), requests[0])
	if want := `reaching "b": the peer has not connected, and how to reach it is not known`; err == nil || err.Error() != want {
		t.Errorf("asking gives %v, want %s", err, want)
	}
	h.breakDialing(errors.New("no route"))
	h.a.Reach(h.dial(h.b))
	until(t, "dialing to fail", func() bool { return h.a.State().Reason == "no route" })
	_, err = h.a.Ask(context.Background(), requests[0])
	if want := `reaching "b": no route`; err == nil || err.Error() != want {
		t.Errorf("asking gives %v, want %s", err, want)
	}
	if st := h.a.State(); st.Up || st.Since.IsZero() {
		t.Errorf("the state is %+v", st)
	}
}

func TestPeerHoldsWhoAsks(t *testing.T) {
	h := newHosts(t, Config{}, func(a, _ *Peer) { a.Hold = patience })
	h.breakDialing(errors.New("no route"))
	h.a.Reach(h.dial(h.b))
	asked := make(chan error, 1)
	go func() {
		st, err := h.a.Ask(context.Background(), requests[0])
		if err == nil {
			err = st.Answer(patience)
			st.Close()
		}
		asked <- err
	}()
	until(t, "dialing to fail", func() bool { return h.a.State().Reason == "no route" })
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := h.a.Ask(ctx, requests[0]); !errors.Is(err, context.Canceled) {
		t.Errorf("asking gives %v, want %v", err, context.Canceled)
	}
	h.breakDialing(nil)
	if err := <-asked; err != nil {
		t.Errorf("whoever was held gets %v", err)
	}
	if st := h.a.State(); !st.Up || st.Reason != "" {
		t.Errorf("the state is %+v", st)
	}
}

// Either side opens streams in a session, whoever has dialed it.
func TestPeerGoesBothWays(t *testing.T) {
	h := newHosts(t, Config{}, func(a, b *Peer) { a.Hold, b.Hold = patience, patience })
	h.b.Reach(h.dial(h.a))
	for _, p := range []*Peer{h.a, h.b} {
		st := ask(t, p)
		if err := echoed(st, "hello"); err != nil {
			t.Error(err)
		}
		st.Close()
	}
	if n := members(h.a) + members(h.b); n != 2 {
		t.Errorf("there are %d ends of sessions, want 2", n)
	}
}

// Both dial at the same time: one session is left.
func TestPeersDialEachOther(t *testing.T) {
	h := newHosts(t, Config{}, func(a, b *Peer) { a.Hold, b.Hold = patience, patience })
	both := make(chan struct{})
	for _, p := range [][2]*Peer{{h.a, h.b}, {h.b, h.a}} {
		dial := h.dial(p[1])
		var once sync.Once
		p[0].Reach(func(ctx context.Context) (*Session, error) {
			once.Do(func() {
				select {
				case both <- struct{}{}:
				case <-both:
				case <-ctx.Done():
				}
			})
			return dial(ctx)
		})
	}
	until(t, "the session to be left that the first of the two has dialed", func() bool {
		h.a.mu.Lock()
		defer h.a.mu.Unlock()
		return len(h.a.sessions) == 1 && h.a.sessions[0].dialed && members(h.b) == 1
	})
	for _, p := range []*Peer{h.a, h.b} {
		st := ask(t, p)
		if err := echoed(st, "hello"); err != nil {
			t.Error(err)
		}
		st.Close()
	}
}

func TestPeerComesBack(t *testing.T) {
	h := newHosts(t, Config{}, func(a, _ *Peer) { a.Hold = patience })
	h.a.Reach(h.dial(h.b))
	for i := range 5 {
		st := ask(t, h.a)
		h.network(i).cut()
		if _, err := st.Read(make([]byte, 1)); !errors.Is(err, ErrLost) {
			t.Errorf("reading gives %v, want %v", err, ErrLost)
		}
		st.Close()
		until(t, "the session to be forgotten", func() bool { m, _, _ := h.a.current(); return m == nil || m.Session != st.Session() })
	}
	ask(t, h.a).Close()
}

// A new session takes over, and nothing that is open ends for it.
func TestPeerRenews(t *testing.T) {
	h := newHosts(t, Config{}, func(a, b *Peer) { a.Hold, b.Hold = patience, patience })
	h.a.Reach(h.dial(h.b))
	var open []*Stream
	for i := range 4 {
		open = append(open, ask(t, h.a), ask(t, h.b))
		h.a.Renew()
		h.network(i + 1)
		until(t, "the new session to take over", func() bool {
			m, _, _ := h.a.current()
			n, _, _ := h.b.current()
			return m != nil && n != nil && m.Session != open[len(open)-2].Session() && n.Session != open[len(open)-1].Session()
		})
	}
	if n := members(h.a); n != 5 {
		t.Errorf("there are %d sessions, want 5", n)
	}
	for _, st := range open {
		if err := echoed(st, "still here"); err != nil {
			t.Error(err)
		}
		st.Close()
	}
	until(t, "the old sessions to end", func() bool { return members(h.a) == 1 && members(h.b) == 1 })
}

// While sessions are replaced, whoever asks notices nothing.
func TestPeerRenewsUnderLoad(t *testing.T) {
	h := newHosts(t, Config{}, func(a, b *Peer) { a.Hold, b.Hold = patience, patience })
	h.a.Reach(h.dial(h.b))
	done := make(chan struct{})
	var wg sync.WaitGroup
	for _, p := range []*Peer{h.a, h.b, h.a, h.b} {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				st, err := p.Ask(context.Background(), requests[0])
				if err != nil {
					t.Error(err)
					return
				}
				if err := st.Answer(patience); err != nil {
					t.Error(err)
				}
				if err := echoed(st, "hello"); err != nil {
					t.Error(err)
				}
				st.CloseWrite()
				if _, err := st.Read(make([]byte, 1)); err != io.EOF {
					t.Errorf("reading gives %v, want the end", err)
				}
				st.Close()
			}
		})
	}
	for i := range 10 {
		h.network(i)
		h.a.Renew()
	}
	h.network(10)
	close(done)
	wg.Wait()
	until(t, "one session to be left", func() bool { return members(h.a) == 1 && members(h.b) == 1 })
}

// A silent session is replaced before it is certain that it is dead; should
// the network come back, its streams are none the worse.
func TestPeerIsSilent(t *testing.T) {
	h := newHosts(t, Config{DeadAfter: 3 * time.Second}, func(a, _ *Peer) { a.Hold = patience })
	h.a.Reach(h.dial(h.b))
	old := ask(t, h.a)
	h.network(0).setDown(true)
	h.network(1) // dialed because of the silence
	until(t, "the new session to take over", func() bool { m, _, _ := h.a.current(); return m != nil && m.Session != old.Session() })
	fresh := ask(t, h.a)
	h.network(0).setDown(false)
	for _, st := range []*Stream{old, fresh} {
		if err := echoed(st, "hello"); err != nil {
			t.Error(err)
		}
		st.Close()
	}
}

func TestPeerExpires(t *testing.T) {
	h := newHosts(t, Config{}, func(a, _ *Peer) { a.Hold = patience })
	h.a.Reach(h.dial(h.b))
	ask(t, h.a).Close()
	soon, never := time.Now().Add(time.Minute), time.Time{}
	enter := func(end time.Time) *Session {
		x, y := (&network{}).pair(t)
		s, other := Client(x, Config{Expires: end}), Server(y, Config{})
		t.Cleanup(func() { other.Close() })
		return s
	}
	p := &Peer{Name: "c", Own: "a"}
	defer p.stop()
	old, young := enter(soon), enter(never)
	p.Adopt(old)
	p.Adopt(young)
	p.expire(soon.Add(time.Second))
	if err := old.Err(); err != nil {
		t.Errorf("a session that a younger one vouches for ended with %v", err)
	}
	young.Close()
	p.expire(soon.Add(-time.Second))
	if err := old.Err(); err != nil {
		t.Errorf("a session whose time has not come ended with %v", err)
	}
	p.expire(soon.Add(time.Second))
	if err := old.Err(); !errors.Is(err, errExpired) {
		t.Errorf("the session ended with %v, want %v", err, errExpired)
	}
}

func TestPeerIsDue(t *testing.T) {
	now := time.Now()
	p := &Peer{}
	x, y := net.Pipe()
	defer y.Close()
	s := Client(x, Config{})
	defer s.Close()
	due := func(dialed bool, age time.Duration, end time.Time, numbers uint32) bool {
		s.wire.config.Expires = end
		s.numbers.Store(numbers)
		return p.due(&member{Session: s, dialed: dialed, started: now.Add(-age)}, now)
	}
	for name, c := range map[string]struct{ got, want bool }{
		"young":                          {due(true, time.Hour, time.Time{}, 0), false},
		"old":                            {due(true, 13*time.Hour, time.Time{}, 0), true},
		"old, and not ours":              {due(false, 13*time.Hour, time.Time{}, 0), false},
		"a quarter of its proof is left": {due(true, 6*time.Hour+time.Second, now.Add(2*time.Hour-time.Second), 0), true},
		"half of its proof is left":      {due(true, 4*time.Hour, now.Add(4*time.Hour), 0), false},
		"made when little was left":      {due(true, 30*time.Second, now.Add(10*time.Second), 0), false},
		"half of its numbers are left":   {due(true, time.Hour, time.Time{}, maxNumbers/2), false},
		"fewer numbers are left":         {due(true, time.Hour, time.Time{}, maxNumbers/2+1), true},
	} {
		if c.got != c.want {
			t.Errorf("%s: due is %v", name, c.got)
		}
	}
}

func TestPeerStops(t *testing.T) {
	h := newHosts(t, Config{}, func(a, _ *Peer) { a.Hold = patience })
	h.a.Reach(h.dial(h.b))
	st := ask(t, h.a)
	h.stop()
	if _, err := st.Read(make([]byte, 1)); !errors.Is(err, ErrLost) {
		t.Errorf("reading gives %v, want %v", err, ErrLost)
	}
	x, y := net.Pipe()
	defer y.Close()
	until(t, "the peer to stop", func() bool { h.b.mu.Lock(); defer h.b.mu.Unlock(); return h.b.stopped })
	late := Server(x, Config{})
	h.b.Adopt(late)
	if late.Err() == nil {
		t.Error("a stopped peer adopts a session")
	}
}

func TestBackOff(t *testing.T) {
	for failures := 1; failures < 100; failures++ {
		if d := backOff(failures); d < 50*time.Millisecond || d > 800*time.Millisecond {
			t.Errorf("after %d failures: %v", failures, d)
		}
	}
}

func TestPeerRefusesWithoutAHandler(t *testing.T) {
	h := newHosts(t, Config{}, func(a, b *Peer) { a.Hold = patience; b.Handle = nil })
	h.a.Reach(h.dial(h.b))
	st, err := h.a.Ask(context.Background(), requests[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Answer(patience); err == nil || !strings.Contains(err.Error(), "this host takes no requests") {
		t.Errorf("the answer is %v", err)
	}
	st.Close()
}

// A peer that dials again and again does so at the cost of its own sessions.
func TestPeerDialsTooOften(t *testing.T) {
	var log logbook.Log
	h := newHosts(t, Config{}, func(_, b *Peer) { b.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	dial := h.dial(h.b)
	var dialed []*Session
	for range maxAdopted + 3 {
		s, err := dial(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		dialed = append(dialed, s)
	}
	for i, s := range dialed[:3] {
		select {
		case <-s.Done():
		case <-time.After(patience):
			t.Errorf("session %d is still there", i)
		}
	}
	until(t, "the others to be kept", func() bool { return members(h.b) == maxAdopted })
	for i, s := range dialed[3:] {
		if err := s.Err(); err != nil {
			t.Errorf("session %d has ended: %v", i+3, err)
		}
	}
	if n := strings.Count(log.String(), "cutting the oldest of too many sessions"); n != 3 {
		t.Errorf("%d were cut, want 3:\n%s", n, log.String())
	}
}

// A reason that is never twice the same does not fill the log.
func TestPeerComplainsNowAndThen(t *testing.T) {
	var log logbook.Log
	var told atomic.Int32
	h := newHosts(t, Config{}, func(a, _ *Peer) {
		a.Log = slog.New(slog.NewTextHandler(&log, nil))
		a.Changed = func() { told.Add(1) }
	})
	var n atomic.Int32
	h.a.Reach(func(context.Context) (*Session, error) { return nil, fmt.Errorf("reason %d", n.Add(1)) })
	until(t, "dialing to fail", func() bool { return h.a.State().Reason == "reason 4" })
	if got := strings.Count(log.String(), "\n"); got != 1 || told.Load() != 1 {
		t.Errorf("there are %d lines and %d changes, want one:\n%s", got, told.Load(), log.String())
	}
	// Once it was there, the next reason is news.
	h.a.Reach(h.dial(h.b))
	until(t, "the peer to be up", func() bool { return h.a.State().Up })
	h.breakDialing(errors.New("no route"))
	h.network(0).cut()
	until(t, "dialing to fail", func() bool { return strings.Contains(log.String(), "no route") })
	if told.Load() < 3 {
		t.Errorf("there were %d changes, want one each time", told.Load())
	}
}
