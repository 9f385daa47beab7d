package relay

import (
	"math/rand/v2"
	"syscall"

	"golang.org/x/sys/unix"
)

// engines are the ways an engine can work. A test of what a connection does
// passes with each.
var engines = []struct {
	name string
	make func() *Engine
}{
	{"ring", func() *Engine { return &Engine{} }},
	{"one by one", func() *Engine { return &Engine{oneByOne: true} }},
	{"one worker", func() *Engine { return &Engine{Workers: 1} }},
	{"no pipes", func() *Engine { return &Engine{Pipes: -1} }},
	{"one pipe", func() *Engine { return &Engine{Pipes: 1, Workers: 1} }},
	{"faults", func() *Engine { return &Engine{oneByOne: true, seam: faults(1)} }},
	{"more faults", func() *Engine { return &Engine{oneByOne: true, seam: faults(2), Pipes: 2} }},
}

// faults has a third of the calls that move bytes interrupted, fail for want
// of bytes or room, or move less than they could. Where the kernel does that
// it sees to an event afterwards; so do the faults.
func faults(seed uint64) func(*worker, *calls) {
	return func(w *worker, c *calls) {
		f := &faulty{w: w, real: *c, rng: rand.New(rand.NewPCG(seed, uint64(w.index)))}
		c.recv, c.send, c.splice = f.recv, f.send, f.splice
	}
}

type faulty struct {
	w    *worker
	real calls
	rng  *rand.Rand
}

// rearm has the kernel report again what fd is ready for.
func (f *faulty) rearm(fd int32) {
	f.w.slab.each(func(c *conn) {
		for i := range c.ends {
			if e := &c.ends[i]; e.fd == fd {
				f.w.poll.control(unix.EPOLL_CTL_MOD, fd, e.interest(), c.slot<<1|int32(i), c.gen)
			}
		}
	})
}

// peerClosed says that no more arrives at fd than has arrived.
func peerClosed(fd int32) bool {
	fds := []unix.PollFd{{Fd: fd, Events: unix.POLLRDHUP}}
	n, _ := unix.Poll(fds, 0)
	return n > 0
}

func (f *faulty) recv(fd int32, p []byte) (int, syscall.Errno) {
	switch f.rng.IntN(12) {
	case 0:
		return 0, unix.EINTR
	case 1:
		f.rearm(fd)
		return 0, unix.EAGAIN
	case 2, 3:
		if peerClosed(fd) {
			// To say less than there is would be a lie the kernel does not tell.
			break
		}
		n, errno := f.real.recv(fd, p[:1+f.rng.IntN(len(p))])
		f.rearm(fd)
		return n, errno
	}
	return f.real.recv(fd, p)
}

func (f *faulty) send(fd int32, p []byte, flags uint32) (int, syscall.Errno) {
	switch f.rng.IntN(12) {
	case 0:
		return 0, unix.EINTR
	case 1:
		f.rearm(fd)
		return 0, unix.EAGAIN
	case 2, 3:
		if len(p) > 0 {
			n, errno := f.real.send(fd, p[:1+f.rng.IntN(len(p))], flags)
			f.rearm(fd)
			return n, errno
		}
	}
	return f.real.send(fd, p, flags)
}

func (f *faulty) splice(from, to int32, n int) (int, syscall.Errno) {
	switch f.rng.IntN(12) {
	case 0:
		return 0, unix.EINTR
	case 1:
		f.rearm(from)
		f.rearm(to)
		return 0, unix.EAGAIN
	case 2, 3:
		return f.real.splice(from, to, 1+f.rng.IntN(n))
	}
	return f.real.splice(from, to, n)
}
