package tunnel

import (
	"net"
	"testing"

	"golang.org/x/net/nettest"
)

// All of nettest: no exclusions.
func TestStreamIsAConn(t *testing.T) {
	eachTransport(t, func(t *testing.T, pair func(testing.TB) (net.Conn, net.Conn)) {
		nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
			ta, tb := pair(t)
			a, b := Client(ta, Config{}), Server(tb, Config{})
			sa, sb := streams(t, a, b)
			return sa, sb, func() {
				sa.Close()
				sb.Close()
				a.Close()
				b.Close()
			}, nil
		})
	})
}
