package relay

import (
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	// defaultPipes bounds the pipes of an engine: directions with bytes in
	// flight at one moment, not connections. All of them full is 256 MiB.
	defaultPipes = 1024
	// idlePipes is how many empty pipes a worker keeps for the next burst.
	// What is above is closed when it comes back.
	idlePipes = 16
	// pipeSize is how many bytes a pipe holds, and the most one splice moves.
	// Against the 64 KiB a pipe has by default this takes a third off the
	// processor time of bulk: what goes out in one piece is received in one.
	// A megabyte takes off little more, but no longer stays in the cache.
	pipeSize = 256 << 10
)

// pipe holds bytes between two splices.
type pipe struct {
	r, w int32
	next *pipe
}

// pipePool is one worker's empty pipes. The count and its bound are the
// engine's: open pipes, lent or idle.
type pipePool struct {
	free  *pipe
	idle  int
	open  *atomic.Int64
	bound int64
}

// get lends an empty pipe, nil when the bound is reached or the system has no
// more: the caller copies instead, so starvation costs time and nothing else.
func (p *pipePool) get() *pipe {
	if q := p.free; q != nil {
		p.free, q.next = q.next, nil
		p.idle--
		return q
	}
	if p.open.Add(1) > p.bound {
		p.open.Add(-1)
		return nil
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		p.open.Add(-1)
		return nil
	}
	// A user who has many pipes already may have no more large ones; then it
	// stays as it is.
	unix.FcntlInt(uintptr(fds[1]), unix.F_SETPIPE_SZ, pipeSize)
	return &pipe{r: int32(fds[0]), w: int32(fds[1])}
}

// put takes back a pipe that is empty.
func (p *pipePool) put(q *pipe) {
	if p.idle >= idlePipes {
		p.discard(q)
		return
	}
	q.next, p.free = p.free, q
	p.idle++
}

// discard closes a pipe, with what is left in it.
func (p *pipePool) discard(q *pipe) {
	closeFD(q.r)
	closeFD(q.w)
	p.open.Add(-1)
}

func (p *pipePool) close() {
	for p.free != nil {
		q := p.free
		p.free = q.next
		p.discard(q)
	}
	p.idle = 0
}

// spill is where bytes wait that were read and found the other end full.
// There is one only while they wait.
type spill struct {
	buf  [copySize]byte
	off  int32 // of the first byte that waits
	next *spill
}

// idleSpills is how many a worker keeps, the rest is the collector's.
const idleSpills = 16

type spillPool struct {
	free *spill
	idle int
}

func (p *spillPool) get() *spill {
	q := p.free
	if q == nil {
		return new(spill)
	}
	p.free, q.next = q.next, nil
	p.idle--
	return q
}

func (p *spillPool) put(q *spill) {
	if p.idle < idleSpills {
		q.next, p.free = p.free, q
		p.idle++
	}
}
