package tunnel

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/linkrun/linkrun/internal/leaks"
)

// rawPeer is a peer that does as the test likes, at the client's side.
type rawPeer struct {
	t    testing.TB
	conn net.Conn
	in   *bufio.Reader
}

func newRawPeer(t testing.TB, c Config) (*rawPeer, *Session) {
	leaks.Check(t)
	ta, tb := tcpPair(t)
	s := Server(tb, c)
	t.Cleanup(func() {
		ta.Close()
		s.Close()
	})
	return &rawPeer{t: t, conn: ta, in: bufio.NewReader(ta)}, s
}

func (p *rawPeer) send(frames ...any) {
	p.t.Helper()
	var b []byte
	for _, f := range frames {
		switch f := f.(type) {
		case frame:
			b = f.appendTo(b)
		case string:
			b = append(b, f...)
		case []byte:
			b = append(b, f...)
		}
	}
	// The session may have hung up already, which is for the test to see.
	p.conn.Write(b)
}

// receive returns the next frame that is neither a ping nor a window's growth.
func (p *rawPeer) receive() frame {
	p.t.Helper()
	p.conn.SetReadDeadline(time.Now().Add(patience))
	for {
		b := make([]byte, headerSize)
		if _, err := io.ReadFull(p.in, b); err != nil {
			p.t.Fatal("reading a frame:", err)
		}
		f, err := parseFrame(b)
		if err != nil {
			p.t.Fatal(err)
		}
		if f.kind == dataFrame {
			p.in.Discard(int(f.length))
		}
		if f.kind == dataFrame || f.kind == windowFrame && f.flags != 0 || f.kind == goAwayFrame || f.kind == pingFrame && f.has(ackFlag) {
			return f
		}
	}
}

func syn(id uint32) frame { return frame{kind: windowFrame, flags: synFlag, stream: id} }
func data(id uint32, n int) frame {
	return frame{kind: dataFrame, stream: id, length: uint32(n)}
}

// What yamux takes from a peer without a question ends the session here.
func TestViolations(t *testing.T) {
	body := make([]byte, firstWindow)
	for name, c := range map[string]struct {
		frames []any
		want   string
	}{
		"version":                       {[]any{"\x01\x01\x00\x01\x00\x00\x00\x01\x00\x00\x00\x00"}, "a frame of version 1"},
		"type":                          {[]any{"\x00\x04\x00\x01\x00\x00\x00\x01\x00\x00\x00\x00"}, "a frame of type 4"},
		"stream 0":                      {[]any{syn(0)}, "a frame of stream 0"},
		"a number of the other side":    {[]any{syn(2)}, "a stream with a number of the other side"},
		"a stream twice":                {[]any{syn(1), syn(1)}, "a stream that is there already"},
		"a window exceeded":             {[]any{syn(1), data(1, len(body)), body, data(1, 1), "x"}, "data beyond a stream's window"},
		"a window exceeded at once":     {[]any{syn(1), data(1, 1<<31)}, "data beyond a stream's window"},
		"an end twice":                  {[]any{syn(1), frame{kind: windowFrame, flags: finFlag, stream: 1}, frame{kind: windowFrame, flags: finFlag, stream: 1}}, "more of a stream after its end"},
		"data after the end":            {[]any{syn(1), frame{kind: windowFrame, flags: finFlag, stream: 1}, data(1, 1), "x"}, "more of a stream after its end"},
		"credit that wraps around":      {[]any{syn(1), frame{kind: windowFrame, stream: 1, length: 1<<32 - 1}}, "a window of more than 1 GiB"},
		"credit bit by bit":             {[]any{syn(1), frame{kind: windowFrame, stream: 1, length: 1 << 29}, frame{kind: windowFrame, stream: 1, length: 1 << 29}}, "a window of more than 1 GiB"},
		"a socket where there are none": {[]any{syn(1), frame{kind: socketFrame, stream: 1}}, "a socket where none is wanted"},
	} {
		t.Run(name, func(t *testing.T) {
			p, s := newRawPeer(t, Config{})
			p.send(c.frames...)
			select {
			case <-s.Done():
			case <-time.After(patience):
				t.Fatal("the session lives")
			}
			if err := s.Err(); !errors.Is(err, ErrViolation) || !strings.HasSuffix(err.Error(), ": "+c.want) {
				t.Errorf("the session ended with %q, want %q", err, c.want)
			}
		})
	}
}

