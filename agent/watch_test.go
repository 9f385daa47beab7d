package agent

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
	"sync"
	"testing"

	"github.com/linkrun/linkrun/docker"
)

func TestInboxLosesNothing(t *testing.T) {
	const senders, each = 8, 500
	var box inbox
	var sending sync.WaitGroup
	for s := range senders {
		sending.Go(func() {
			for i := range each {
				box.put(change{event: docker.Event{Container: strconv.Itoa(s*each + i)}})
			}
		})
	}
	got := make(map[string]bool)
	for len(got) < senders*each {
		<-box.ready()
		for _, c := range box.take() {
			if got[c.event.Container] {
				t.Fatalf("%s came twice", c.event.Container)
			}
			got[c.event.Container] = true
		}
	}
	sending.Wait()
	if left := box.take(); len(left) != 0 {
		t.Errorf("%d left over", len(left))
	}
}

// streams plays one event stream after the other.
type streams struct {
	Engine
	play []func(ready func(), handle func(docker.Event)) error
	end  context.CancelFunc
}

func (s *streams) Events(_ context.Context, ready func(), handle func(docker.Event)) error {
	if len(s.play) == 0 {
		s.end()
		return context.Canceled
	}
	next := s.play[0]
	s.play = s.play[1:]
	return next(ready, handle)
}

func TestWatchResyncsAfterEveryGap(t *testing.T) {
	broken := errors.New("stream broken")
	ctx, cancel := context.WithCancel(t.Context())
	s := &streams{end: cancel}
	s.play = append(s.play,
		func(ready func(), handle func(docker.Event)) error {
			ready()
			handle(docker.Event{Container: "a"})
			return broken
		},
		func(func(), func(docker.Event)) error { return broken }, // the engine is not back yet
		func(ready func(), handle func(docker.Event)) error {
			ready()
			handle(docker.Event{Container: "b"})
			return broken
		})
	var box inbox
	watch(ctx, s, &box, slog.New(slog.DiscardHandler))
	var got string
	for _, c := range box.take() {
		if c.resync {
			got += "resync "
		} else {
			got += c.event.Container + " "
		}
	}
	if want := "resync a resync b "; got != want {
		t.Errorf("changes: %q, want %q", got, want)
	}
}
