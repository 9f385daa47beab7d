package main

import (
	"context"
	"fmt"
	"net/netip"
)

// socat is what the ambassador containers of Docker's own documentation ran.
// It enters no other namespace, so Docker links its recipient to the sources.
type socat struct {
	stage     *stage
	recipient container
	running   []*daemon
}

func (*socat) about() string {
	return "in the recipient's network namespace, to a source that Docker links it to; a process for each port and each connection"
}

func (*socat) needs() []string { return []string{"socat"} }

func (x *socat) start(_ context.Context, s *stage) (err error) {
	x.stage = s
	if x.recipient, err = s.startRecipient("socat", s.dockerLinks()...); err != nil {
		return err
	}
	for _, svc := range s.services {
		if err := x.listen(x.address(svc), svc); err != nil {
			return err
		}
	}
	// Its processes end five seconds after the last datagram of their flow.
	load := s.service(loadService)
	return x.run("-T5", fmt.Sprintf("UDP4-LISTEN:%d,bind=%s,fork,reuseaddr", load.port, alias),
		fmt.Sprintf("UDP4:%v", x.source(load)))
}

func (x *socat) listen(at netip.AddrPort, svc service) error {
	return x.run(fmt.Sprintf("TCP4-LISTEN:%d,bind=%s,fork,reuseaddr,backlog=4096,nodelay", at.Port(), at.Addr()),
		fmt.Sprintf("TCP4:%v,nodelay", x.source(svc)))
}

func (x *socat) source(svc service) netip.AddrPort {
	return netip.AddrPortFrom(x.stage.sources[svc.name].addr, svc.port)
}

func (x *socat) run(args ...string) error {
	args = append([]string{"socat"}, args...)
	d, err := x.stage.start("socat", place{netns: x.netns()}.command(context.Background(), args...))
	if err == nil {
		x.running = append(x.running, d)
	}
	return err
}

func (x *socat) netns() string { return x.recipient.netns() }

func (*socat) address(svc service) netip.AddrPort { return netip.AddrPortFrom(alias, svc.port) }

func (x *socat) carriers() (pids []int, err error) {
	for _, d := range x.running {
		pids = append(pids, d.pid())
	}
	return pids, nil
}

// renew has nothing to do: connections leave nothing behind in a process that
// ends with them.
func (*socat) renew(context.Context) error { return nil }

func (*socat) packets() bool { return true }

// link adds a process for each, so a hundred say it all.
func (x *socat) link(_ context.Context, n int) (int, func() error, error) {
	n = min(n, 100)
	before := len(x.running)
	undo := func() error {
		for _, d := range x.running[before:] {
			d.stop()
		}
		x.running = x.running[:before]
		return nil
	}
	for i := range n {
		if err := x.listen(netip.AddrPortFrom(alias, uint16(20000+i)), x.stage.service(loadService)); err != nil {
			undo()
			return 0, nil, err
		}
	}
	return n, undo, nil
}
