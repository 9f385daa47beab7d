package relay

import (
	"encoding/binary"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Answers are packets written by hand and sent from a raw socket. A client
// that has connected its socket takes none but from the address it sent to,
// and no UDP socket can send from there without being bound there, in the way
// of the recipient's own servers.
const (
	ipHeader     = 20
	udpHeader    = 8
	icmpHeader   = 8
	packetHeader = icmpHeader + 2*ipHeader + udpHeader // of the longest: an "unreachable"
)

// putDatagram writes the IPv4 and UDP headers of a datagram into b and returns
// their length.
func putDatagram(b []byte, from, to addr4, payload int) int {
	putIP(b, from, to, unix.IPPROTO_UDP, udpHeader+payload)
	putUDP(b[ipHeader:], from, to, payload)
	return ipHeader + udpHeader
}

// putUnreachable writes a whole packet into b that tells the client to that
// nobody has the port it sent to: ICMP "port unreachable", by which its
// socket, if connected, learns of ECONNREFUSED. It returns the length.
func putUnreachable(b []byte, from, to addr4) int {
	const quoted = ipHeader + udpHeader // the headers that the client had sent
	putIP(b, from, to, unix.IPPROTO_ICMP, icmpHeader+quoted)
	message := b[ipHeader:][:icmpHeader+quoted]
	clear(message[:icmpHeader])
	message[0], message[1] = 3, 3
	inner := message[icmpHeader:]
	putIP(inner, to, from, unix.IPPROTO_UDP, udpHeader)
	binary.BigEndian.PutUint16(inner[10:], checksum(inner[:ipHeader]))
	putUDP(inner[ipHeader:], to, from, 0)
	binary.BigEndian.PutUint16(message[2:], checksum(message))
	return ipHeader + len(message)
}

// putIP writes a header without its checksum: the raw socket fills that in.
func putIP(b []byte, from, to addr4, proto byte, payload int) {
	b[0], b[1] = 0x45, 0 // version 4, five words
	binary.BigEndian.PutUint16(b[2:], uint16(ipHeader+payload))
	// Not to be fragmented, so that the kernel need not look for an
	// identification. The loopback interface takes any length.
	binary.BigEndian.PutUint32(b[4:], 0x4000)
	b[8], b[9] = 64, proto
	b[10], b[11] = 0, 0
	copy(b[12:], from.ip[:])
	copy(b[16:], to.ip[:])
}

// putUDP writes a header with the checksum that stands for none, as IPv4
// allows (RFC 768): the packet does not leave the machine's memory.
func putUDP(b []byte, from, to addr4, payload int) {
	binary.BigEndian.PutUint16(b[0:], from.port)
	binary.BigEndian.PutUint16(b[2:], to.port)
	binary.BigEndian.PutUint16(b[4:], uint16(udpHeader+payload))
	b[6], b[7] = 0, 0
}

// checksum is RFC 1071's, of an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(b[0])<<8 | uint32(b[1])
	}
	for sum>>16 != 0 {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// answer has payload sent to the client of a flow with the next batch of
// answers. payload has to stay as it is until then.
func (w *worker) answer(c *conn, payload []byte) {
	d, l, key := &w.datagrams, c.flow.listener, c.flow.key
	c.flow.answered = true
	if l.reply < 0 {
		k := w.nextAnswer(l.recv, key.client, c)
		d.outIov[k][0].Base = unsafe.SliceData(payload)
		d.outIov[k][0].SetLen(len(payload))
		d.out[k].hdr.SetIovlen(1)
		return
	}
	k := w.nextAnswer(l.reply, key.client, c)
	size := putDatagram(d.header[k][:], key.local, key.client, len(payload))
	d.outIov[k][0].Base = &d.header[k][0]
	d.outIov[k][0].SetLen(size)
	d.outIov[k][1].Base = unsafe.SliceData(payload)
	d.outIov[k][1].SetLen(len(payload))
	d.out[k].hdr.SetIovlen(2)
}

// unreachable has a client told that its datagram was not delivered.
func (w *worker) unreachable(l *PacketListener, key flowKey) {
	if l.reply < 0 {
		return
	}
	d := &w.datagrams
	k := w.nextAnswer(l.reply, key.client, nil)
	size := putUnreachable(d.header[k][:], key.local, key.client)
	d.outIov[k][0].Base = &d.header[k][0]
	d.outIov[k][0].SetLen(size)
	d.out[k].hdr.SetIovlen(1)
}

// nextAnswer is a free place in the batch of answers.
func (w *worker) nextAnswer(fd int32, to addr4, c *conn) int {
	d := &w.datagrams
	if d.nOut == packetBatch || d.nOut > 0 && d.outFD != fd {
		w.flushAnswers()
	}
	k := d.nOut
	d.nOut++
	d.outFD = fd
	d.outTo[k] = to.raw()
	d.outOf[k] = c
	d.out[k].hdr = unix.Msghdr{
		Name:    (*byte)(unsafe.Pointer(&d.outTo[k])),
		Namelen: unix.SizeofSockaddrInet4,
		Iov:     &d.outIov[k][0],
	}
	return k
}

// flushAnswers sends the batch of answers. One that cannot be sent is lost,
// as a datagram may be.
func (w *worker) flushAnswers() {
	d := &w.datagrams
	for at := 0; at < d.nOut; {
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(d.outFD), uintptr(unsafe.Pointer(&d.out[at])), uintptr(d.nOut-at), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		if errno == unix.EINTR {
			continue
		}
		for ; errno == 0 && n > 0; n-- {
			w.answered(at, 0)
			at++
		}
		if errno != 0 {
			w.answered(at, errno)
			at++
		}
	}
	d.nOut = 0
}

func (w *worker) answered(k int, errno syscall.Errno) {
	d := &w.datagrams
	c := d.outOf[k]
	d.outOf[k] = nil
	if c == nil {
		return
	}
	if errno != 0 {
		c.link.fail(dropped)
		return
	}
	h := &d.out[k].hdr
	last := h.Iovlen - 1
	w.datagramMoved(c, fromSource, int(d.outIov[k][last].Len))
}
