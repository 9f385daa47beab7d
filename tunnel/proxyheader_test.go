package tunnel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"testing"
)

// parseProxyHeader is the other end of AppendProxyHeader, written after the
// specification.
func parseProxyHeader(r io.Reader) (from, to netip.AddrPort, err error) {
	head := make([]byte, 16)
	if _, err := io.ReadFull(r, head); err != nil {
		return from, to, err
	}
	if string(head[:12]) != proxySignature || head[12]>>4 != 2 || head[12]&0xf > 1 {
		return from, to, errors.New("not a header of version 2")
	}
	rest := make([]byte, binary.BigEndian.Uint16(head[14:]))
	if _, err := io.ReadFull(r, rest); err != nil {
		return from, to, err
	}
	if head[12]&0xf == 0 {
		return from, to, nil // LOCAL: whatever follows is to be ignored
	}
	size := map[byte]int{0x11: 4, 0x21: 16}[head[13]]
	if size == 0 {
		return from, to, errors.New("not TCP")
	}
	if len(rest) < 2*size+4 {
		return from, to, io.ErrUnexpectedEOF
	}
	src, _ := netip.AddrFromSlice(rest[:size])
	dst, _ := netip.AddrFromSlice(rest[size : 2*size])
	return netip.AddrPortFrom(src, binary.BigEndian.Uint16(rest[2*size:])),
		netip.AddrPortFrom(dst, binary.BigEndian.Uint16(rest[2*size+2:])), nil
}

func TestProxyHeader(t *testing.T) {
	from, to := netip.MustParseAddrPort("172.17.0.3:41000"), netip.MustParseAddrPort("172.17.0.2:5432")
	want := "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\xac\x11\x00\x03\xac\x11\x00\x02\xa0\x28\x15\x38"
	if got := AppendProxyHeader(nil, from, to); string(got) != want {
		t.Errorf("got %q, want %q", got, want)
	}
	none := "\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"
	for _, pair := range [][2]netip.AddrPort{{{}, to}, {from, {}}, {from, netip.MustParseAddrPort("[fd00::2]:1")}} {
		if got := AppendProxyHeader(nil, pair[0], pair[1]); string(got) != none {
			t.Errorf("%v: got %q, want %q", pair, got, none)
		}
	}
	for _, pair := range [][2]string{
		{"172.17.0.3:41000", "172.17.0.2:5432"},
		{"[fd00::3]:41000", "[fd00::2]:5432"},
	} {
		from, to := netip.MustParseAddrPort(pair[0]), netip.MustParseAddrPort(pair[1])
		r := bytes.NewReader(append(AppendProxyHeader([]byte{}, from, to), "data"...))
		gotFrom, gotTo, err := parseProxyHeader(r)
		rest, _ := io.ReadAll(r)
		if gotFrom != from || gotTo != to || err != nil || string(rest) != "data" {
			t.Errorf("%v became %v, %v, %v, then %q", pair, gotFrom, gotTo, err, rest)
		}
	}
}

func FuzzProxyHeader(f *testing.F) {
	f.Add(AppendProxyHeader(nil, netip.MustParseAddrPort("1.2.3.4:5"), netip.MustParseAddrPort("6.7.8.9:10")))
	f.Add(AppendProxyHeader(nil, netip.MustParseAddrPort("[::1]:5"), netip.MustParseAddrPort("[::2]:10")))
	f.Add(AppendProxyHeader(nil, netip.AddrPort{}, netip.AddrPort{}))
	f.Fuzz(func(t *testing.T, in []byte) {
		from, to, err := parseProxyHeader(bytes.NewReader(in))
		if err != nil || !from.IsValid() || from.Addr().Is4In6() || to.Addr().Is4In6() {
			return
		}
		again := AppendProxyHeader(nil, from, to)
		if f2, t2, err := parseProxyHeader(bytes.NewReader(again)); f2 != from || t2 != to || err != nil {
			t.Fatalf("%v, %v became %v, %v, %v", from, to, f2, t2, err)
		}
	})
}
