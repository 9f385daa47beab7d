package relay

import (
	"encoding/binary"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// packetBatch is how many datagrams are received, or sent, at once. The
	// buffers are a worker's, each as large as a datagram can be; memory they
	// have only where datagrams have been.
	packetBatch  = 32
	packetSize   = 65535
	packetStride = 65536 + 3*64 // see bufferStride
	// mostSegments is what the kernel cuts one send into at most
	// (UDP_MAX_SEGMENTS was 64 before Linux 6.10).
	mostSegments = 64
	mostPayload  = 65507
	controlSize  = 128
)

type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
	_   [4]byte
}

// datagrams is a worker's workshop for receiving and sending many at once.
type datagrams struct {
	data     []byte
	in       [packetBatch]mmsghdr
	inIov    [packetBatch]unix.Iovec
	inFrom   [packetBatch]unix.RawSockaddrInet4
	control  [packetBatch][controlSize]byte
	flowOf   [packetBatch]*conn
	segment  [packetBatch]int // size of what the kernel had put together, 0 for one datagram
	singles  [packetBatch]transfer
	single   [packetBatch]int // the datagram of each
	gsoIov   [packetBatch]unix.Iovec
	gsoSpace [32]byte

	out    [packetBatch]mmsghdr
	outIov [packetBatch][2]unix.Iovec
	outTo  [packetBatch]unix.RawSockaddrInet4
	header [packetBatch][packetHeader]byte
	outOf  [packetBatch]*conn
	nOut   int
	outFD  int32
}

func (d *datagrams) init() {
	if d.data == nil {
		d.data = make([]byte, packetBatch*packetStride)
	}
}

func (d *datagrams) buffer(k int) []byte { return d.data[k*packetStride:][:packetSize] }

func (d *datagrams) payload(k int) []byte { return d.data[k*packetStride:][:d.in[k].n] }

// receive fills the batch from fd. named is for sockets that are not
// connected: who sent it, and to which address.
func (d *datagrams) receive(fd int32, named bool) (int, syscall.Errno) {
	d.init()
	for k := range d.in {
		d.inIov[k].Base = &d.data[k*packetStride]
		d.inIov[k].SetLen(packetSize)
		h := &d.in[k].hdr
		*h = unix.Msghdr{Iov: &d.inIov[k], Iovlen: 1}
		if named {
			h.Name = (*byte)(unsafe.Pointer(&d.inFrom[k]))
			h.Namelen = unix.SizeofSockaddrInet4
			h.Control = &d.control[k][0]
			h.SetControllen(controlSize)
		}
	}
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&d.in[0])), packetBatch, unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

// about reads the control messages of datagram k: the address it was sent to,
// and the size of the datagrams it consists of if the kernel put some
// together.
func (d *datagrams) about(k int, bound addr4) (local addr4, segment int) {
	local = bound
	h := &d.in[k].hdr
	rest := d.control[k][:min(uint64(h.Controllen), controlSize)]
	for len(rest) >= unix.SizeofCmsghdr {
		c := (*unix.Cmsghdr)(unsafe.Pointer(&rest[0]))
		size := int(c.Len)
		if size < unix.SizeofCmsghdr || size > len(rest) {
			break
		}
		value := rest[unix.CmsgLen(0):size]
		switch {
		case c.Level == unix.SOL_IP && c.Type == unix.IP_ORIGDSTADDR && len(value) >= unix.SizeofSockaddrInet4:
			local = addr4Of((*unix.RawSockaddrInet4)(unsafe.Pointer(&value[0])))
		case c.Level == unix.SOL_UDP && c.Type == unix.UDP_GRO && len(value) >= 4:
			segment = int(binary.NativeEndian.Uint32(value))
		}
		rest = rest[min(unix.CmsgSpace(size-unix.CmsgLen(0)), len(rest)):]
	}
	return local, segment
}

// fromClients passes on what clients have sent.
func (w *worker) fromClients(l *PacketListener) {
	d := &w.datagrams
	n, errno := d.receive(l.recv, true)
	switch errno {
	case 0:
	case unix.EBADF, unix.ENOTSOCK, unix.EINVAL, unix.EFAULT:
		w.engine.log().Error("packet listener is no more", "error", errno)
		w.stopPackets(l)
		return
	default:
		return // nothing there, or an error that is over by having been told
	}
	var key flowKey
	var c *conn
	for k := range n {
		local, segment := d.about(k, l.bound)
		next := flowKey{addr4Of(&d.inFrom[k]), local}
		if c == nil || next != key {
			key = next
			var errno syscall.Errno
			if c, errno = w.flowFor(l, key); errno == unix.ECONNREFUSED {
				w.unreachable(l, key)
			}
		}
		d.flowOf[k], d.segment[k] = c, segment
		if c != nil {
			c.inBatch = 1 // not to be evicted for a later one of this batch
		}
	}
	w.sendToSources(l, n)
	for k := range n {
		d.flowOf[k] = nil
	}
	w.flushAnswers()
}

