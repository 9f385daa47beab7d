package sidecar

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/linkrun/linkrun/internal/descriptor"
	"github.com/linkrun/linkrun/link"
	"github.com/linkrun/linkrun/relay"
	"github.com/linkrun/linkrun/tunnel"
)

// Recipient is the recipient's end: it listens where the recipient looks for
// the source's ports, and has the source's end connect.
type Recipient struct {
	// Dial makes a session with the source's end.
	Dial tunnel.Dial
	// Peer and Own are the names of both ends, for the log and for the record
	// of the source's end.
	Peer, Own string
	// Proven returns what is closed when sessions can be proven with something
	// newer than before: they are replaced then. nil is never.
	Proven func() <-chan struct{}
	// Mappings are the ports to listen on.
	Mappings []Mapping
	// Engine carries connections whose sockets the source's end hands over,
	// which takes a session over a unix socket. nil has their bytes carried in
	// the session. It is running, and the caller's to close.
	Engine *relay.Engine
	// Hold is how long a connection waits for the source's end while that is
	// away. 0 is not at all: connections are refused then, as by a host where
	// nobody listens.
	Hold time.Duration
	// Drain is how long connections may take to end by themselves once it is
	// to stop. 0 is not at all.
	Drain time.Duration
	// Log gets what an operator has to know. nil discards it.
	Log *slog.Logger

	peer     tunnel.Peer
	sessions presence
	link     relay.Link // of the connections that Engine carries
	buffers  tunnel.Buffers
	failing  complaint

	busy    atomic.Int64 // connections that Engine does not carry, or not yet
	running sync.WaitGroup

	mu    sync.Mutex
	pumps map[*tunnel.Pump]struct{}
}

// answerTime is how long the source's end may take to answer, its own
// connecting included.
const answerTime = connectTime + 5*time.Second

// settling is how long a connection waits in any case: a session counts as
// there a moment before the peer has it, and is lost a moment before the ports
// are shut.
const settling = time.Second

// Run listens until ctx ends, and calls ready once the source's end was
// reached. It returns when all connections have ended. The error is that a
// port cannot be listened on. It is called once.
func (r *Recipient) Run(ctx context.Context, ready func()) error {
	life, over := context.WithCancel(context.Background())
	defer r.running.Wait()
	defer over()
	doors, err := r.takePorts(life)
	if err != nil {
		return err
	}
	r.peer = tunnel.Peer{Name: r.Peer, Own: r.Own, Hold: max(r.Hold, settling), Log: r.log()}
	r.peer.Reach(r.dial)
	r.running.Go(func() { r.peer.Run(life) })
	if r.Proven != nil {
		r.running.Go(func() { r.renew(life) })
	}

	r.attend(ctx, doors, ready)

	for _, d := range doors {
		err = errors.Join(err, d.close())
	}
	r.drain()
	return err
}

// takePorts makes a door for each port, all shut.
func (r *Recipient) takePorts(ctx context.Context) (doors []door, err error) {
	for _, m := range r.Mappings {
		var d door
		if m.Port.Proto == link.UDP {
			d, err = newPacketDoor(m.Listen, func(ctx context.Context) (*tunnel.Stream, error) { return r.ask(ctx, tunnel.UDP, m.Port) }, r.log())
		} else {
			d, err = newStreamDoor(m.Listen, func(conn net.Conn) {
				r.busy.Add(1)
				r.running.Go(func() {
					defer r.busy.Add(-1)
					r.carry(ctx, conn.(*net.TCPConn), m.Port)
				})
			}, r.log())
		}
		if err != nil {
			for _, d := range doors {
				d.close()
			}
			return nil, err
		}
		doors = append(doors, d)
	}
	return doors, nil
}

// dial makes a session, and counts it as long as it takes new streams.
func (r *Recipient) dial(ctx context.Context) (*tunnel.Session, error) {
	s, err := r.Dial(ctx)
	if err != nil {
		return nil, err
	}
	r.sessions.add(1)
	r.running.Go(func() {
		defer r.sessions.add(-1)
		select {
		case <-s.Ending():
		case <-s.Done():
		}
	})
	return s, nil
}

// renew has sessions replaced that are proven with what is out of date.
func (r *Recipient) renew(ctx context.Context) {
	for proven := r.Proven(); ; proven = r.Proven() {
		select {
		case <-ctx.Done():
			return
		case <-proven:
			r.peer.Renew()
		}
	}
}

// attend opens the doors while there is a session, and shuts them while there
// is none, until ctx ends.
func (r *Recipient) attend(ctx context.Context, doors []door, ready func()) {
	for ctx.Err() == nil {
		there, changed := r.sessions.any()
		var again <-chan time.Time
		if there || r.Hold > 0 {
			if err := openAll(doors); err != nil {
				// Somebody else may have taken the port while it was shut.
				r.log().Warn("opening a port; trying again", "err", err)
				again = time.After(time.Second)
			} else if there && ready != nil {
				ready()
				ready = nil
			}
		} else {
			for _, d := range doors {
				d.shut()
			}
		}
		select {
		case <-ctx.Done():
		case <-changed:
		case <-again:
		}
	}
}

