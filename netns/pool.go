//go:build linux

package netns

import (
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// poolMost bounds the idle sockets of a pool, and with them the descriptors
	// and the kernel memory (about 3 kB for a TCP socket) a busy source costs.
	// At 20,000 connections a second this many last for 13 ms, and making as
	// many takes one or two.
	poolMost = 256

	// poolLeast is the smallest stock worth having: the second connection after
	// a pause should not have to wait as the first one did.
	poolLeast = 4

	// poolRest is how often the stock is compared with the demand.
	poolRest = 5 * time.Second
)

// Pool keeps sockets ready which were made in a namespace, so that taking one
// does not enter it. The stock follows demand: none until the first Get, twice
// as many each time a Get had to wait, half as many after five seconds in which
// none had to, and none after five seconds without a Get.
type Pool struct {
	ns   *Namespace
	make func() (fd int, err error) // called in ns

	wake  chan struct{} // holds one request to the owner at most
	quit  chan struct{}
	owner sync.WaitGroup

	mu      sync.Mutex
	filled  sync.Cond // a batch was made or failed, or the pool was closed
	free    []int
	target  int   // how many should be free
	waiting int   // Gets that wait for filled
	begun   int   // batches, so far
	ended   int   // batches, be it with an error
	err     error // of the batch that ended last
	started bool  // the owner's goroutine runs
	closed  bool

	// since the last rest:
	taken  bool // a Get took a socket
	missed bool // a Get had to wait
}

// NewPool returns a pool of the sockets that make returns when it is called in
// the namespace, which has to stay open until the pool is closed.
func (n *Namespace) NewPool(make func() (fd int, err error)) *Pool {
	p := &Pool{ns: n, make: make, wake: newSignal(1), quit: newSignal(0)}
	p.filled.L = &p.mu
	return p
}

func newSignal(size int) chan struct{} { return make(chan struct{}, size) }

// Get returns a socket, which is the caller's to close. It waits only if none
// is ready. The error is that of making one, or os.ErrClosed after Close.
func (p *Pool) Get() (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for before := p.begun; ; p.await() {
		if p.closed {
			return -1, os.ErrClosed
		}
		if last := len(p.free) - 1; last >= 0 {
			fd := p.free[last]
			p.free = p.free[:last]
			p.taken = true
			if last <= p.target/2 {
				p.ask()
			}
			return fd, nil
		}
		if p.ended > before && p.err != nil {
			return -1, p.err
		}
	}
}

// await asks for a batch and waits for it. It is called, and returns, with
// p.mu held.
func (p *Pool) await() {
	p.missed = true
	p.waiting++
	p.ask()
	p.filled.Wait()
	p.waiting--
}

// ask has the owner look at the stock. It is called with p.mu held.
func (p *Pool) ask() {
	if !p.started {
		p.started = true
		p.owner.Go(p.serve)
	}
	select {
	case p.wake <- struct{}{}:
	default: // it will look anyway
	}
}

// Close closes the sockets nobody took. They keep the namespace alive, so it
// does not wait for anything but a batch that is being made.
func (p *Pool) Close() error {
	p.mu.Lock()
	wasClosed := p.closed
	p.closed = true
	p.dropLocked(0)
	p.filled.Broadcast()
	p.mu.Unlock()
	if !wasClosed {
		close(p.quit)
	}
	p.owner.Wait()
	return nil
}

// serve is the owner: the only goroutine that adds sockets, or takes any away
// that nobody asked for.
func (p *Pool) serve() {
	var rest <-chan time.Time // nil while there is nothing to put away
	for {
		select {
		case <-p.quit:
			return
		case <-p.wake:
			p.fill()
			if rest == nil {
				rest = time.After(poolRest)
			}
		case <-rest:
			rest = nil
			if p.settle() {
				rest = time.After(poolRest)
			}
		}
	}
}

// fill brings the stock up to the target, in one visit to the namespace.
func (p *Pool) fill() {
	p.mu.Lock()
	if p.waiting > 0 {
		p.target = min(max(2*p.target, poolLeast), poolMost)
	}
	n := p.target + p.waiting - len(p.free)
	if n <= 0 {
		p.mu.Unlock()
		return
	}
	p.begun++
	p.mu.Unlock()

	fds, err := p.batch(n)

	p.mu.Lock()
	p.free = append(p.free, fds...)
	p.ended = p.begun
	p.err = err
	if p.closed {
		p.dropLocked(0)
	}
	p.filled.Broadcast()
	p.mu.Unlock()
}

// batch makes n sockets, or as many as it can.
func (p *Pool) batch(n int) (fds []int, err error) {
	fds = make([]int, 0, n)
	err = p.ns.Do(func() error {
		for range n {
			fd, err := p.make()
			if err != nil {
				return err
			}
			fds = append(fds, fd)
		}
		return nil
	})
	return fds, err
}

// settle lowers the stock if there is little demand, and reports whether there
// is any left to look after.
func (p *Pool) settle() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case !p.taken:
		p.target = 0
	case !p.missed:
		p.target = max(p.target/2, poolLeast)
	}
	p.taken, p.missed = false, false
	p.dropLocked(p.target)
	return p.target > 0
}

// dropLocked closes all free sockets but keep of them.
func (p *Pool) dropLocked(keep int) {
	if len(p.free) <= keep {
		return
	}
	for _, fd := range p.free[keep:] {
		unix.Close(fd)
	}
	p.free = p.free[:keep]
}
