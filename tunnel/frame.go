package tunnel

import (
	"encoding/binary"
	"fmt"
)

// What goes over the transport are frames of yamux version 0, as its spec.md
// has them: a header of 12 bytes and, after the header of a data frame, its
// body. The library keeps this to itself, so it is written down here a second
// time.
const headerSize = 12

type frameKind uint8

const (
	dataFrame frameKind = iota
	windowFrame
	pingFrame
	goAwayFrame

	// socketFrame is not yamux's: it never leaves the host. It says that the
	// next socket that came over the unix transport belongs to the stream.
	socketFrame frameKind = 0x40
)

const (
	synFlag uint16 = 1 << iota
	ackFlag
	finFlag
	rstFlag
)

// goAwayNormal is the value of a go-away frame that only announces the end.
const goAwayNormal = 0

// frame is a frame's header.
type frame struct {
	kind   frameKind
	flags  uint16
	stream uint32
	length uint32 // of a data frame's body; for the others a value: the growth of a window, a ping's number
}

func (f frame) has(flag uint16) bool { return f.flags&flag != 0 }

// appendTo appends f as it goes over the transport.
func (f frame) appendTo(b []byte) []byte {
	b = append(b, 0, byte(f.kind))
	b = binary.BigEndian.AppendUint16(b, f.flags)
	b = binary.BigEndian.AppendUint32(b, f.stream)
	return binary.BigEndian.AppendUint32(b, f.length)
}

// parseFrame reads a header. b has headerSize bytes.
func parseFrame(b []byte) (frame, error) {
	f := frame{
		kind:   frameKind(b[1]),
		flags:  binary.BigEndian.Uint16(b[2:]),
		stream: binary.BigEndian.Uint32(b[4:]),
		length: binary.BigEndian.Uint32(b[8:]),
	}
	switch {
	case b[0] != 0:
		return f, violation(fmt.Sprintf("a frame of version %d", b[0]))
	case f.kind > goAwayFrame && f.kind != socketFrame:
		return f, violation(fmt.Sprintf("a frame of type %d", f.kind))
	case f.kind <= windowFrame && f.stream == 0:
		return f, violation("a frame of stream 0")
	}
	return f, nil
}
