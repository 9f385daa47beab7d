package agent

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/linkrun/linkrun/docker"
)

// change is a reason to look again: one event, news of one link's source on
// another host, another policy, or, when resync is set, the fact that events
// may have been missed. The zero change says that somebody is new, or gone.
type change struct {
	resync bool
	event  docker.Event
	link   *carrier
	policy bool
}

// inbox collects changes until the agent has time for them. It never blocks
// the sender: an engine drops events for a subscriber that does not read for
// 100 ms (moby's events pubsub), so the stream is always drained at once.
// The zero value works.
type inbox struct {
	mu      sync.Mutex
	pending []change
	wake    chan struct{} // holds a token while pending is not empty
	once    sync.Once
}

func (b *inbox) init() { b.once.Do(func() { b.wake = make(chan struct{}, 1) }) }

func (b *inbox) put(c change) {
	b.init()
	b.mu.Lock()
	b.pending = append(b.pending, c)
	b.mu.Unlock()
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// ready has a token when take will return something.
func (b *inbox) ready() <-chan struct{} {
	b.init()
	return b.wake
}

func (b *inbox) take() []change {
	b.mu.Lock()
	defer b.mu.Unlock()
	got := b.pending
	b.pending = nil
	return got
}

// The wait before the event stream of an engine that went away is opened
// again. Links have to be back within a second of the engine, so the upper
// bound stays well below that.
const (
	firstReconnect = 20 * time.Millisecond
	lastReconnect  = 320 * time.Millisecond
)

// watch feeds the inbox from the engine's events until ctx ends. Whenever the
// stream starts anew it asks for a resync.
func watch(ctx context.Context, engine Engine, into *inbox, log *slog.Logger) {
	wait := firstReconnect
	for {
		err := engine.Events(ctx,
			func() {
				if wait > firstReconnect {
					log.Info("the engine is back")
				}
				wait = firstReconnect
				into.put(change{resync: true})
			},
			func(e docker.Event) { into.put(change{event: e}) })
		if ctx.Err() != nil {
			return
		}
		if wait == firstReconnect {
			log.Warn("lost the engine; links stay as they are until it is back", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = min(2*wait, lastReconnect)
	}
}