// sendToSources sends the first n datagrams of the batch on their flows. A
// row of the same size on one flow goes out as one, which the kernel cuts up
// again at its receiver; the rest go by themselves, in one batch.
func (w *worker) sendToSources(l *PacketListener, n int) {
	d := &w.datagrams
	singles := 0
	for k := 0; k < n; {
		c := d.flowOf[k]
		if c == nil {
			k++
			continue
		}
		row := d.row(k, n)
		if row == 1 && d.segment[k] == 0 {
			d.singles[singles] = transfer{c: c, fd: c.ends[fromSource].fd, buf: d.payload(k)}
			d.single[singles] = k
			singles++
			k++
			continue
		}
		// What one flow gets has to stay in order.
		w.sendSingles(l, singles)
		singles = 0
		w.sendRow(l, k, row)
		k += row
	}
	w.sendSingles(l, singles)
	for k := range n {
		if c := d.flowOf[k]; c != nil {
			c.inBatch = 0
		}
	}
}

// row is how many datagrams from k on can be sent as one: of one flow and one
// size, but for the last, which may be shorter.
func (d *datagrams) row(k, n int) int {
	c, size := d.flowOf[k], int(d.in[k].n)
	if c.flow.noGSO || d.segment[k] != 0 || size == 0 {
		return 1
	}
	total, row := size, 1
	for j := k + 1; j < n && row < mostSegments; j++ {
		next := int(d.in[j].n)
		if d.flowOf[j] != c || d.segment[j] != 0 || next == 0 || next > size || total+next > mostPayload {
			break
		}
		total += next
		row++
		if next < size {
			break
		}
	}
	return row
}

func (w *worker) sendSingles(l *PacketListener, n int) {
	d := &w.datagrams
	if n == 0 {
		return
	}
	w.calls.sendAll(d.singles[:n])
	for i := range n {
		t := &d.singles[i]
		w.sent(l, d.single[i], t.errno)
		t.c = nil
	}
}

