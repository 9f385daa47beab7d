package bridge

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// Follow keeps the closed bridges closed until ctx ends or the host is
// closed: a port that appears, or that somebody opens, is isolated as soon as
// the kernel tells of it, which is long before a container's program runs.
// Only one Follow at a time.
func (h *Host) Follow(ctx context.Context) error {
	stop := context.AfterFunc(ctx, h.news.Close)
	defer stop()
	for {
		messages, from, err := h.news.Receive()
		select {
		case <-h.done:
			return nil
		default:
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			// The kernel had more news than the socket holds, and dropped some.
			h.settleNow()
			continue
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("waiting for news of links: %w", err)
		case from.Pid != 0: // another process, not the kernel
			continue
		}
		for _, m := range messages {
			if m.Header.Type == unix.RTM_NEWLINK {
				h.heard(m)
			}
		}
	}
}

// heard looks at the interface that a message is about. The message says that
// something changed; what it is now is asked for.
func (h *Host) heard(m syscall.NetlinkMessage) {
	news, err := parseLink(m.Data)
	if err != nil {
		h.log.Error("reading news of a link", "err", err)
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.closed) == 0 || news.master == 0 && news.kind != "bridge" {
		return
	}
	for _, d := range h.dutiesOf(news.index) {
		switch err := d.do(h); {
		case errors.Is(err, unix.ENODEV):
		case err != nil:
			h.log.Error("closing a bridge", "duty", d.what, "err", err)
		default:
			h.log.Info(d.what)
		}
	}
}

// dutiesOf is what is to be done about one interface: nothing, if it is gone.
func (h *Host) dutiesOf(index int) []duty {
	found, err := h.links(index)
	if err != nil || len(found) != 1 {
		return nil
	}
	l := found[0]
	if l.kind == "bridge" {
		if h.closed[l.name] {
			return l.asBridge().duties(true)
		}
		return nil
	}
	if l.master == 0 {
		return nil
	}
	masters, err := h.links(l.master)
	if err != nil || len(masters) != 1 || masters[0].kind != "bridge" || !h.closed[masters[0].name] {
		return nil
	}
	return l.asPort(masters[0].name).duties(true)
}

func (h *Host) settleNow() {
	h.mu.Lock()
	defer h.mu.Unlock()
	done, err := h.settle()
	for _, what := range done {
		h.log.Info(what)
	}
	if err != nil {
		h.log.Error("closing bridges", "err", err)
	}
}
