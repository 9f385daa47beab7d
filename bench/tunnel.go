package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/linkrun/linkrun/bench/traffic"
	"github.com/linkrun/linkrun/identity"
)

// Tunnels are measured between two containers that a veth of their own joins,
// since nothing else passes between them: the load service, and a recipient
// that is there for this. The ambassador's two ends are run as sidecars are.
// Between two agents it is the same tunnel.

// The names of the tunnels and of what they are compared to, as they are
// reported.
const (
	tunnelName  = "ambassador over TLS"
	stunnelName = "stunnel"
	rawName     = "raw TLS"
	plainName   = "plain forwarder"
	wireName    = "TCP"
	sidecarName = "sidecars on one host"
)

// The long line. To TCP its two halves are short.
const (
	lineDelay = 10 * time.Millisecond // each way
	lineRate  = 1000                  // Mbit/s
)

// The ends of the veth, and what listens at the source's.
const (
	wireDevice  = "wire"
	sourceEnd   = "10.99.77.2"
	tunnelPort  = 7443
	stunnelPort = 7444
	rawPort     = 7445
	plainPort   = 7446
	// What leads to a port over the long line is this much higher.
	farther = 1000
)

// loopbackAt is where the client's side of a tunnel listens.
func loopbackAt(last byte) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 77, 0, last}), 7000)
}

// field is where tunnels are measured.
type field struct {
	stage      *stage
	source     place // in the network of the load service
	recipient  place
	identities map[string]string // folders, by the name of the host
	launched   map[string]*daemon
}

// newField joins a new recipient with the load service.
func newField(ctx context.Context, s *stage) (*field, error) {
	recipient, err := s.startRecipient("tunnels")
	if err != nil {
		return nil, err
	}
	source := s.sources[loadService]
	f := &field{
		stage:      s,
		source:     place{netns: source.netns()},
		recipient:  place{netns: recipient.netns()},
		identities: make(map[string]string),
		launched:   make(map[string]*daemon),
	}
	for _, c := range []struct {
		at   place
		args []string
	}{
		{f.recipient, []string{"link", "add", wireDevice, "type", "veth", "peer", "name", wireDevice, "netns", fmt.Sprint(source.pid)}},
		{f.recipient, []string{"addr", "add", "10.99.77.1/30", "dev", wireDevice}},
		{f.recipient, []string{"link", "set", wireDevice, "up"}},
		{f.source, []string{"addr", "add", sourceEnd + "/30", "dev", wireDevice}},
		{f.source, []string{"link", "set", wireDevice, "up"}},
	} {
		if _, err := c.at.output(ctx, append([]string{"ip"}, c.args...)...); err != nil {
			return nil, err
		}
	}
	authority, err := identity.InitAuthority(s.path("authority"), "bench.example")
	if err != nil {
		return nil, err
	}
	for _, host := range []string{"hosta", "hostb"} {
		f.identities[host] = s.path(host)
		credential, err := authority.First(host)
		if err == nil {
			err = identity.Save(f.identities[host], credential)
		}
		if err != nil {
			return nil, err
		}
	}
	return f, nil
}

// launch starts a program at a place, once under this name, and waits until
// something listens.
func (f *field) launch(ctx context.Context, name string, at place, listens netip.AddrPort, args ...string) (*daemon, error) {
	if d := f.launched[name]; d != nil {
		return d, nil
	}
	d, err := f.stage.start(name, at.command(context.Background(), args...))
	if err != nil {
		return nil, err
	}
	f.launched[name] = d
	return d, d.ready(ctx, func() error {
		if !listens.IsValid() {
			return nil
		}
		_, err := at.output(ctx, f.stage.load, "knock", listens.String())
		return err
	})
}

// line leads to a port of the source's end over the long line.
func (f *field) line(ctx context.Context, port uint16) error {
	at := netip.AddrPortFrom(netip.MustParseAddr(sourceEnd), port+farther)
	_, err := f.launch(ctx, fmt.Sprint("line", port), f.source, at,
		f.stage.load, "delay", at.String(), fmt.Sprintf("%s:%d", sourceEnd, port), lineDelay.String(), fmt.Sprint(lineRate))
	return err
}

