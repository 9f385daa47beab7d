package relay

import (
	"fmt"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"
)

// PacketListener is a UDP socket that the engine relays datagrams from.
type PacketListener struct {
	engine *Engine
	worker *worker
	id     int32
	recv   int32
	reply  int32 // negative: answers are sent from recv
	bound  addr4 // of recv
	route  func(netip.AddrPort) *Link

	flows map[flowKey]int32 // slots; the worker's

	once sync.Once
}

// addr4 is an IPv4 address and port, as a key.
type addr4 struct {
	ip   [4]byte
	port uint16
}

func (a addr4) addrPort() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4(a.ip), a.port)
}

func addr4Of(sa *unix.RawSockaddrInet4) addr4 { return addr4{sa.Addr, swap16(sa.Port)} }

func (a addr4) raw() unix.RawSockaddrInet4 {
	return unix.RawSockaddrInet4{Family: unix.AF_INET, Port: swap16(a.port), Addr: a.ip}
}

// flowKey is who talks to whom: a client and the address it sent to.
type flowKey struct{ client, local addr4 }

// maxFlows bounds the flows of one listener, whatever its links allow. Above
// it the quietest of a few has to go: a client that sends from ever new ports
// costs itself its own old flows.
const maxFlows = 8192

// ServePackets relays the datagrams that arrive at recv, an IPv4 UDP socket,
// each to the source of the link that route names for the address it was
// sent to. That address comes with the datagram if IP_RECVORIGDSTADDR is set
// on recv; without, it is recv's own. One client and one such address are a
// flow, with a socket of its own from Link.Source.
//
// Answers go through reply, a raw socket in the recipient's namespace to
// which whole IPv4 packets are written (IPPROTO_RAW), so that they come from
// the address the client sent to while nothing is bound there. What cannot be
// delivered is answered like by a host that has no such port. With a negative
// reply answers are sent from recv, which then is bound to that address, and
// nothing is said about the undelivered.
//
// route is called by a worker and must be quick; nil refuses the
// datagram. The engine owns both descriptors from then on; if ServePackets
// fails they stay the caller's.
func (e *Engine) ServePackets(recv, reply int, route func(local netip.AddrPort) *Link) (*PacketListener, error) {
	if err := takeSocket(recv, unix.SOCK_DGRAM); err != nil {
		return nil, fmt.Errorf("serving datagrams: %w", err)
	}
	if reply >= 0 {
		if err := takeSocket(reply, unix.SOCK_RAW); err != nil {
			return nil, fmt.Errorf("serving datagrams: %w", err)
		}
	}
	local, errno := localAddr(int32(recv))
	if errno != 0 || !local.Addr().Is4() {
		return nil, fmt.Errorf("serving datagrams: the socket has the address %v, and an IPv4 address is needed", local)
	}
	// A sender that lets the kernel cut a buffer into datagrams (GSO, as QUIC
	// does) is received and passed on uncut. Older kernels cannot.
	setInt(int32(recv), unix.IPPROTO_UDP, unix.UDP_GRO, 1)
	l := &PacketListener{
		engine: e,
		recv:   int32(recv),
		reply:  int32(max(reply, -1)),
		bound:  addr4{local.Addr().As4(), local.Port()},
		route:  route,
		flows:  make(map[flowKey]int32),
	}
	if err := e.addPackets(l); err != nil {
		return nil, fmt.Errorf("serving datagrams: %w", err)
	}
	var err error
	if !l.worker.call(func(w *worker) { err = w.servePackets(l) }) {
		err = ErrClosed
	}
	if err != nil {
		e.forgetPackets(l)
		return nil, fmt.Errorf("serving datagrams: %w", err)
	}
	return l, nil
}

// addPackets gives l a number and a worker. A listener stays with one: its
// datagrams come out of one socket.
func (e *Engine) addPackets(l *PacketListener) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.running {
		return ErrClosed
	}
	e.lastID++
	l.id = e.lastID
	l.worker = e.workers[int(l.id)%len(e.workers)]
	e.packets[l.id] = l
	return nil
}

func (e *Engine) forgetPackets(l *PacketListener) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.packets, l.id)
}

// Close stops relaying and closes both sockets and every flow. When it has
// returned, route is not called any more. It is not to be called from route.
func (l *PacketListener) Close() error {
	l.once.Do(func() {
		l.engine.forgetPackets(l)
		l.worker.call(func(w *worker) { w.stopPackets(l) })
	})
	return nil
}

func (w *worker) servePackets(l *PacketListener) error {
	// Level-triggered: a batch that was not full has emptied the socket, and
	// one that was is reported again.
	if errno := w.poll.control(unix.EPOLL_CTL_ADD, l.recv, unix.EPOLLIN, l.id, isPackets); errno != 0 {
		return errno
	}
	w.packets[l.id] = l
	return nil
}

func (w *worker) stopPackets(l *PacketListener) {
	if w.packets[l.id] == nil {
		return
	}
	delete(w.packets, l.id)
	for _, slot := range l.flows {
		w.end(w.slab.at(slot), wasCut)
	}
	closeFD(l.recv)
	if l.reply >= 0 {
		closeFD(l.reply)
	}
}