func openAll(doors []door) (err error) {
	for _, d := range doors {
		err = errors.Join(err, d.open())
	}
	return err
}

// ask has the source's end connect to a port.
func (r *Recipient) ask(ctx context.Context, kind tunnel.Kind, port link.Port) (*tunnel.Stream, error) {
	st, err := r.peer.Ask(ctx, tunnel.Request{Kind: kind, Port: port.Number, Recipient: r.Own})
	if err != nil {
		r.failing.tell(r.log(), port, err)
	}
	return st, err
}

// carry carries a connection of the recipient's.
func (r *Recipient) carry(ctx context.Context, conn *net.TCPConn, port link.Port) {
	kind := tunnel.TCP
	if r.Engine != nil {
		kind = tunnel.Socket
	}
	st, err := r.ask(ctx, kind, port)
	if err != nil {
		reset(conn)
		return
	}
	if r.Engine != nil {
		err = r.splice(conn, st)
	} else {
		err = r.pump(conn, st)
	}
	r.failing.tell(r.log(), port, err)
}

// splice gives conn and the socket that was asked for to the engine.
func (r *Recipient) splice(conn *net.TCPConn, st *tunnel.Stream) error {
	err := st.Answer(answerTime)
	if err != nil {
		st.Abort()
		reset(conn)
		return err
	}
	there, ok := st.TakeSocket()
	st.Close()
	here := -1
	if ok {
		here, err = descriptor.Duplicate(conn)
	} else {
		err = errNoSocket
	}
	if err == nil {
		err = r.Engine.Pair(here, there, &r.link)
	}
	if err != nil {
		for _, fd := range []int{here, there} {
			if fd >= 0 {
				unix.Close(fd)
			}
		}
		reset(conn)
		return err
	}
	return conn.Close() // the engine has a descriptor of its own
}

var errNoSocket = errors.New("the source's end has handed no socket over")

// pump moves the bytes of a connection through the session.
func (r *Recipient) pump(conn *net.TCPConn, st *tunnel.Stream) error {
	p := &tunnel.Pump{Conn: conn, Stream: st, Buffers: &r.buffers, AwaitAnswer: answerTime}
	r.mu.Lock()
	if r.pumps == nil {
		r.pumps = make(map[*tunnel.Pump]struct{})
	}
	r.pumps[p] = struct{}{}
	r.mu.Unlock()
	err := p.Run()
	r.mu.Lock()
	delete(r.pumps, p)
	r.mu.Unlock()
	var refusal *tunnel.Refusal
	if !errors.As(err, &refusal) {
		r.log().Debug("connection ended", "err", err)
		return nil // that it ended is the business of those who had it
	}
	return err
}

// drain gives connections time to end by themselves, and resets the rest.
func (r *Recipient) drain() {
	left := func() int64 { return r.busy.Load() + r.link.Stats().Open }
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for end := time.Now().Add(r.Drain); left() > 0 && time.Now().Before(end); {
		<-ticker.C
	}
	if n := left(); n > 0 {
		r.log().Warn("cut connections that did not end in time", "connections", n, "waited", r.Drain)
	}
	if r.Engine != nil {
		r.link.Cut()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for p := range r.pumps {
		p.Cut()
	}
}

func (r *Recipient) log() *slog.Logger {
	if r.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return r.Log
}

// reset has the peer of conn see a reset.
func reset(conn *net.TCPConn) {
	conn.SetLinger(0)
	conn.Close()
}

// presence counts what is there.
type presence struct {
	mu      sync.Mutex
	n       int
	changed chan struct{} // closed when n has changed, and replaced; nil until somebody waits
}

func (p *presence) add(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.n += n
	if p.changed != nil {
		close(p.changed)
		p.changed = nil
	}
}

// any tells whether something is there. changed is closed when that may be
// different.
func (p *presence) any() (there bool, changed <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.changed == nil {
		p.changed = make(chan struct{})
	}
	return p.n > 0, p.changed
}

// complaint logs what is wrong with each port once, not for each connection.
type complaint struct {
	mu   sync.Mutex
	last map[link.Port]string
}

func (c *complaint) tell(log *slog.Logger, port link.Port, err error) {
	var text string
	if err != nil {
		text = err.Error()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.last[port] == text {
		return
	}
	if c.last == nil {
		c.last = make(map[link.Port]string)
	}
	c.last[port] = text
	if err != nil {
		log.Warn("connections are reset", "port", port.String(), "err", err)
	} else {
		log.Info("connections go through", "port", port.String())
	}
}
