// Package traffic makes load over plain sockets and measures it, with raw
// calls and one thread a side, so that little of what is measured is its own.
// It knows nothing of containers and proxies.
package traffic

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"
)

// The kinds of load.
const (
	Exchange = "exchange" // requests and replies on connections that stay
	Connect  = "connect"  // a connection for each request; the server closes it
	Send     = "send"     // bulk to the server
	Receive  = "receive"  // bulk from the server
	Flood    = "flood"    // datagrams to the server, none back
	Echo     = "echo"     // datagrams, each sent back
)

// Plan says what a client is to do.
type Plan struct {
	Kind   string
	Server netip.AddrPort
	// Conns is how many connections there are at a time, or how many sockets
	// for datagrams. 0 is 1.
	Conns int
	// Reply is the size of a reply in bytes. 0 is that of a request.
	Reply int
	// Rate bounds the datagrams of a Flood in a second. 0 does not.
	Rate int
	// Warmup comes before what is measured, Duration is what is measured.
	Warmup, Duration time.Duration
}

// Result is what a client measured.
type Result struct {
	// Count of what was completed within Seconds: requests, or datagrams that
	// arrived. Bytes are their payload, or that of bulk.
	Count, Bytes uint64
	Seconds      float64
	// Latency is between a request and the end of its reply.
	Latency Latency
	// TotalCount and TotalBytes take in the warm-up.
	TotalCount, TotalBytes uint64
	// Sent and Arrived are all datagrams of a Flood, or those of an Echo.
	Sent, Arrived uint64
	// Failed counts connections that did not come to their reply.
	Failed uint64
}

// Rate is Count in a second.
func (r Result) Rate() float64 { return float64(r.Count) / r.Seconds }

// Latency in microseconds, as percentiles.
type Latency struct{ P50, P99, P999 float64 }

// RequestSize is the size of every request and datagram in bytes.
const RequestSize = 64

// blockSize is what bulk is read and written by. iperf3 uses the same.
const blockSize = 128 << 10

// blocksAtATime is how many blocks in a row a connection moves before the
// others have their turn.
const blocksAtATime = 8

// request is how every connection begins, and what each request on it is:
// the kind of reply in the first byte, then its arguments.
type request struct {
	want     byte
	reply    uint32        // wantReply, wantLast: its size
	warmup   time.Duration // wantSink, wantBulk
	duration time.Duration // wantBulk
}

const (
	wantReply byte = 'r' // reply, and expect another request
	wantLast  byte = 'l' // reply, and close
	wantSink  byte = 's' // read to the end, then say how much it was
	wantBulk  byte = 'b' // write for a time, then close
)

func (r request) put(b *[RequestSize]byte) {
	b[0] = r.want
	binary.LittleEndian.PutUint32(b[4:], r.reply)
	binary.LittleEndian.PutUint64(b[8:], uint64(r.warmup))
	binary.LittleEndian.PutUint64(b[16:], uint64(r.duration))
}

func parseRequest(b *[RequestSize]byte) (request, error) {
	r := request{
		want:     b[0],
		reply:    binary.LittleEndian.Uint32(b[4:]),
		warmup:   time.Duration(binary.LittleEndian.Uint64(b[8:])),
		duration: time.Duration(binary.LittleEndian.Uint64(b[16:])),
	}
	switch r.want {
	case wantReply, wantLast, wantSink, wantBulk:
		return r, nil
	}
	return r, fmt.Errorf("parsing a request: unknown kind %q", r.want)
}

// account is what a server says of the bulk that a connection brought.
type account struct {
	total, bytes uint64        // all, and after the warm-up
	took         time.Duration // from the warm-up's end to that of the stream
}

const accountSize = 24

// end notes the end of a stream. All of it counts if there was nothing after
// the warm-up, as on a machine that stood still.
func (a *account) end(now, since, warmed time.Time) {
	if a.bytes == 0 {
		a.bytes, warmed = a.total, since
	}
	a.took = now.Sub(warmed)
}

func (a account) append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint64(b, a.total)
	b = binary.LittleEndian.AppendUint64(b, a.bytes)
	return binary.LittleEndian.AppendUint64(b, uint64(a.took))
}

func parseAccount(b []byte) account {
	return account{
		total: binary.LittleEndian.Uint64(b),
		bytes: binary.LittleEndian.Uint64(b[8:]),
		took:  time.Duration(binary.LittleEndian.Uint64(b[16:])),
	}
}
