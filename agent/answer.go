package agent

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/linkrun/linkrun/identity"
	"github.com/linkrun/linkrun/link"
	"github.com/linkrun/linkrun/policy"
	"github.com/linkrun/linkrun/tunnel"
)

const (
	// lookUpTime bounds the wait for the engine to say where a source is.
	lookUpTime = 10 * time.Second
	// dialTime is how long a source may take to accept a connection.
	dialTime = 10 * time.Second
	// flowTime ends a flow of datagrams in which nothing moves, here. The
	// recipient's host does so earlier.
	flowTime = 5 * time.Minute
)

// Answer serves one stream that another host has opened, and owns it. It
// returns when that is over.
func (a *Agent) Answer(from identity.Peer, in *tunnel.Incoming) {
	watch := in.Kind == tunnel.Watch
	if !watch && in.Kind != tunnel.TCP && in.Kind != tunnel.UDP {
		in.Refuse(tunnel.Unsupported, fmt.Sprintf("this host has nothing of the kind %q", in.Kind))
		return
	}
	e := a.exports.use(from.ID.Host, in.Source, watch)
	if e == nil {
		in.Refuse(tunnel.Busy, "this host has too many open")
		return
	}
	defer func() {
		if a.exports.leave(e, from.ID.Host, watch) {
			a.inbox.put(change{}) // for it to be let go
		}
	}()
	if e.view.Load() == nil {
		a.inbox.put(change{}) // for it to be looked up
	}
	select {
	case <-e.ready:
	case <-time.After(lookUpTime):
		in.Refuse(tunnel.Failed, "the engine there does not answer")
		return
	}
	call := call{a: a, export: e, host: from.ID.Host, in: in}
	switch in.Kind {
	case tunnel.Watch:
		call.tell()
	default:
		call.connect()
	}
}

// call is one stream of another host.
type call struct {
	a      *Agent
	export *export
	host   string
	in     *tunnel.Incoming
}

func (c call) request(v *exported, port link.Port) policy.Request {
	q := policy.Request{Host: c.host, Recipient: c.in.Recipient, Source: v.name(), Port: port}
	if q.Source == "" {
		q.Source = c.in.Source
	}
	return q
}

// decide answers a request by the labels and the policy file of now.
func (a *Agent) decide(q policy.Request) policy.Decision {
	rules, found := a.exports.rulesOf(q.Source)
	if !found {
		return policy.Decision{Rule: "there is no such source"}
	}
	if a.Policy == nil {
		return policy.Decide(q, rules)
	}
	more, err := a.Policy.Rules()
	if err != nil {
		return policy.Decision{Rule: err.Error()}
	}
	return policy.Decide(q, rules, more)
}

// PolicyChanged is called after the policy file has changed. It cuts what is
// allowed no more.
func (a *Agent) PolicyChanged() {
	a.guard.Recheck()
	a.inbox.put(change{policy: true})
}

// nothing is what whoever has no permission is told, whether there is such a
// source or not.
func (c call) nothing() string {
	return fmt.Sprintf("there is no source %q that %q may be linked to", c.in.Source, c.in.Recipient)
}

