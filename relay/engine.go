package relay

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/linkrun/linkrun/internal/sockopt"
)

var (
	// ErrClosed says that the engine is not started, or has been closed.
	ErrClosed = errors.New("relay engine is closed")
	// ErrLimit says that a link has its MaxConns open.
	ErrLimit = errors.New("the link has its limit of connections open")

	errForeign = errors.New("the link belongs to another engine")
)

// Engine is a few workers, each an event loop, that carry any number of
// connections. The zero value is ready to Start.
//
// Each worker occupies one of Go's processors while it is busy: a program
// that does more than relay sets GOMAXPROCS above Workers.
type Engine struct {
	// Workers is the number of event loops. 0 is one per processor. Those
	// that the load does not need sleep.
	Workers int
	// Pipes bounds the pipes, of two descriptors each, that bulk transfers
	// borrow; above it bytes are copied. 0 is 1024, negative is none at all.
	Pipes int
	// Log gets what an operator has to know. nil discards it.
	Log *slog.Logger

	oneByOne bool                  // do without the ring
	seam     func(*worker, *calls) // for tests: puts something between a worker and the kernel
	workers  []*worker
	loops    sync.WaitGroup

	spinning atomic.Bool // one of the workers is

	active atomic.Int32  // workers in use, the first ones
	moves  atomic.Uint64 // connections that went from one worker to another
	spread sync.Mutex    // held while active changes

	taken takenSet

	pipes     atomic.Int64
	unrouted  atomic.Uint64
	backedOff atomic.Uint64

	mu        sync.Mutex
	running   bool
	lastID    int32
	listeners map[int32]*Listener
	packets   map[int32]*PacketListener
}

// Start starts the workers. The caller closes the engine.
func (e *Engine) Start() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.running || e.workers != nil {
		return errors.New("starting the relay: it was started before")
	}
	n := e.Workers
	if n <= 0 {
		n = runtime.GOMAXPROCS(0)
	}
	var workers []*worker
	started := time.Now()
	for i := range n {
		w, err := newWorker(e, i, started)
		if err != nil {
			for _, w := range workers {
				w.closeDescriptors()
			}
			return fmt.Errorf("starting the relay: %w", err)
		}
		workers = append(workers, w)
	}
	e.workers = workers
	e.active.Store(1)
	e.listeners = make(map[int32]*Listener)
	e.packets = make(map[int32]*PacketListener)
	e.running = true
	for _, w := range workers {
		e.loops.Go(w.loop)
	}
	return nil
}

// Close stops every listener, resets every connection, and returns when all
// workers have ended and no descriptor is left but those that were taken
// over, whose takers have been told. An engine is not started again.
func (e *Engine) Close() error {
	e.mu.Lock()
	if !e.running {
		e.mu.Unlock()
		return nil
	}
	e.running = false
	e.mu.Unlock()
	// A Serve that is under way is over first: its listener is among these.
	e.spread.Lock()
	defer e.spread.Unlock()
	for _, l := range e.served() {
		l.Close()
	}
	for _, l := range e.servedPackets() {
		l.Close()
	}
	for _, w := range e.workers {
		w.post(func(w *worker) { w.stopping = true })
	}
	e.loops.Wait()
	e.taken.cut(nil)
	return nil
}

// Serve accepts connections from fd, a listening TCP socket, and relays each
// to the source of the link that route names for the local address it was
// made to. route is called by workers, by several at the same time, and must be
// quick; nil resets the connection. The engine owns fd from
// then on; if Serve fails it stays the caller's.
func (e *Engine) Serve(fd int, route func(local netip.AddrPort) *Link) (*Listener, error) {
	if err := takeSocket(fd, unix.SOCK_STREAM); err != nil {
		return nil, fmt.Errorf("serving a listener: %w", err)
	}
	setOptions(int32(fd))
	if at, errno := localAddr(int32(fd)); errno == 0 && at.Addr().IsLoopback() {
		sockopt.Reno(fd) // others may come from anywhere
	}
	e.spread.Lock()
	defer e.spread.Unlock()
	l, err := e.newListener(fd, route)
	if err != nil {
		return nil, fmt.Errorf("serving a listener: %w", err)
	}
	for _, w := range e.inUse() {
		w.call(func(w *worker) { err = errors.Join(err, w.listen(l)) })
	}
	if err != nil {
		e.forget(l)
		e.everyWorker(func(w *worker) { w.stopListening(l) })
		return nil, fmt.Errorf("serving a listener: %w", err)
	}
	return l, nil
}

func (e *Engine) newListener(fd int, route func(netip.AddrPort) *Link) (*Listener, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.running {
		return nil, ErrClosed
	}
	e.lastID++
	l := &Listener{engine: e, id: e.lastID, fd: int32(fd), route: route}
	e.listeners[l.id] = l
	return l, nil
}

// Pair relays between two connected stream sockets, a at the recipient's side
// and b at the source's, as a connection of l. They may have descriptors
// elsewhere, as sockets have that came from another process. The engine owns
// both from then on; if Pair fails they stay the caller's.
func (e *Engine) Pair(a, b int, l *Link) error {
	for _, fd := range []int{a, b} {
		if err := takeSocket(fd, unix.SOCK_STREAM); err != nil {
			return fmt.Errorf("pairing two connections: %w", err)
		}
	}
	e.mu.Lock()
	running := e.running
	e.mu.Unlock()
	if !running {
		return fmt.Errorf("pairing two connections: %w", ErrClosed)
	}
	if !l.use(e) {
		return fmt.Errorf("pairing two connections: %w", errForeign)
	}
	if !l.admit() {
		return fmt.Errorf("pairing two connections: %w", ErrLimit)
	}
	if !e.join(a, b, l) {
		l.leave(otherCause)
		return fmt.Errorf("pairing two connections: %w", ErrClosed)
	}
	return nil
}

// join gives two sockets, and a connection that has been admitted, to the
// worker with the fewest. It is false when the engine is closed.
func (e *Engine) join(a, b int, l *Link) bool {
	best := e.workers[0]
	for _, w := range e.inUse() {
		if w.load.Load() < best.load.Load() {
			best = w
		}
	}
	return best.post(func(w *worker) { w.join(int32(a), int32(b), l) })
}

// everyWorker has each worker run fn, one after the other. Workers
// that have stopped are left out: they have nothing any more.
func (e *Engine) everyWorker(fn func(*worker)) {
	for _, w := range e.workers {
		w.call(fn)
	}
}

// served are the listeners that are open.
func (e *Engine) served() []*Listener {
	e.mu.Lock()
	defer e.mu.Unlock()
	all := make([]*Listener, 0, len(e.listeners))
	for _, l := range e.listeners {
		all = append(all, l)
	}
	return all
}

func (e *Engine) servedPackets() []*PacketListener {
	e.mu.Lock()
	defer e.mu.Unlock()
	all := make([]*PacketListener, 0, len(e.packets))
	for _, l := range e.packets {
		all = append(all, l)
	}
	return all
}

func (e *Engine) forget(l *Listener) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.listeners, l.id)
}

func (e *Engine) pipeBound() int64 {
	switch {
	case e.Pipes < 0:
		return 0
	case e.Pipes == 0:
		return defaultPipes
	}
	return int64(e.Pipes)
}

func (e *Engine) log() *slog.Logger {
	if e.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return e.Log
}
