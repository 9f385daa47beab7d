package tunnel

import (
	"net"
	"sync"
	"testing"
	"time"
)

// network is a relay between the two ends of a transport that behaves badly.
type network struct {
	delay time.Duration // one way
	slice int           // bytes that are passed on at a time; 0 is all there are
	rate  int           // bytes a second; 0 is no bound

	mu       sync.Mutex
	moved    sync.Cond
	down     bool
	ends     []net.Conn // those of the test
	conns    []net.Conn // those of the relay
	carriers sync.WaitGroup
}

// pair is a TCP connection through n. Whatever is in the middle is gone when
// the test is over.
func (n *network) pair(t testing.TB) (net.Conn, net.Conn) {
	a, b := n.open(t)
	t.Cleanup(n.close)
	return a, b
}

// open is pair without an end.
func (n *network) open(t testing.TB) (net.Conn, net.Conn) {
	n.moved.L = &n.mu
	a, near := tcpPair(t)
	far, b := tcpPair(t)
	n.ends, n.conns = []net.Conn{a, b}, []net.Conn{near, far}
	n.carriers.Go(func() { n.carry(far, near) })
	n.carriers.Go(func() { n.carry(near, far) })
	return a, b
}

func (n *network) close() {
	for _, c := range n.ends {
		c.Close()
	}
	n.cut()
	n.carriers.Wait()
}

type chunk struct {
	due  time.Time
	data []byte
}

func (n *network) carry(to, from net.Conn) {
	queue := make(chan chunk, 1<<16)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer to.Close()
		for c := range queue {
			time.Sleep(time.Until(c.due))
			n.waitWhileDown()
			for len(c.data) > 0 {
				k := len(c.data)
				if n.slice > 0 {
					k = min(k, n.slice)
				}
				if _, err := to.Write(c.data[:k]); err != nil {
					break
				}
				c.data = c.data[k:]
			}
		}
	})
	for {
		size := 64 << 10
		if n.rate > 0 {
			size = max(n.rate/100, 1)
			time.Sleep(10 * time.Millisecond)
		}
		buf := make([]byte, size)
		k, err := from.Read(buf)
		if k > 0 {
			queue <- chunk{time.Now().Add(n.delay), buf[:k]}
		}
		if err != nil {
			break
		}
	}
	close(queue)
	wg.Wait()
}

func (n *network) waitWhileDown() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for n.down {
		n.moved.Wait()
	}
}

// setDown has nothing pass any more, or again.
func (n *network) setDown(down bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.down = down
	n.moved.Broadcast()
}

// cut resets the connection.
func (n *network) cut() {
	n.setDown(false)
	for _, c := range n.conns {
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
	}
}
