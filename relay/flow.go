package relay

import (
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// flow is what a connection has when it is a flow of datagrams: its source
// end is a connected UDP socket, and its recipient end is the listener's.
type flow struct {
	listener *PacketListener
	key      flowKey
	answered bool // the source has sent something
	noGSO    bool // its route does not take several datagrams at once
	paired   bool // its source end is one of a pair, see Source.PacketSocket
	burst    uint8
	// lastReady is the worker's round in which the flow was last ready: one
	// that is ready in round after round sends faster than one datagram each.
	lastReady uint64
}

const (
	// unansweredTimeout bounds how long a flow is kept of which only one side
	// has ever spoken.
	unansweredTimeout = 30 << 30 >> tickShift // ticks, 32 s
	// flowBuffer is how many bytes of answers may wait for the worker.
	flowBuffer = 1 << 20
	// burstAfter rounds in a row that a flow is ready, its datagrams are
	// received many at a time.
	burstAfter = 3
	// evictFrom is of how many flows the quietest goes.
	evictFrom = 8
)

// flowFor is the flow of key, made if there is none. Without one the errno
// says why the datagram cannot be delivered; it is EAGAIN if that is nobody's
// business but the link's.
func (w *worker) flowFor(l *PacketListener, key flowKey) (*conn, syscall.Errno) {
	if slot, ok := l.flows[key]; ok {
		return w.slab.at(slot), 0
	}
	link := l.route(key.local.addrPort())
	if link == nil || link.Source == nil || !link.use(w.engine) {
		w.engine.unrouted.Add(1)
		return nil, unix.ECONNREFUSED
	}
	if len(l.flows) >= maxFlows && !w.evict(l) {
		link.fail(dropped)
		return nil, unix.EAGAIN
	}
	if !link.admit() {
		return nil, unix.EAGAIN
	}
	fd, to, err := link.Source.PacketSocket(key.local.port)
	if err != nil {
		link.leave(noSocket)
		return nil, unix.ECONNREFUSED
	}
	paired := !to.IsValid()
	if !paired {
		if errno := startConnect(int32(fd), to); errno != 0 {
			closeFD(int32(fd))
			link.leave(connectCause(errno))
			return nil, errno
		}
		setReceiveBuffer(int32(fd), flowBuffer)
	}
	c := w.open(-1, int32(fd), link)
	c.state, c.settled = established, true
	c.flow = &flow{listener: l, key: key, paired: paired, noGSO: paired}
	if errno := w.poll.control(unix.EPOLL_CTL_ADD, int32(fd), unix.EPOLLIN, c.slot<<1|fromSource, c.gen); errno != 0 {
		w.end(c, noSocket)
		return nil, unix.EAGAIN
	}
	l.flows[key] = c.slot
	w.schedule(c)
	return c, 0
}

// evict makes room for a flow. A map is walked from a random place, so these
// are a sample, and the quietest of a sample is quiet enough.
func (w *worker) evict(l *PacketListener) bool {
	var quietest *conn
	n := 0
	for _, slot := range l.flows {
		c := w.slab.at(slot)
		if c.inBatch == 0 && (quietest == nil || int32(c.active-quietest.active) < 0) {
			quietest = c
		}
		if n++; n == evictFrom {
			break
		}
	}
	if quietest == nil {
		return false
	}
	w.end(quietest, overLimit)
	return true
}

// flowFailed ends a flow whose socket has an error: nobody listens at the
// source's port, or the source is gone. The next datagram makes a new one,
// which finds the source where it is then. The client is told, as it would be
// without a relay.
func (w *worker) flowFailed(c *conn, errno syscall.Errno) {
	l, key := c.flow.listener, c.flow.key
	w.end(c, connectCause(errno))
	if errno == unix.ECONNREFUSED {
		w.unreachable(l, key)
	}
}

// FlowPair makes the two ends of a flow that somebody else carries: the one
// for Source.PacketSocket to return, and the carrier's, of the network
// "unixpacket". The caller closes both, or hands them on.
func FlowPair() (fd int, carrier *net.UnixConn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, nil, fmt.Errorf("making the ends of a flow: %w", err)
	}
	f := os.NewFile(uintptr(fds[1]), "flow")
	defer f.Close() // FileConn has a duplicate
	c, err := net.FileConn(f)
	if err != nil {
		unix.Close(fds[0])
		return -1, nil, fmt.Errorf("making the ends of a flow: %w", err)
	}
	return fds[0], c.(*net.UnixConn), nil
}

// pairEnded ends a flow whose carrier has closed its end.
func (w *worker) pairEnded(c *conn) {
	if c.flow.answered {
		w.end(c, finished)
		return
	}
	w.flowFailed(c, unix.ECONNREFUSED)
}

// setReceiveBuffer asks for size bytes, beyond the system's bound for
// everyone if the process may.
func setReceiveBuffer(fd int32, size int32) {
	if setInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, size) != 0 {
		setInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, size)
	}
}
