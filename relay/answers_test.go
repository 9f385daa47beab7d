package relay

import (
	"bytes"
	"encoding/hex"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func TestPackets(t *testing.T) {
	alias := addr4{[4]byte{127, 77, 0, 2}, 53}
	client := addr4{[4]byte{172, 17, 0, 3}, 40001}
	for _, test := range []struct {
		name string
		put  func(b []byte) int
		want string
	}{
		{"datagram", func(b []byte) int { return putDatagram(b, alias, client, 5) },
			"450000210000400040110000" + "7f4d0002" + "ac110003" + "00359c41000d0000"},
		{"unreachable", func(b []byte) int { return putUnreachable(b, alias, client) },
			"450000380000400040010000" + "7f4d0002" + "ac110003" + "0303" + "607e" + "00000000" +
				"4500001c000040004011" + "0f6e" + "ac110003" + "7f4d0002" + "9c41003500080000"},
	} {
		b := bytes.Repeat([]byte{0xff}, packetHeader) // what was there before
		if got := hex.EncodeToString(b[:test.put(b)]); got != test.want {
			t.Errorf("%s:\n got %s\nwant %s", test.name, got, test.want)
		}
	}
}

func TestChecksum(t *testing.T) {
	// The example of RFC 1071, section 3.
	if got, want := checksum([]byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}), ^uint16(0xddf2); got != want {
		t.Errorf("checksum %#x, want %#x", got, want)
	}
}

// FuzzControl reads whatever control messages the kernel could hand over, or
// could not.
func FuzzControl(f *testing.F) {
	message := func(level, kind int32, value ...byte) []byte {
		b := make([]byte, unix.CmsgSpace(len(value)))
		h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
		h.Level, h.Type = level, kind
		h.SetLen(unix.CmsgLen(len(value)))
		copy(b[unix.CmsgLen(0):], value)
		return b
	}
	original := message(unix.SOL_IP, unix.IP_ORIGDSTADDR, 2, 0, 0, 53, 127, 77, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0)
	info := message(unix.SOL_IP, unix.IP_PKTINFO, make([]byte, 12)...)
	gro := message(unix.SOL_UDP, unix.UDP_GRO, 0xb0, 4, 0, 0)
	f.Add(bytes.Join([][]byte{info, original, gro}, nil))
	f.Add(original[:len(original)-3])
	f.Add(message(unix.SOL_IP, unix.IP_ORIGDSTADDR, 2, 0))
	f.Add([]byte{})
	f.Add(make([]byte, unix.SizeofCmsghdr))
	bound := addr4{[4]byte{127, 0, 0, 1}, 1}
	f.Fuzz(func(t *testing.T, control []byte) {
		var d datagrams
		n := copy(d.control[0][:], control)
		d.in[0].hdr.SetControllen(n)
		local, segment := d.about(0, bound)
		if bytes.HasPrefix(control, original) && len(control) == len(original) && local != (addr4{[4]byte{127, 77, 0, 2}, 53}) {
			t.Errorf("original destination %v", local)
		}
		if len(control) < unix.SizeofCmsghdr && (local != bound || segment != 0) {
			t.Errorf("%v and %d read from nothing", local, segment)
		}
	})
}
