package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/linkrun/linkrun/docker"
	"github.com/linkrun/linkrun/link"
	"github.com/linkrun/linkrun/relay"
	"github.com/linkrun/linkrun/tunnel"
)

const (
	// firstPatience is how long a link's other host may take to be there before
	// the link counts as down: the recipient's program waits for that.
	firstPatience = 5 * time.Second
	// answerTime is how long the other host may take to say whether there is a
	// connection: longer than the source has for that.
	answerTime = 15 * time.Second
	// maxRemoteConns bounds the connections and flows of one remote link: as
	// many streams as a session takes.
	maxRemoteConns = 4096
)

var errNoHosts = errors.New("this host has no identity, by which others would know it")

// remote is what a link has whose source is on another host: what that host
// says about the source, and the connections that go there.
type remote struct {
	a    *Agent
	link link.Link
	seen func() docker.Container // the recipient, as last inspected

	ctx    context.Context // of all connections
	cancel context.CancelFunc
	conns  sync.WaitGroup

	watch *watcher // Run's goroutine only; nil until the first look
	told  atomic.Pointer[told]
}

// told is what is known of a remote source.
type told struct {
	source link.Source
	down   string // why there is no connection to it; "" when there is
	lost   bool   // its host is the reason
}

// newRemoteCarrier is a carrier for a link to another host.
func (a *Agent) newRemoteCarrier(l link.Link, seen func() docker.Container) *carrier {
	r := &remote{a: a, link: l, seen: seen}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	c := &carrier{link: l, remote: r}
	c.relay.Source = r
	c.relay.Take = r.take
	c.relay.MaxConns = maxRemoteConns
	return c
}

// close ends the connections that are left, and waits for that. Nobody makes
// new ones any more.
func (r *remote) close() {
	r.cancel()
	r.watch.stop()
	r.conns.Wait()
}

// look returns what the source is now, nil while nothing is known, and sees to
// it that it is known. changed is called when that is different.
func (r *remote) look(changed func()) *told {
	if r.a.Hosts == nil {
		return &told{down: errNoHosts.Error()}
	}
	if name := r.seen().Name; r.watch == nil || r.watch.recipient != name {
		r.watch.stop() // it goes by another name from now on
		r.watch = newWatcher(r, name, changed)
	}
	return r.told.Load()
}

// take carries one connection, in a goroutine of its own.
func (r *remote) take(t *relay.Taken) { r.conns.Go(func() { r.carry(t) }) }

func (r *remote) carry(t *relay.Taken) {
	st, err := r.a.Hosts.Ask(t.Context(), r.link.Host, r.request(tunnel.TCP, t.Local.Port(), t.Client.Port()))
	if err != nil {
		t.Refuse(unreachable(err))
		return
	}
	conn, err := t.Conn()
	if err != nil {
		st.Abort()
		t.End(err)
		return
	}
	r.pump(t, conn, st, answerTime)
}

// pump moves the bytes of a connection until it has ended. The other host has
// answered if await is 0.
func (r *remote) pump(t *relay.Taken, conn tunnel.Conn, st *tunnel.Stream, await time.Duration) {
	pump := tunnel.Pump{
		Conn: conn, Stream: st, Buffers: &r.a.buffers, AwaitAnswer: await,
		ToStream: &t.ToSource, ToConn: &t.ToRecipient,
	}
	stop := context.AfterFunc(t.Context(), pump.Cut)
	err := pump.Run()
	stop()
	t.End(lost(err))
}

func (r *remote) request(kind tunnel.Kind, port, from uint16) tunnel.Request {
	ctr := r.seen()
	q := tunnel.Request{Kind: kind, Port: port, Source: r.link.Source, Recipient: ctr.Name}
	if addr := ctr.IPv4(); addr.IsValid() {
		q.From = netip.AddrPortFrom(addr, from)
	}
	return q
}

// unreachable and lost put failures under the causes that links count by.
func unreachable(err error) error { return fmt.Errorf("%w: %w", syscall.EHOSTUNREACH, err) }

func lost(err error) error {
	if errors.Is(err, tunnel.ErrLost) {
		return fmt.Errorf("%w: %w", syscall.ECONNRESET, err)
	}
	return err
}

// Socket is never called: take has all connections.
func (r *remote) Socket(uint16) (int, netip.AddrPort, error) {
	return -1, netip.AddrPort{}, errDown
}