// tunnel is a peer between the two ends of the veth. It leads to the load
// service only.
type tunnel struct {
	text    string
	program []string // it needs
	far     bool     // over the long line
	at      netip.AddrPort
	// open starts its ends, and returns what carries.
	open func(ctx context.Context, t *tunnel) ([]*daemon, error)
	// command is how a client runs a plan; nil is that of the others.
	command func(plan string) []string

	field *field
	ends  []*daemon
}

func (t *tunnel) about() string                  { return t.text }
func (t *tunnel) needs() []string                { return t.program }
func (t *tunnel) netns() string                  { return t.field.recipient.netns }
func (t *tunnel) address(service) netip.AddrPort { return t.at }
func (t *tunnel) renew(context.Context) error    { return nil }
func (t *tunnel) packets() bool                  { return false }
func (t *tunnel) start(ctx context.Context, s *stage) (err error) {
	t.ends, err = t.open(ctx, t)
	return err
}

func (t *tunnel) carriers() (pids []int, err error) {
	for _, d := range t.ends {
		pids = append(pids, d.pid())
	}
	return pids, nil
}

func (t *tunnel) link(context.Context, int) (int, func() error, error) {
	return 0, func() error { return nil }, nil
}

// client is how a plan is run in a recipient of p.
func (s *stage) client(p peer, plan string) []string {
	if t, ok := p.(*tunnel); ok && t.command != nil {
		return t.command(plan)
	}
	return []string{s.load, "run", plan}
}

// port is where a tunnel's client finds its server, over the line if need be.
func (t *tunnel) port(ctx context.Context, port uint16) (netip.AddrPort, error) {
	at := netip.AddrPortFrom(netip.MustParseAddr(sourceEnd), port)
	if !t.far {
		return at, nil
	}
	return netip.AddrPortFrom(at.Addr(), port+farther), t.field.line(ctx, port)
}

// ours is the ambassador's two ends, over TLS.
func (f *field) ours(far bool) *tunnel {
	t := &tunnel{text: "`source` and `recipient`, as sidecars are run: one mutual TLS connection, a stream in it for each connection", far: far, at: loopbackAt(10), field: f}
	if far {
		t.at = loopbackAt(11)
	}
	t.open = func(ctx context.Context, t *tunnel) ([]*daemon, error) {
		listens := netip.AddrPortFrom(netip.MustParseAddr(sourceEnd), tunnelPort)
		source, err := f.launch(ctx, "source", f.source, listens, f.stage.ambassador, "source",
			"--listen", "tls:"+listens.String(), "--to", "127.0.0.1:7000", "--allow", "*", "--identity", f.identities["hostb"])
		if err != nil {
			return nil, err
		}
		to, err := t.port(ctx, tunnelPort)
		if err != nil {
			return nil, err
		}
		recipient, err := f.launch(ctx, "recipient"+to.String(), f.recipient, t.at, f.stage.ambassador, "recipient",
			"--connect", "tls:"+to.String(), "--listen", t.at.String(), "--identity", f.identities["hosta"])
		return []*daemon{source, recipient}, err
	}
	return t
}

// stunnel is two of them, with certificates on both sides.
func (f *field) stunnel(far bool) *tunnel {
	t := &tunnel{text: "two `stunnel`, TLS 1.3 with client certificates, everything else as it is: a TLS connection for each connection, sessions resumed", program: []string{"stunnel4"}, far: far, at: loopbackAt(20), field: f}
	if far {
		t.at = loopbackAt(21)
	}
	t.open = func(ctx context.Context, t *tunnel) ([]*daemon, error) {
		listens := netip.AddrPortFrom(netip.MustParseAddr(sourceEnd), stunnelPort)
		server, err := f.stunnelEnd(ctx, "stunnel-source", f.source, listens, "127.0.0.1:7000", "hostb", "no")
		if err != nil {
			return nil, err
		}
		to, err := t.port(ctx, stunnelPort)
		if err != nil {
			return nil, err
		}
		client, err := f.stunnelEnd(ctx, "stunnel-"+to.String(), f.recipient, t.at, to.String(), "hosta", "yes")
		return []*daemon{server, client}, err
	}
	return t
}

