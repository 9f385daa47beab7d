package tunnel

import (
	"io"
	"net"
	"testing"
)

// BenchmarkBulk is one stream against the bare transport.
func BenchmarkBulk(b *testing.B) {
	for _, name := range []string{"tcp", "tls", "unix"} {
		b.Run(name+"/bare", func(b *testing.B) {
			x, y := transports[name](b)
			bulk(b, x, y)
			x.Close()
			y.Close()
		})
		b.Run(name+"/stream", func(b *testing.B) {
			sa, sb := sessions(b, transports[name], Config{}, Config{})
			x, y := streams(b, sa, sb)
			bulk(b, x, y)
		})
	}
}

func bulk(b *testing.B, from, to net.Conn) {
	const size = 64 << 10
	done := make(chan error, 1)
	go func() {
		_, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, io.LimitReader(to, int64(b.N)*size), make([]byte, size))
		done <- err
	}()
	p := make([]byte, size)
	b.SetBytes(size)
	b.ResetTimer()
	for range b.N {
		if _, err := from.Write(p); err != nil {
			b.Fatal(err)
		}
	}
	if err := <-done; err != nil {
		b.Fatal(err)
	}
}
