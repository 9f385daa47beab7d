// Package exchange makes connections of which every byte is known, to test
// what carries them: the client says what is to be exchanged, and both ends
// check what they get. It is for tests only, and knows nothing of the way
// between them.
package exchange

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"time"
)

// Kind is what the two ends of a connection do.
type Kind uint8

const (
	// Talk is Up bytes and Down bytes in turns, of at most 4 KiB each.
	Talk Kind = 1 + iota
	// Bulk is both directions at once.
	Bulk
	// Turn has the server begin when the client has closed its direction.
	Turn
	// Abort has the client reset the connection after Up bytes.
	Abort
	// Rebuff has the server reset the connection after Down bytes.
	Rebuff
	kinds
)

func (k Kind) String() string {
	if k == 0 || k >= kinds {
		return fmt.Sprintf("kind %d", uint8(k))
	}
	return [...]string{"talk", "bulk", "turn", "abort", "rebuff"}[k-1]
}

// Plan is what is to happen on a connection.
type Plan struct {
	Number   uint64 // every byte depends on it
	Kind     Kind
	Up, Down int64 // bytes that the client sends, and the server
}

// Outcome is what became of a connection, at one of its ends.
type Outcome struct {
	Plan
	Sent, Got int64
	// Err is why the connection did not come to its end as planned. What has
	// arrived until then was as it should be.
	Err error
	// Wrong is what must not happen whatever befalls the connection: another
	// byte than the one sent, one too many, an end that is none, no end at all.
	Wrong error
	Took  time.Duration
}

// Whole tells whether everything has arrived. For a client that includes what
// it has sent.
func (o Outcome) Whole() bool { return o.Err == nil && o.Wrong == nil }

func (o Outcome) String() string {
	s := fmt.Sprintf("%v %d: %d of %d and %d of %d bytes in %v", o.Kind, o.Number, o.Sent, o.Up, o.Got, o.Down, o.Took.Round(time.Millisecond))
	switch {
	case o.Wrong != nil:
		return s + ": WRONG: " + o.Wrong.Error()
	case o.Err != nil:
		return s + ": " + o.Err.Error()
	}
	return s
}

// Conn is a TCP connection, or what can do the same.
type Conn interface {
	net.Conn
	CloseWrite() error
	SetLinger(sec int) error
}

// wrong is an error of the kind that must not happen.
type wrong struct {
	text string
	end  bool // what came was the end
}

func (w wrong) Error() string { return w.text }

func wrongf(format string, args ...any) error { return wrong{text: fmt.Sprintf(format, args...)} }

func endedf(format string, args ...any) error {
	return wrong{text: fmt.Sprintf(format, args...), end: true}
}

var errStuck = wrong{text: "neither went on nor ended"}

// The plan comes first, and the last thing that the server says is how much it
// has got, once the client has closed its direction. So a client that has seen
// the end knows that everything has arrived.
const (
	planSize    = 1 + 3*8
	receiptSize = 8
)

func (p Plan) append(b []byte) []byte {
	b = append(b, byte(p.Kind))
	for _, n := range []uint64{p.Number, uint64(p.Up), uint64(p.Down)} {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	return b
}

func readPlan(r io.Reader) (Plan, error) {
	var b [planSize]byte
	if n, err := io.ReadFull(r, b[:]); err == io.ErrUnexpectedEOF {
		return Plan{}, endedf("ended after %d bytes of the plan", n)
	} else if err != nil { // io.EOF, too: whoever has said nothing may have been cut off before
		return Plan{}, err
	}
	p := Plan{
		Kind:   Kind(b[0]),
		Number: binary.BigEndian.Uint64(b[1:]),
		Up:     int64(binary.BigEndian.Uint64(b[9:])),
		Down:   int64(binary.BigEndian.Uint64(b[17:])),
	}
	if p.Kind == 0 || p.Kind >= kinds || p.Up < 0 || p.Down < 0 {
		return Plan{}, wrongf("a plan that nobody has sent: %+v", p)
	}
	return p, nil
}

// fill puts in p what a direction has from offset on. No two directions, and
// no two places of one, are alike.
func fill(p []byte, seed uint64, offset int64) {
	var word [8]byte
	for len(p) > 0 {
		binary.LittleEndian.PutUint64(word[:], mix(seed+uint64(offset/8)))
		n := copy(p, word[offset%8:])
		p = p[n:]
		offset += int64(n)
	}
}

// mix is the finalizer of SplitMix64: neighbours become strangers.
func mix(x uint64) uint64 {
	x *= 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// seeds are those of the two directions.
func (p Plan) seeds() (up, down uint64) {
	return mix(p.Number) ^ 1<<63, mix(^p.Number)
}