func (f *field) stunnelEnd(ctx context.Context, name string, at place, accept netip.AddrPort, connect, host, client string) (*daemon, error) {
	files := identity.In(f.identities[host])
	config := fmt.Sprintf(`foreground = yes
pid =
syslog = no
debug = warning
sslVersionMin = TLSv1.3
socket = l:TCP_NODELAY=1
socket = r:TCP_NODELAY=1
[load]
client = %s
accept = %v
connect = %s
cert = %s
key = %s
CAfile = %s
verifyChain = yes
`, client, accept, connect, files.Cert, files.Key, files.Roots)
	file := f.stage.path(name + ".conf")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return nil, err
	}
	return f.launch(ctx, name, at, accept, "stunnel4", file)
}

// raw is no tunnel: client and server speak TLS themselves.
func (f *field) raw() *tunnel {
	t := &tunnel{text: "no tunnel: client and server do the TLS themselves (Go's), mutual, with a handshake for each connection", at: netip.AddrPortFrom(netip.MustParseAddr(sourceEnd), rawPort), field: f}
	t.command = func(plan string) []string { return []string{f.stage.load, "secure-run", f.identities["hosta"], plan} }
	t.open = func(ctx context.Context, t *tunnel) ([]*daemon, error) {
		_, err := f.launch(ctx, "raw", f.source, t.at, f.stage.load, "secure-serve", t.at.String(), f.identities["hostb"])
		return nil, err
	}
	return t
}

// plain is the plainest tunnel: what two hops more cost raw TLS.
func (f *field) plain() *tunnel {
	t := &tunnel{text: "two forwarders of a page of Go, a TLS connection for each connection: raw TLS with the hops that a tunnel has", at: loopbackAt(40), field: f}
	t.open = func(ctx context.Context, t *tunnel) ([]*daemon, error) {
		listens := netip.AddrPortFrom(netip.MustParseAddr(sourceEnd), plainPort)
		source, err := f.launch(ctx, "plain-source", f.source, listens, f.stage.load, "secure-forward", listens.String(), "127.0.0.1:7000", f.identities["hostb"], "source")
		if err != nil {
			return nil, err
		}
		recipient, err := f.launch(ctx, "plain-recipient", f.recipient, t.at, f.stage.load, "secure-forward", t.at.String(), listens.String(), f.identities["hosta"], "recipient")
		return []*daemon{source, recipient}, err
	}
	return t
}

// wire is nothing at all between client and server but the veth, or the line.
func (f *field) wire(far bool) *tunnel {
	t := &tunnel{text: "nothing between client and server, in clear text: what the veth carries, and the long line", far: far, field: f}
	t.open = func(ctx context.Context, t *tunnel) (_ []*daemon, err error) {
		t.at, err = t.port(ctx, f.stage.service(loadService).port)
		return nil, err
	}
	return t
}

// sidecars are the two ends on one host, which hand sockets over.
func (f *field) sidecars() *tunnel {
	t := &tunnel{text: "`source` and `recipient` that meet at a unix socket: the connected socket is handed over and spliced", at: loopbackAt(30), field: f}
	t.open = func(ctx context.Context, t *tunnel) ([]*daemon, error) {
		socket := f.stage.path("link.sock")
		source, err := f.launch(ctx, "sidecar-source", f.source, netip.AddrPort{}, f.stage.ambassador, "source", "--listen", "unix:"+socket, "--to", "127.0.0.1:7000")
		if err != nil {
			return nil, err
		}
		recipient, err := f.launch(ctx, "sidecar-recipient", f.recipient, t.at, f.stage.ambassador, "recipient", "--connect", "unix:"+socket, "--listen", t.at.String())
		return []*daemon{source, recipient}, err
	}
	return t
}

// tunnelWorkloads are those of tunnels over a veth.
func tunnelWorkloads() []workload {
	return []workload{
		bulk(traffic.Send, 1), bulk(traffic.Receive, 1), bulk(traffic.Send, 8),
		exchange(1), exchange(64), connect(1), connect(32),
	}
}

// farWorkloads are those of tunnels over the long line.
func farWorkloads() []workload {
	return []workload{bulk(traffic.Send, 1), bulk(traffic.Receive, 1), connect(1), connect(32)}
}

// sidecarWorkloads compare two ways on one host.
func sidecarWorkloads() []workload {
	return []workload{bulk(traffic.Send, 1), bulk(traffic.Receive, 1), exchange(64), connect(32)}
}
