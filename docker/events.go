package docker

import (
	"context"
	"fmt"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/client"
)

// Event says that something about a container or a network changed. It is a
// reason to look again, never the state itself: what an event says may be
// outdated when it is read.
type Event struct {
	Type   string // "container" or "network"
	Action string // "start", "die", "rename", "destroy", "connect", …

	Container string // its id; for network events the one that joined or left
	Network   string // its id, network events only
	Name      string // the container's or network's name, without a slash
}

// Events streams what happens to containers and networks. When the engine has
// accepted the request it calls ready once: state read from then on has no
// gap to the events. It then calls handle, one event at a time, and returns
// when ctx ends or the stream breaks, with the reason.
func (c *Client) Events(ctx context.Context, ready func(), handle func(Event)) error {
	// An engine answers the request before it subscribes to the events
	// (moby's getEvents flushes the header first). Asking for those since now
	// has it replay what fell between.
	now := time.Now()
	res := c.api.Events(ctx, client.EventsListOptions{
		Since: fmt.Sprintf("%d.%09d", now.Unix(), now.Nanosecond()),
		Filters: make(client.Filters).
			Add("type", string(events.ContainerEventType), string(events.NetworkEventType)).
			Add("event",
				string(events.ActionStart), string(events.ActionDie), string(events.ActionRename),
				string(events.ActionCreate), string(events.ActionDestroy),
				string(events.ActionConnect), string(events.ActionDisconnect)),
	})
	select {
	case err := <-res.Err:
		return c.explain(ctx, err)
	default:
		ready()
	}
	for {
		select {
		case m := <-res.Messages:
			handle(fromMessage(m))
		case err := <-res.Err:
			return c.explain(ctx, err)
		}
	}
}

func fromMessage(m events.Message) Event {
	e := Event{Type: string(m.Type), Action: string(m.Action), Name: m.Actor.Attributes["name"]}
	switch m.Type {
	case events.ContainerEventType:
		e.Container = m.Actor.ID
	case events.NetworkEventType:
		e.Network, e.Container = m.Actor.ID, m.Actor.Attributes["container"]
	}
	return e
}