// sendRow sends row datagrams from k on with one call.
func (w *worker) sendRow(l *PacketListener, k, row int) {
	d := &w.datagrams
	c := d.flowOf[k]
	size := d.segment[k]
	if size == 0 {
		size = int(d.in[k].n)
	}
	if c.flow.noGSO {
		for j := range row {
			w.sendCut(l, k+j, size)
		}
		return
	}
	h := unix.Msghdr{Iov: &d.gsoIov[0]}
	h.SetIovlen(row)
	for j := range row {
		d.gsoIov[j].Base = &d.data[(k+j)*packetStride]
		d.gsoIov[j].SetLen(int(d.in[k+j].n))
	}
	cm := (*unix.Cmsghdr)(unsafe.Pointer(&d.gsoSpace[0]))
	cm.Level, cm.Type = unix.SOL_UDP, unix.UDP_SEGMENT
	cm.SetLen(unix.CmsgLen(2))
	binary.NativeEndian.PutUint16(d.gsoSpace[unix.CmsgLen(0):], uint16(size))
	h.Control = &d.gsoSpace[0]
	h.SetControllen(unix.CmsgSpace(2))
	_, _, errno := unix.RawSyscall(unix.SYS_SENDMSG, uintptr(c.ends[fromSource].fd), uintptr(unsafe.Pointer(&h)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	switch errno {
	case unix.EINVAL, unix.EIO, unix.EMSGSIZE, unix.EOPNOTSUPP:
		// Larger than the way out takes in one piece, or no offload there:
		// each by itself, then, and cut up by hand if need be.
		c.flow.noGSO = true
		for j := range row {
			w.sendCut(l, k+j, size)
		}
		return
	}
	for j := range row {
		w.sent(l, k+j, errno)
	}
}

// sendCut sends datagram k in pieces of size.
func (w *worker) sendCut(l *PacketListener, k, size int) {
	d := &w.datagrams
	for rest := d.payload(k); len(rest) > 0; {
		c := d.flowOf[k]
		if c == nil {
			return
		}
		piece := rest[:min(size, len(rest))]
		rest = rest[len(piece):]
		_, errno := w.calls.send(c.ends[fromSource].fd, piece, 0)
		w.sentBytes(l, k, len(piece), errno)
	}
}

// sent takes in what sending datagram k came to.
func (w *worker) sent(l *PacketListener, k int, errno syscall.Errno) {
	w.sentBytes(l, k, int(w.datagrams.in[k].n), errno)
}

func (w *worker) sentBytes(l *PacketListener, k, size int, errno syscall.Errno) {
	d := &w.datagrams
	c := d.flowOf[k]
	if c == nil {
		return // ended by one before it
	}
	switch errno {
	case 0:
		w.datagramMoved(c, fromRecipient, size)
	case unix.EAGAIN, unix.EINTR, unix.ENOBUFS, unix.EMSGSIZE, unix.ENOMEM:
		c.link.fail(dropped)
	default:
		// The error is that of an earlier datagram and this one has not been
		// sent. The source may have moved meanwhile.
		key := c.flow.key
		w.flowFailed(c, errno)
		again, errno := w.flowFor(l, key)
		for j := range d.flowOf {
			if d.flowOf[j] == c {
				d.flowOf[j] = again
			}
		}
		if again == nil {
			if errno == unix.ECONNREFUSED {
				w.unreachable(l, key)
			}
			return
		}
		again.inBatch = 1
		if _, errno := w.calls.send(again.ends[fromSource].fd, d.payload(k)[:size], 0); errno == 0 {
			w.datagramMoved(again, fromRecipient, size)
		} else {
			again.link.fail(dropped)
		}
	}
}

func (w *worker) datagramMoved(c *conn, i, size int) {
	c.ends[i].moved += uint64(size)
	w.count(c.link, i, uint64(size))
	c.active = w.now
	w.copiedBytes += uint64(size)
}

// answersOf passes on what the source has sent on a flow.
func (w *worker) answersOf(c *conn) {
	d := &w.datagrams
	n, errno := d.receive(c.ends[fromSource].fd, false)
	if !w.hasAnswer(c, errno) {
		w.flushAnswers() // the client may have to be told
		return
	}
	if n < packetBatch/2 {
		c.flow.burst = 0
	}
	for k := range n {
		if c.flow.paired && d.in[k].n == 0 && hungUp(c.ends[fromSource].fd) {
			w.flushAnswers() // they are counted with the flow
			w.pairEnded(c)
			break
		}
		w.answer(c, d.payload(k))
	}
	w.flushAnswers()
}

// answersOfAll does the same for many flows with one datagram each: more than
// one is rare when there are many. A flow that has more is ready again at
// once, and soon gets the attention of answersOf.
func (w *worker) answersOfAll(ready []*conn) {
	d := &w.datagrams
	d.init()
	for k, c := range ready {
		d.singles[k] = transfer{c: c, fd: c.ends[fromSource].fd, buf: d.buffer(k)}
	}
	w.calls.recvAll(d.singles[:len(ready)])
	for k, c := range ready {
		t := &d.singles[k]
		switch {
		case !w.hasAnswer(c, t.errno):
		case c.flow.paired && t.n == 0 && hungUp(t.fd):
			w.pairEnded(c)
		default:
			w.answer(c, t.buf[:t.n])
		}
		t.c = nil
	}
	w.flushAnswers()
}

func (w *worker) hasAnswer(c *conn, errno syscall.Errno) bool {
	switch errno {
	case 0:
		return true
	case unix.EAGAIN, unix.EINTR:
	case unix.ECONNRESET, unix.ECONNREFUSED:
		if c.flow.paired { // it was closed with datagrams unread
			w.pairEnded(c)
			return false
		}
		fallthrough
	default:
		w.flowFailed(c, errno)
	}
	return false
}

// answerFlows works off the flows whose sources have sent something.
func (w *worker) answerFlows() {
	w.rounds++
	rest := w.ready[:0]
	for _, c := range w.ready {
		f := c.flow
		if f == nil {
			continue // ended since it was ready
		}
		if f.lastReady+1 == w.rounds {
			f.burst = min(f.burst+1, burstAfter)
		}
		f.lastReady = w.rounds
		if f.burst == burstAfter || len(w.ready) == 1 {
			w.answersOf(c)
		} else {
			rest = append(rest, c)
		}
	}
	for len(rest) > 0 {
		n := min(len(rest), packetBatch)
		w.answersOfAll(rest[:n])
		rest = rest[n:]
	}
	clear(w.ready)
	w.ready = w.ready[:0]
}