func TestGoAwayWithAnError(t *testing.T) {
	p, s := newRawPeer(t, Config{})
	p.send(frame{kind: goAwayFrame, length: 2})
	<-s.Done()
	if got := s.Err().Error(); got != "the peer ended the session with code 2" {
		t.Errorf("the session ended with %q", got)
	}
}

func TestPingsAreAnswered(t *testing.T) {
	p, _ := newRawPeer(t, Config{})
	p.send(frame{kind: pingFrame, flags: synFlag, length: 77})
	if got, want := p.receive(), (frame{kind: pingFrame, flags: ackFlag, length: 77}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// yamux starts a goroutine for every ping.
func TestPingFlood(t *testing.T) {
	p, s := newRawPeer(t, Config{})
	var b []byte
	for range 2*maxPings + 2 { // a second may pass in between
		b = frame{kind: pingFrame, flags: synFlag}.appendTo(b)
	}
	p.send(b)
	<-s.Done()
	if err := s.Err(); !errors.Is(err, ErrViolation) || !strings.Contains(err.Error(), "too many pings") {
		t.Errorf("the session ended with %v", err)
	}
}

// A peer that makes the session answer and does not read the answers would
// fill the memory with them.
func TestAnswersAreNotRead(t *testing.T) {
	ta, tb := net.Pipe() // which buffers nothing
	leaks.Check(t)
	s := Server(tb, Config{MaxStreams: 1})
	defer s.Close()
	defer ta.Close()
	go func() {
		var b []byte
		for id := uint32(1); ; id += 2 {
			if b = syn(id).appendTo(b); len(b) < 4096 {
				continue
			}
			if _, err := ta.Write(b); err != nil {
				return
			}
			b = b[:0]
		}
	}()
	<-s.Done()
	if err := s.Err(); !errors.Is(err, ErrViolation) || !strings.Contains(err.Error(), "does not read") {
		t.Errorf("the session ended with %v", err)
	}
}

// Opening and resetting at once must not get around the limit of streams, nor
// fill yamux's queue of streams to be accepted.
func TestRapidReset(t *testing.T) {
	const limit = 10
	p, s := newRawPeer(t, Config{MaxStreams: limit})
	for id := uint32(1); id < 200; id += 2 {
		p.send(syn(id), resetFrame(id))
	}
	until(t, "the streams to be refused", func() bool { return s.Stats().Refused == 90 })
	if got := s.Stats(); got.Accepted != limit || got.Open != 0 {
		t.Errorf("%+v", got)
	}
	// What was reset before it was accepted is not handed out.
	accepted := make(chan uint32, 1)
	go func() {
		if st, err := s.Accept(); err == nil {
			accepted <- st.mux.StreamID()
		}
	}()
	until(t, "the queue to be emptied", func() bool {
		s.wire.mu.Lock()
		defer s.wire.mu.Unlock()
		return s.wire.unaccepted == 0
	})
	p.send(syn(501))
	if got := <-accepted; got != 501 {
		t.Errorf("stream %d was accepted, want 501", got)
	}
}

// A peer that speaks yamux and nothing else: a reset is answered by one, and
// what comes for streams that are gone is dropped.
func TestLateFrames(t *testing.T) {
	p, s := newRawPeer(t, Config{})
	p.send(syn(1), data(1, 5), "hello")
	st, err := s.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if f := p.receive(); f != (frame{kind: windowFrame, flags: ackFlag, stream: 1}) {
		t.Errorf("got %+v, want the stream acknowledged", f)
	}
	st.Abort()
	if f := p.receive(); f != resetFrame(1) {
		t.Errorf("got %+v, want a reset", f)
	}
	// On its way while the reset was.
	p.send(data(1, 4), "more", frame{kind: windowFrame, stream: 1, length: 5}, frame{kind: windowFrame, flags: finFlag, stream: 1})
	p.send(frame{kind: pingFrame, flags: synFlag, length: 1})
	p.receive()
	if got := s.Stats(); got.Open != 1 || got.Discarded != 4 {
		t.Errorf("before the confirmation: %+v", got)
	}
	p.send(resetFrame(1), data(1, 3), "abc", resetFrame(99), frame{kind: pingFrame, flags: synFlag, length: 2})
	p.receive()
	if got := s.Stats(); got.Open != 0 || got.Discarded != 7 || s.mux.NumStreams() != 0 {
		t.Errorf("after the confirmation: %+v, yamux has %d", got, s.mux.NumStreams())
	}
}

// yamux counts an acknowledgement that nobody asked for against other streams,
// and forgets the count of streams that are reset on their way.
func TestAcknowledgements(t *testing.T) {
	ta, tb := tcpPair(t)
	leaks.Check(t)
	s := Client(ta, Config{MaxOpening: 2})
	defer s.Close()
	defer tb.Close()
	p := &rawPeer{t: t, conn: tb, in: bufio.NewReader(tb)}
	ack := func(id uint32) frame { return frame{kind: windowFrame, flags: ackFlag, stream: id} }
	for i := range 50 {
		one, err1 := s.Open(context.Background())
		_, err2 := s.Open(context.Background())
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		first, second := p.receive().stream, p.receive().stream
		if i%2 == 0 {
			p.send(ack(first), ack(first), ack(first), resetFrame(first), resetFrame(second))
		} else {
			p.send(resetFrame(first), ack(second), resetFrame(second))
		}
		for range 2 {
			if f := p.receive(); !f.has(rstFlag) {
				t.Fatalf("got %+v, want the reset confirmed", f)
			}
		}
		if _, err := one.Read(make([]byte, 1)); !errors.Is(err, ErrReset) {
			t.Fatalf("reading gives %v", err)
		}
	}
	if got := s.mux.NumStreams() + len(s.wire.opening) + s.Stats().Open; got != 0 {
		t.Errorf("%d streams are still counted", got)
	}
}

// The frames reach yamux whole, however they are cut, and however little it
// asks for at a time.
func TestReadInPieces(t *testing.T) {
	var sent []byte
	sent = syn(1).appendTo(sent)
	sent = append(data(1, 5000).appendTo(sent), make([]byte, 5000)...)
	want := append([]byte(nil), sent...)
	sent = frame{kind: pingFrame, flags: ackFlag, length: 9}.appendTo(sent) // not for yamux
	sent = append(data(7, 6000).appendTo(sent), make([]byte, 6000)...)      // nor that: there is no such stream
	sent = frame{kind: dataFrame, flags: finFlag, stream: 1, length: 0}.appendTo(sent)
	want = frame{kind: dataFrame, flags: finFlag, stream: 1, length: 0}.appendTo(want)
	for _, ask := range []int{1, 5, 12, 13, 4096, 100_000} {
		for _, give := range []int{1, 11, 12, 17, 4096, 100_000} {
			ta, tb := net.Pipe()
			w := newWire(tb, Config{}.withDefaults(), false)
			var wg sync.WaitGroup
			wg.Go(func() {
				for rest := sent; len(rest) > 0; {
					n := min(give, len(rest))
					ta.Write(rest[:n])
					rest = rest[n:]
				}
				ta.Close()
			})
			var got []byte
			buf := make([]byte, ask)
			for {
				n, err := w.Read(buf)
				got = append(got, buf[:n]...)
				if err != nil {
					break
				}
			}
			wg.Wait()
			if string(got) != string(want) {
				t.Errorf("asking for %d and giving %d bytes: got %d, want %d", ask, give, len(got), len(want))
			}
		}
	}
}
