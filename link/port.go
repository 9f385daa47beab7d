package link

import (
	"fmt"
	"strconv"
	"strings"
)

// Proto is the transport protocol of an exposed port, in Docker's lower-case
// spelling.
type Proto string

// The protocols an image can EXPOSE. SCTP appears in variables, as Docker's
// links have it, but no link carries it.
const (
	TCP  Proto = "tcp"
	UDP  Proto = "udp"
	SCTP Proto = "sctp"
)

// Port is one exposed port of a source.
type Port struct {
	Number uint16
	Proto  Proto
}

// String formats p as Docker writes it in ExposedPorts: "5432/tcp".
func (p Port) String() string {
	return strconv.Itoa(int(p.Number)) + "/" + string(p.Proto)
}

// ParsePort reads a key of Docker's ExposedPorts, "5432/tcp". The protocol
// may be left out and is tcp then.
func ParsePort(s string) (Port, error) {
	num, proto, found := strings.Cut(s, "/")
	if !found {
		proto = string(TCP)
	}
	n, err := strconv.ParseUint(num, 10, 16)
	if err != nil || n == 0 {
		return Port{}, fmt.Errorf("parsing port %q: the number has to be 1 to 65535", s)
	}
	switch p := Proto(strings.ToLower(proto)); p {
	case TCP, UDP, SCTP:
		return Port{Number: uint16(n), Proto: p}, nil
	}
	return Port{}, fmt.Errorf("parsing port %q: the protocol has to be tcp, udp or sctp", s)
}

// Compare orders ports as Engine 28 and later do: tcp first, then the other
// protocols by name, then by number.
func (p Port) Compare(q Port) int {
	if p.Proto != q.Proto {
		switch {
		case p.Proto == TCP:
			return -1
		case q.Proto == TCP:
			return 1
		}
		return strings.Compare(string(p.Proto), string(q.Proto))
	}
	return int(p.Number) - int(q.Number)
}
