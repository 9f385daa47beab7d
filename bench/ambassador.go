package main

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/linkrun/linkrun/control"
	"github.com/linkrun/linkrun/link"
)

// ambassador is this project: the program as it is installed, in a process of
// its own, which finds its recipients by their labels.
type ambassador struct {
	stage     *stage
	recipient container
	running   *daemon
	addresses map[string]netip.Addr
}

func (*ambassador) about() string {
	return "`ambassador serve --icc off`, and a recipient that carries labels of links"
}

func (*ambassador) needs() []string { return nil }

func (a *ambassador) start(ctx context.Context, s *stage) (err error) {
	a.stage = s
	var flags []string
	for _, svc := range s.services {
		flags = append(flags, "--label", link.LabelLink+svc.name+"="+svc.name)
	}
	if a.recipient, err = s.startRecipient("ambassador", flags...); err != nil {
		return err
	}
	return a.launch(ctx)
}

// launch starts the ambassador, and waits until it carries every link.
func (a *ambassador) launch(ctx context.Context) (err error) {
	// Closing the bridges would close them to the peers that cross them.
	cmd := a.stage.engine.Command(context.Background(), a.stage.ambassador, "serve", "--log", "warn", "--icc", "off", "--dir", a.dir())
	if a.running, err = a.stage.start("ambassador", cmd); err != nil {
		return err
	}
	return a.running.ready(ctx, func() error { return a.linked(ctx, len(a.stage.services)) })
}

func (a *ambassador) dir() string { return a.stage.path("ambassador.d") }

// linked is nil when that many links are up, and notes their addresses.
func (a *ambassador) linked(ctx context.Context, want int) error {
	links, err := control.Dial(a.dir()).Links(ctx)
	if err != nil {
		return err
	}
	up, addresses := 0, make(map[string]netip.Addr)
	for _, l := range links {
		if l.State != control.StateUp {
			return fmt.Errorf("link %q is %s: %s", l.Alias, l.State, l.Reason)
		}
		up++
		if l.Recipient != a.recipient.name {
			continue
		}
		if addresses[l.Alias], err = netip.ParseAddr(l.Address); err != nil {
			return err
		}
	}
	if up != want {
		return fmt.Errorf("%d links are up, want %d", up, want)
	}
	a.addresses = addresses
	return nil
}

func (a *ambassador) netns() string { return a.recipient.netns() }

func (a *ambassador) address(svc service) netip.AddrPort {
	return netip.AddrPortFrom(a.addresses[svc.name], svc.port)
}

func (a *ambassador) carriers() ([]int, error) { return []int{a.running.pid()}, nil }

func (a *ambassador) renew(ctx context.Context) error {
	a.running.stop()
	return a.launch(ctx)
}

func (*ambassador) packets() bool { return true }

// link starts recipients with a hundred links each.
func (a *ambassador) link(ctx context.Context, n int) (int, func() error, error) {
	const each = 100
	var names []string
	undo := func() error {
		err := a.stage.remove(names...)
		if err == nil {
			err = a.running.ready(ctx, func() error { return a.linked(ctx, len(a.stage.services)) })
		}
		return err
	}
	for i := 0; i < n; i += each {
		name := fmt.Sprintf("linked%d", i/each)
		names = append(names, name)
		var flags []string
		for j := i; j < min(i+each, n); j++ {
			flags = append(flags, "--label", fmt.Sprintf("%smore%d=%s", link.LabelLink, j, loadService))
		}
		if _, err := a.stage.startRecipient(name, flags...); err != nil {
			undo()
			return 0, nil, err
		}
	}
	err := poll(ctx, time.Minute, func() error { return a.linked(ctx, len(a.stage.services)+n) })
	return n, undo, err
}
