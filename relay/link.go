package relay

import (
	"net/netip"
	"time"
)

// Defaults of a Link's zero values.
const (
	DefaultConnectTimeout = 10 * time.Second
	DefaultCloseTimeout   = 5 * time.Minute
	DefaultFlowTimeout    = 90 * time.Second
)

// Source makes the sockets on which a link's source is reached. Workers call
// it for each connection, several at the same time: it returns quickly and
// never calls back into the engine.
type Source interface {
	// Socket returns a fresh, non-blocking, unconnected TCP socket and the
	// address the source's port has. The engine connects the socket and
	// closes it.
	Socket(port uint16) (fd int, to netip.AddrPort, err error)
	// PacketSocket is the same for UDP. A socket that comes with the zero
	// AddrPort is connected already: it is one end of a pair of packet sockets
	// (AF_UNIX, SOCK_SEQPACKET), of which the other is with somebody who
	// carries the flow. Whoever closes an end ends the flow; before the first
	// answer that is a refusal.
	PacketSocket(port uint16) (fd int, to netip.AddrPort, err error)
}

// Link is what the connections of one link have in common: where they go and
// what they may cost. The zero value of each limit is its default. The
// exported fields are not changed once the link has been used; a Link belongs
// to the first Engine that carried one of its connections.
type Link struct {
	// Source is needed for all but connections that come to Engine.Pair or
	// to Take.
	Source Source
	// Take, if set, gets the TCP connections of the link, those above MaxConns
	// excepted, instead of their being connected to Source: for what is not
	// just another socket, or not yet. Workers call it, several at the same
	// time; it must not block and never calls back into the engine, so what it
	// does first is to start a goroutine. Of the limits only MaxConns is kept
	// for what was taken.
	Take func(*Taken)

	// ConnectTimeout is how long the source may take to answer a connect.
	// 0 is DefaultConnectTimeout, negative leaves it to the kernel.
	ConnectTimeout time.Duration
	// IdleTimeout ends a connection over which no byte has moved for this
	// long. 0 and negative: never. A UDP flow has no other end than this: for
	// flows they are DefaultFlowTimeout.
	IdleTimeout time.Duration
	// MaxLifetime ends a connection this long after it was accepted,
	// whatever it does. 0 and negative: never.
	MaxLifetime time.Duration
	// CloseTimeout ends a connection of which one direction is closed and
	// the other has been silent for this long. 0 is DefaultCloseTimeout,
	// negative: never.
	CloseTimeout time.Duration
	// MaxConns bounds the connections and flows open at one moment; a
	// connection above it is reset, and a flow's datagrams are lost. 0 and
	// negative: no bound.
	MaxConns int

	live liveLink
}

// limits are a link's durations in ticks, 0 for none.
type limits struct {
	connect, idle, lifetime, close, flow uint32
}

func (l *Link) limits() limits {
	return limits{
		connect:  ticks(or(l.ConnectTimeout, DefaultConnectTimeout)),
		idle:     ticks(l.IdleTimeout),
		lifetime: ticks(l.MaxLifetime),
		close:    ticks(or(l.CloseTimeout, DefaultCloseTimeout)),
		flow:     ticks(or(max(l.IdleTimeout, 0), DefaultFlowTimeout)),
	}
}

func or(d, byDefault time.Duration) time.Duration {
	if d == 0 {
		return byDefault
	}
	return d
}
