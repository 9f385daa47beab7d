package tunnel

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
)

func TestDatagramsKeepTheirBounds(t *testing.T) {
	eachTransport(t, func(t *testing.T, pair func(testing.TB) (net.Conn, net.Conn)) {
		a, b := sessions(t, pair, Config{}, Config{})
		x, y := streams(t, a, b)
		in, out := NewDatagrams(x), NewDatagrams(y)
		buf := make([]byte, MaxDatagram)
		for _, size := range []int{0, 1, 2047, 2048, 2049, 9000, 65507, MaxDatagram, rand.IntN(MaxDatagram)} {
			want := bytes.Repeat([]byte{byte(size)}, size)
			if n, err := in.Write(want); n != size || err != nil {
				t.Fatalf("writing %d bytes: %d, %v", size, n, err)
			}
			if n, err := out.Read(buf); err != nil || !bytes.Equal(buf[:n], want) {
				t.Fatalf("read %d bytes, %v, want %d", n, err, size)
			}
		}
		in.Write([]byte("too long"))
		in.Write([]byte("short"))
		if _, err := out.Read(buf[:5]); !errors.Is(err, errLong) {
			t.Errorf("reading gives %v, want %v", err, errLong)
		}
		if n, err := out.Read(buf[:5]); string(buf[:n]) != "short" || err != nil {
			t.Errorf("read %q, %v", buf[:n], err)
		}
		if _, err := in.Write(make([]byte, MaxDatagram+1)); !errors.Is(err, errLong) {
			t.Errorf("writing gives %v, want %v", err, errLong)
		}
		x.Write([]byte{0, 5, 'h'})
		x.CloseWrite()
		if _, err := out.Read(buf); err != io.ErrUnexpectedEOF {
			t.Errorf("reading gives %v, want %v", err, io.ErrUnexpectedEOF)
		}
		if _, err := out.Read(buf); err != io.EOF {
			t.Errorf("reading gives %v, want %v", err, io.EOF)
		}
	})
}

// Nobody waits for whoever does not read its datagrams.
func TestDatagramsAreDropped(t *testing.T) {
	a, b := sessions(t, tcpPair, Config{}, Config{})
	x, y := streams(t, a, b)
	in := NewDatagrams(x)
	const n = 1000
	for range n {
		if _, err := in.Write(make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
	}
	x.CloseWrite()
	out, got := NewDatagrams(y), uint64(0)
	for buf := make([]byte, 2000); ; got++ {
		if _, err := out.Read(buf); err != nil {
			break
		}
	}
	if dropped := in.Dropped(); dropped == 0 || got+dropped != n {
		t.Errorf("%d arrived and %d were dropped of %d", got, dropped, n)
	}
	y.Abort()
	until(t, "the sender to notice", func() bool { _, err := in.Write([]byte("x")); return err != nil })
}

func FuzzDatagrams(f *testing.F) {
	f.Add([]byte("\x00\x05hello\x00\x00\x00\x02"))
	f.Fuzz(func(t *testing.T, in []byte) {
		d := newDatagrams(strings.NewReader(string(in)))
		buf := make([]byte, 100)
		total := 0
		for {
			n, err := d.Read(buf)
			if total += n; err != nil && !errors.Is(err, errLong) {
				break
			}
		}
		if total > len(in) {
			t.Fatalf("%d bytes out of %d", total, len(in))
		}
	})
}