// PacketSocket begins a flow of datagrams.
func (r *remote) PacketSocket(port uint16) (int, netip.AddrPort, error) {
	fd, carrier, err := relay.FlowPair()
	if err != nil {
		return -1, netip.AddrPort{}, err
	}
	r.conns.Go(func() { r.carryFlow(carrier, port) })
	return fd, netip.AddrPort{}, nil
}

func (r *remote) carryFlow(conn *net.UnixConn, port uint16) {
	asking, done := context.WithTimeout(r.ctx, answerTime)
	st, err := r.a.Hosts.Ask(asking, r.link.Host, r.request(tunnel.UDP, port, 0))
	done()
	if err != nil {
		conn.Close() // which the relay takes for a refusal
		return
	}
	flow := tunnel.Flow{Conn: conn, Stream: st, Buffers: &r.a.buffers, AwaitAnswer: answerTime}
	stop := context.AfterFunc(r.ctx, flow.Cut)
	flow.Run() // idle flows are ended by the relay
	stop()
}

// watcher asks the other host what the source is, for as long as it runs.
type watcher struct {
	r         *remote
	recipient string // name
	changed   func()
	cancel    context.CancelFunc
	done      sync.WaitGroup
}

func newWatcher(r *remote, recipient string, changed func()) *watcher {
	ctx, cancel := context.WithCancel(r.ctx)
	w := &watcher{r: r, recipient: recipient, changed: changed, cancel: cancel}
	w.done.Go(func() { w.run(ctx) })
	return w
}

func (w *watcher) stop() {
	if w != nil {
		w.cancel()
		w.done.Wait()
	}
}

func (w *watcher) run(ctx context.Context) {
	hosts, host := w.r.a.Hosts, w.r.link.Host
	defer hosts.Want(host)()
	patience := firstPatience
	for ctx.Err() == nil {
		changed := w.r.a.hostNews.wait()
		err := w.follow(ctx, patience)
		if ctx.Err() != nil {
			return
		}
		patience = 0
		w.lose(err)
		select {
		case <-ctx.Done():
		case <-changed:
		case <-time.After(askAgain):
		}
	}
}

// follow asks once, and takes in what the other host says until that ends.
func (w *watcher) follow(ctx context.Context, patience time.Duration) error {
	st, err := w.r.a.openWatch(ctx, w.r.link.Host, w.r.link.Source, w.recipient, patience)
	if err != nil {
		return err
	}
	defer st.Abort()
	defer context.AfterFunc(ctx, st.Abort)()
	for {
		t, err := readTelling(st)
		if err != nil {
			return w.r.a.away(w.r.link.Host, err)
		}
		w.tell(told{source: link.Source{Name: t.Name, Hostname: t.Hostname, Env: t.Env, Ports: t.ports()}, down: onHost(t.Reason, w.r.link.Host)})
	}
}

func onHost(reason, host string) string {
	if reason == "" {
		return ""
	}
	return fmt.Sprintf("host %q says: %s", host, reason)
}

// openWatch asks another host about a source, and returns once it is willing
// to tell.
func (a *Agent) openWatch(ctx context.Context, host, source, recipient string, patience time.Duration) (*tunnel.Stream, error) {
	st, err := a.ask(ctx, host, tunnel.Request{Kind: tunnel.Watch, Source: source, Recipient: recipient}, patience)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, st.Abort)
	defer stop()
	if err := st.Answer(answerTime); err != nil {
		st.Abort()
		var refusal *tunnel.Refusal
		if errors.As(err, &refusal) {
			return nil, errors.New(onHost(refusal.Error(), host))
		}
		return nil, fmt.Errorf("host %q does not answer: %w", host, err)
	}
	return st, nil
}

// lose notes that nothing is known any more but what was.
func (w *watcher) lose(err error) {
	now := told{down: err.Error(), lost: true}
	if last := w.r.told.Load(); last != nil {
		now.source = last.source
		if last.lost && last.down == now.down {
			return
		}
	}
	w.tell(now)
}

func (w *watcher) tell(now told) {
	w.r.told.Store(&now)
	w.changed()
}

// resolution is t in the form that the source of a local link has.
func (t *told) resolution(l link.Link) resolution {
	res := resolution{down: t.down}
	if t.source.Name != "" {
		res.source = docker.Container{
			ID: l.Ref(), Name: t.source.Name, Hostname: t.source.Hostname, Env: t.source.Env, Ports: t.source.Ports, Running: t.down == "",
		}
	}
	return res
}