// connect answers for one connection, or one flow of datagrams.
func (c call) connect() {
	in, proto := c.in, link.TCP
	if in.Kind == tunnel.UDP {
		proto = link.UDP
	}
	v := c.export.view.Load()
	if v.over {
		in.Refuse(tunnel.Failed, "the ambassador there is stopping")
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	in.Stream.AfterReset(cancel)
	port := link.Port{Number: in.Port, Proto: proto}
	admission, d := c.a.guard.Admit(c.request(v, port), cancel, "from", in.From)
	if !d.Allowed {
		in.Refuse(tunnel.NoSource, c.nothing())
		return
	}
	defer admission.End()
	switch {
	case !exposes(v.res.source.Ports, port) && !(proto == link.TCP && v.more.Contain(port.Number)):
		in.Refuse(tunnel.NoPort, fmt.Sprintf("source %q does not expose %v", in.Source, port))
	case v.dial == nil:
		in.Refuse(tunnel.Down, v.down())
	case proto == link.TCP:
		c.carryTCP(ctx, v)
	default:
		c.carryUDP(ctx, v)
	}
}

func exposes(ports []link.Port, port link.Port) bool {
	for _, p := range ports {
		if p == port {
			return true
		}
	}
	return false
}

// carryTCP connects to the source and moves bytes until the connection has
// ended, or ctx.
func (c call) carryTCP(ctx context.Context, v *exported) {
	dialing, done := v.whileDialing(ctx)
	conn, err := v.dial.Dial(dialing, c.in.Port)
	done()
	if err != nil {
		c.refuse(ctx, v, err)
		return
	}
	pump := tunnel.Pump{Conn: conn, Stream: c.in.Stream, Buffers: &c.a.buffers}
	if err := c.begin(conn, v.proxy); err != nil {
		pump.Cut()
		return
	}
	defer context.AfterFunc(ctx, pump.Cut)()
	if err := pump.Run(); err != nil {
		c.a.log.Debug("connection of another host ended", "host", c.host, "recipient", c.in.Recipient, "source", c.in.Source, "err", err)
	}
}

// whileDialing is ctx for as long as a connect may take: the source may be
// slow, or gone meanwhile.
func (v *exported) whileDialing(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	stop := context.AfterFunc(v.gone, cancel)
	return ctx, func() {
		stop()
		cancel()
	}
}

// begin answers yes, and tells the source who calls if it wants to know. The
// answer comes before anything the source says.
func (c call) begin(conn net.Conn, proxy bool) error {
	if proxy {
		to := conn.RemoteAddr().(*net.TCPAddr).AddrPort()
		if _, err := conn.Write(tunnel.AppendProxyHeader(nil, c.in.From, to)); err != nil {
			return err
		}
	}
	return c.in.Grant()
}

func (c call) carryUDP(ctx context.Context, v *exported) {
	dialing, done := v.whileDialing(ctx)
	conn, err := v.dial.DialPackets(dialing, c.in.Port)
	done()
	if err != nil {
		c.refuse(ctx, v, err)
		return
	}
	flow := tunnel.Flow{Conn: conn, Stream: c.in.Stream, Buffers: &c.a.buffers, IdleTimeout: flowTime}
	if err := c.in.Grant(); err != nil {
		flow.Cut()
		return
	}
	defer context.AfterFunc(ctx, flow.Cut)()
	if err := flow.Run(); err != nil {
		c.a.log.Debug("flow of another host ended", "host", c.host, "recipient", c.in.Recipient, "source", c.in.Source, "err", err)
	}
}

// refuse says why there is no connection, in words that tell nothing about
// this host's inside.
func (c call) refuse(ctx context.Context, v *exported, err error) {
	if ctx.Err() != nil { // the permission was withdrawn, or nobody waits any more
		c.in.Stream.Abort()
		return
	}
	status := tunnel.StatusOf(err)
	if v.gone.Err() != nil {
		status = tunnel.Down
	}
	c.a.log.Debug("another host is refused", "host", c.host, "recipient", c.in.Recipient, "source", c.in.Source, "err", err)
	c.in.Refuse(status, fmt.Sprintf("source %q, port %d", c.in.Source, c.in.Port))
}

// tell says what the source is, again and again as it changes, until the other
// host has heard enough.
func (c call) tell() {
	in := c.in
	if err := in.Grant(); err != nil {
		in.Stream.Abort()
		return
	}
	enough := make(chan struct{})
	go func() { // ends with the stream
		defer close(enough)
		io.Copy(io.Discard, struct{ io.Reader }{in.Stream})
	}()
	defer func() {
		in.Stream.Abort()
		<-enough
	}()
	var last []byte
	wasAllowed := true
	for {
		v := c.export.view.Load()
		if v.over {
			return // which says less than that there were no such source
		}
		t, d := c.telling(v)
		if d.Allowed != wasAllowed {
			wasAllowed = d.Allowed
			c.record(d)
		}
		b, err := t.append(nil)
		if err != nil {
			c.a.log.Error("another host cannot be told about a source", "host", c.host, "err", err)
			b, _ = telling{Status: tunnel.Failed, Reason: "it has too many variables"}.append(nil)
		}
		if !bytes.Equal(b, last) {
			if _, err := in.Stream.Write(b); err != nil {
				return
			}
			last = b
		}
		select {
		case <-v.newer:
		case <-enough:
			return
		}
	}
}

// record notes that somebody is told nothing, or something again: a link that
// does not come up is looked for here.
func (c call) record(d policy.Decision) {
	what, log := "audit: deny", c.a.log.Warn
	if d.Allowed {
		what, log = "audit: allow", c.a.log.Info
	}
	log(what, "host", c.host, "recipient", c.in.Recipient, "source", c.in.Source, "port", "any", "rule", d.Rule)
}

// telling is what the recipient may know of the source: the ports it may
// connect to, and if there are any, the rest.
func (c call) telling(v *exported) (telling, policy.Decision) {
	var t telling
	ports := v.res.source.Ports
	d := c.a.decide(c.request(v, link.Port{Proto: link.TCP})) // of a source without any
	for i, p := range ports {
		of := c.a.decide(c.request(v, p))
		if of.Allowed {
			t.Ports = append(t.Ports, p.String())
		}
		if i == 0 || of.Allowed {
			d = of
		}
	}
	if !d.Allowed {
		return telling{Status: tunnel.NoSource, Reason: c.nothing()}, d
	}
	t.Name, t.Hostname = v.name(), v.res.source.Hostname
	t.Env = v.env.Filter(v.res.source.Env)
	if t.Reason = v.down(); t.Reason != "" {
		t.Status = tunnel.Down
	}
	return t, d
}
