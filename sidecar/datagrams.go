package sidecar

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/linkrun/linkrun/tunnel"
)

// A client's datagrams are a flow, with a stream of its own and a socket of
// its own at the source's end. UDP does not say when a flow is over: it is
// when nothing has come from either side for a while.
const (
	flowTimeout = 90 * time.Second
	// maxFlows bounds the flows of one port. Another client's datagrams are
	// lost until one is over.
	maxFlows = 1024
	// maxWaiting is how many datagrams may wait for a stream.
	maxWaiting = 64
)

// clock notices when a flow is over.
type clock struct{ last atomic.Int64 }

func (c *clock) touch() { c.last.Store(time.Now().UnixNano()) }

// watch calls end once nothing has moved for flowTimeout, or ctx or stop has
// ended. It returns then.
func (c *clock) watch(ctx context.Context, stop <-chan struct{}, end func()) {
	defer end()
	for {
		left := time.Until(time.Unix(0, c.last.Load()).Add(flowTimeout))
		if left <= 0 {
			return
		}
		timer := time.NewTimer(left)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		case <-stop:
			timer.Stop()
			return
		}
	}
}

// carryDatagrams moves the datagrams of a flow.
func (s *Source) carryDatagrams(in *tunnel.Incoming, target Target, log *slog.Logger) {
	conn, ok := s.connect(in, target, log)
	if !ok {
		return
	}
	defer conn.Close()
	if err := in.Grant(); err != nil {
		in.Stream.Abort()
		return
	}
	ctx, over := context.WithCancel(context.Background())
	in.Stream.AfterReset(over)
	var (
		flow    = tunnel.NewDatagrams(in.Stream)
		age     clock
		running sync.WaitGroup
	)
	age.touch()
	running.Go(func() {
		defer over()
		shift(flow.Read, conn.Write, &age)
	})
	running.Go(func() {
		defer over()
		shift(conn.Read, flow.Write, &age)
	})
	age.watch(ctx, s.stopping, func() {
		over()
		conn.Close()
		in.Stream.Close()
		in.Stream.SetReadDeadline(time.Now())
	})
	running.Wait()
	in.Stream.Abort()
}

// shift moves datagrams until one side is closed. What a socket tells of an
// undelivered one is no end: the next may arrive.
func shift(read, write func([]byte) (int, error), age *clock) {
	buf := make([]byte, tunnel.MaxDatagram)
	for {
		n, err := read(buf)
		if err == nil {
			age.touch()
			_, err = write(buf[:n])
		}
		if err != nil && !passes(err) {
			return
		}
	}
}

// passes tells whether an error of a UDP socket is about one datagram only.
func passes(err error) bool {
	for _, errno := range []error{unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EMSGSIZE, unix.EPERM, unix.ENOBUFS} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// packetDoor is a UDP port. While it is shut there is no socket, so that
// clients are told at once that nobody is there.
type packetDoor struct {
	at  netip.AddrPort
	ask func(context.Context) (*tunnel.Stream, error) // makes the stream of a flow
	log *slog.Logger

	conn    *net.UDPConn // nil while it is shut
	stop    context.CancelFunc
	running sync.WaitGroup
}

func newPacketDoor(at netip.AddrPort, ask func(context.Context) (*tunnel.Stream, error), log *slog.Logger) (*packetDoor, error) {
	d := &packetDoor{at: at, ask: ask, log: log}
	// Whether the port can be had is better known now.
	return d, errors.Join(d.open(), d.shut())
}

func (d *packetDoor) open() error {
	if d.conn != nil {
		return nil
	}
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(d.at))
	if err != nil {
		return fmt.Errorf("listening on %v/udp: %w", d.at, bare(err))
	}
	ctx, stop := context.WithCancel(context.Background())
	d.conn, d.stop = conn, stop
	d.running.Go(func() { d.receive(ctx, conn) })
	return nil
}

// shut ends the flows. It returns when all is closed.
func (d *packetDoor) shut() error {
	if d.conn == nil {
		return nil
	}
	d.stop()
	err := d.conn.Close()
	d.running.Wait()
	d.conn = nil
	return err
}

func (d *packetDoor) close() error { return d.shut() }

// receive finds the flow of each datagram.
func (d *packetDoor) receive(ctx context.Context, conn *net.UDPConn) {
	var (
		mu    sync.Mutex
		flows = make(map[netip.AddrPort]chan []byte)
		buf   = make([]byte, tunnel.MaxDatagram)
	)
	for {
		n, client, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil && !passes(err) {
			return // it was closed
		}
		if err != nil {
			continue
		}
		mu.Lock()
		waiting := flows[client]
		if waiting == nil && len(flows) < maxFlows {
			waiting = make(chan []byte, maxWaiting)
			flows[client] = waiting
			d.running.Go(func() {
				d.carry(ctx, conn, client, waiting)
				mu.Lock()
				defer mu.Unlock()
				delete(flows, client)
			})
		}
		mu.Unlock()
		select {
		case waiting <- append([]byte(nil), buf[:n]...):
		default: // lost, as on any way that is too narrow
		}
	}
}

// carry moves the datagrams of a flow.
func (d *packetDoor) carry(ctx context.Context, conn *net.UDPConn, client netip.AddrPort, waiting <-chan []byte) {
	st, err := d.ask(ctx)
	if err == nil {
		stop := context.AfterFunc(ctx, st.Abort)
		if err = st.Answer(answerTime); err != nil {
			st.Abort()
		}
		stop()
	}
	if err != nil {
		d.log.Debug("a flow has no way to the source", "client", client, "err", err)
		return
	}
	ctx, over := context.WithCancel(ctx)
	st.AfterReset(over)
	var (
		flow    = tunnel.NewDatagrams(st)
		age     clock
		running sync.WaitGroup
	)
	age.touch()
	running.Go(func() {
		defer over()
		shift(flow.Read, func(p []byte) (int, error) { return conn.WriteToUDPAddrPort(p, client) }, &age)
	})
	running.Go(func() {
		defer over()
		for {
			select {
			case <-ctx.Done():
				return
			case b := <-waiting:
				age.touch()
				if _, err := flow.Write(b); err != nil {
					return
				}
			}
		}
	})
	age.watch(ctx, nil, func() {
		over()
		st.Close()
		st.SetReadDeadline(time.Now())
	})
	running.Wait()
	st.Abort()
}
