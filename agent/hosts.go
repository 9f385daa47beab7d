package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/linkrun/linkrun/tunnel"
)

// Hosts is what the agent asks of the sessions with other hosts.
type Hosts interface {
	// Want has a session kept with host until release is called. Neither
	// waits.
	Want(host string) (release func())
	// Ask opens a stream to a host that is wanted, and sends a request. It may
	// wait for a session.
	Ask(ctx context.Context, host string, r tunnel.Request) (*tunnel.Stream, error)
	// State is how it is with host.
	State(host string) tunnel.PeerState
}

// HostChanged is called when it is different with another host than it was
// before. It does not wait.
func (a *Agent) HostChanged(string) { a.hostNews.announce() }

// news wakes everybody who waits for some. The zero value works.
type news struct {
	mu   sync.Mutex
	next chan struct{}
}

func (n *news) announce() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.next != nil {
		close(n.next)
		n.next = nil
	}
}

// wait returns what is closed at the next announcement.
func (n *news) wait() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.next == nil {
		n.next = make(chan struct{})
	}
	return n.next
}

// askAgain is how soon another host is asked again without a reason.
const askAgain = time.Second

// ask is Hosts.Ask, and goes on for as long as patience has it while there is
// no session: one has to be made before anything can be asked. Without
// patience it takes as long as Hosts holds what is asked.
func (a *Agent) ask(ctx context.Context, host string, r tunnel.Request, patience time.Duration) (*tunnel.Stream, error) {
	asking, late := ctx, time.After(patience)
	if patience > 0 {
		var done context.CancelFunc
		asking, done = context.WithTimeout(ctx, patience)
		defer done()
	}
	for {
		changed := a.hostNews.wait()
		st, err := a.Hosts.Ask(asking, host, r)
		if err == nil || ctx.Err() != nil {
			return st, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-late:
			return nil, a.away(host, err)
		case <-changed:
		case <-time.After(askAgain):
		}
	}
}

// away says why there is nothing to be had from a host: as the sessions with
// it have it, who know best, or else as err does.
func (a *Agent) away(host string, err error) error {
	if why := a.Hosts.State(host).Reason; why != "" {
		err = errors.New(why)
	}
	return fmt.Errorf("host %q cannot be reached: %w", host, err)
}
