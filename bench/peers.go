package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// peer is one way from a recipient to its sources. A peer is started once, and
// ends with the stage.
type peer interface {
	// about says in a few words how it is set up.
	about() string
	// needs are programs of Debian packages of the same name.
	needs() []string
	// start has it carry connections to every service of the stage.
	start(ctx context.Context, s *stage) error
	// netns is the network namespace of its recipient.
	netns() string
	// address is where its recipient reaches a service.
	address(service) netip.AddrPort
	// carriers are the processes that carry, without those they started. A
	// peer that has none is carried by the kernel.
	carriers() ([]int, error)
	// renew starts the carriers of the idle service anew, with nothing of
	// what they held.
	renew(ctx context.Context) error
	// link adds n links, or as many as it is sensible to measure, and says how
	// many. They go with undo.
	link(ctx context.Context, n int) (added int, undo func() error, err error)
	// packets tells whether it carries datagrams.
	packets() bool
}

// The names of the peers, as they are reported.
const (
	directName  = "direct"
	proxyName   = "docker-proxy"
	haproxyName = "HAProxy"
	socatName   = "socat"
	oursName    = "ambassador"
)

var peerNames = []string{directName, proxyName, haproxyName, socatName, oursName}

func newPeer(name string) peer {
	switch name {
	case directName:
		return &direct{}
	case proxyName:
		return &dockerProxy{}
	case haproxyName:
		return &haproxy{}
	case socatName:
		return &socat{}
	}
	return &ambassador{}
}

// direct is Docker's own links: the recipient's packets go over the bridge.
type direct struct {
	stage     *stage
	recipient container
}

func (*direct) about() string {
	return "Docker's own `--link`, with `icc=false`: packets go over the bridge, and through the rules that links are"
}

func (*direct) needs() []string { return nil }

func (d *direct) start(_ context.Context, s *stage) (err error) {
	d.stage = s
	d.recipient, err = s.startRecipient("direct", s.dockerLinks()...)
	return err
}

// dockerLinks are the flags of a recipient that Docker links to every service.
func (s *stage) dockerLinks() (flags []string) {
	for _, svc := range s.services {
		flags = append(flags, "--link", svc.name)
	}
	return flags
}

func (d *direct) netns() string { return d.recipient.netns() }

func (d *direct) address(svc service) netip.AddrPort {
	return netip.AddrPortFrom(d.stage.sources[svc.name].addr, svc.port)
}

func (*direct) carriers() ([]int, error)    { return nil, nil }
func (*direct) renew(context.Context) error { return nil }
func (*direct) packets() bool               { return true }
func (*direct) link(context.Context, int) (int, func() error, error) {
	return 0, func() error { return nil }, nil
}

// dockerProxy is the engine's own proxy for published ports. Its recipient is
// the engine's host: from there, packets to loopback meet no rule but the
// proxy.
type dockerProxy struct{ stage *stage }

func (*dockerProxy) about() string {
	return "a port published on the host's loopback, and reached there: the engine's userland proxy, a process for each port"
}

func (*dockerProxy) needs() []string { return nil }

func (d *dockerProxy) start(_ context.Context, s *stage) error {
	d.stage = s
	// That its proxy can be started anew, without a source of others.
	idle := s.service(idleService)
	_, err := s.startSource(publishedIdle, idle, publish(idle.port, "tcp")...)
	return err
}

const publishedIdle = "idle-published"

func (d *dockerProxy) netns() string { return d.stage.engine.NetNS() }

func (*dockerProxy) address(svc service) netip.AddrPort {
	return netip.AddrPortFrom(loopback, svc.port)
}

var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

func (d *dockerProxy) carriers() ([]int, error) {
	text, err := os.ReadFile(filepath.Join(d.stage.engine.Dir(), "pid"))
	if err != nil {
		return nil, fmt.Errorf("looking for dockerd: %w", err)
	}
	dockerd, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return nil, fmt.Errorf("looking for dockerd: %w", err)
	}
	members, err := family([]int{dockerd})
	var pids []int
	for _, p := range members {
		if p.name == "docker-proxy" {
			pids = append(pids, p.pid)
		}
	}
	return pids, err
}

func (d *dockerProxy) renew(ctx context.Context) error {
	_, err := d.stage.engine.Docker("restart", "-t", "1", publishedIdle)
	return err
}

func (*dockerProxy) packets() bool { return true }

// link publishes ports. There is a process for each, so a hundred say it all.
func (d *dockerProxy) link(_ context.Context, n int) (int, func() error, error) {
	n = min(n, 100)
	ports := fmt.Sprintf("127.0.0.1:20000-%d:20000-%[1]d", 20000+n-1)
	_, err := d.stage.startRecipient("published", "-p", ports)
	return n, func() error { return d.stage.remove("published") }, err
}
