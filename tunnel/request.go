package tunnel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"unicode"
)

// Kind is what a stream is for.
type Kind uint8

const (
	// TCP carries the bytes of one connection to a port of the source.
	TCP Kind = 1
	// UDP carries the datagrams of one flow to a port of the source.
	UDP Kind = 2
	// Watch tells what the source is, and again whenever that changes.
	Watch Kind = 3
	// Renew exchanges a certificate for the next one.
	Renew Kind = 4
	// Socket is TCP where the connected socket itself is handed over. It does
	// not leave the host.
	Socket Kind = 5
)

func (k Kind) String() string {
	switch k {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case Watch:
		return "watch"
	case Renew:
		return "renew"
	case Socket:
		return "socket"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Request is what the side that opens a stream says first.
type Request struct {
	Kind      Kind
	Port      uint16         // of the source
	Source    string         // name; may be empty where there is only one
	Recipient string         // name of who asks, on the host that the session says
	From      netip.AddrPort // the recipient's, as its host knows it; the zero AddrPort when it has none
}

// The header of a request: version, kind, and the length of the rest. The rest
// is the port, two names, each with its length before it, and an address of 0,
// 4 or 16 bytes likewise, with a port. What comes after that is of versions to
// come and is skipped.
const (
	requestVersion = 1
	maxRest        = 1024
	maxName        = 255
)

var errName = errors.New("a name has at most 255 printable characters")

func (r Request) append(b []byte) ([]byte, error) {
	if !validName(r.Source) || !validName(r.Recipient) {
		return nil, errName
	}
	addr := r.From.Addr().Unmap().WithZone("")
	rest := binary.BigEndian.AppendUint16(nil, r.Port)
	rest = append(append(rest, byte(len(r.Source))), r.Source...)
	rest = append(append(rest, byte(len(r.Recipient))), r.Recipient...)
	rest = append(append(rest, byte(len(addr.AsSlice()))), addr.AsSlice()...)
	rest = binary.BigEndian.AppendUint16(rest, r.From.Port())
	b = append(b, requestVersion, byte(r.Kind))
	b = binary.BigEndian.AppendUint16(b, uint16(len(rest)))
	return append(b, rest...), nil
}

// readRequest reads a request. It reads nothing that comes after it.
func readRequest(r io.Reader) (Request, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return Request{}, fmt.Errorf("reading a request: %w", err)
	}
	if head[0] != requestVersion {
		return Request{}, &Refusal{Unsupported, fmt.Sprintf("requests of version %d are not understood, only %d", head[0], requestVersion)}
	}
	n := binary.BigEndian.Uint16(head[2:])
	if n > maxRest {
		return Request{}, &Refusal{Malformed, fmt.Sprintf("a request of %d bytes is too long", n)}
	}
	rest := make([]byte, n)
	if _, err := io.ReadFull(r, rest); err != nil {
		return Request{}, fmt.Errorf("reading a request: %w", err)
	}
	return parseRequest(Kind(head[1]), rest)
}

func parseRequest(kind Kind, rest []byte) (Request, error) {
	c := cut{rest: rest}
	q := Request{Kind: kind, Port: c.number()}
	q.Source, q.Recipient = string(c.counted()), string(c.counted())
	addr := c.counted()
	port := c.number()
	switch {
	case c.short:
		return Request{}, &Refusal{Malformed, "a request is too short"}
	case !validName(q.Source) || !validName(q.Recipient):
		return Request{}, &Refusal{Malformed, errName.Error()}
	}
	if len(addr) > 0 {
		ip, ok := netip.AddrFromSlice(addr)
		if !ok || ip.Is4In6() {
			return Request{}, &Refusal{Malformed, "a request has no proper address"}
		}
		q.From = netip.AddrPortFrom(ip, port)
	}
	return q, nil
}

// cut takes a request to pieces.
type cut struct {
	rest  []byte
	short bool
}

func (c *cut) bytes(n int) []byte {
	if n > len(c.rest) {
		c.rest, c.short = nil, true
		return nil
	}
	b := c.rest[:n]
	c.rest = c.rest[n:]
	return b
}

func (c *cut) number() uint16 {
	if b := c.bytes(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (c *cut) counted() []byte {
	n := c.bytes(1)
	if n == nil {
		return nil
	}
	return c.bytes(int(n[0]))
}

// validName keeps out of logs what does not belong there.
func validName(s string) bool {
	for _, r := range s {
		if r <= ' ' || r > unicode.MaxASCII || !unicode.IsPrint(r) {
			return false
		}
	}
	return len(s) <= maxName
}
