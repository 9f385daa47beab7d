package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/linkrun/linkrun/bench/traffic"
)

// idle measures what a process holds for connections that carried something
// once and then nothing: user memory, descriptors and pipes.
func idle() workload {
	return workload{
		name:    "per idle connection",
		group:   idleGroup,
		metrics: []metric{memoryPer, descriptors, pipes, connsHeld},
		measure: func(ctx context.Context, r run) (sample, error) {
			n := holdable(r.peer, r.stage.fileLimit)
			if r.brief {
				n = 50
			}
			pids, before, err := r.fresh(ctx)
			if err != nil {
				return nil, err
			}
			var after holding
			if err := r.hold(ctx, n, func() error {
				after, err = held(pids)
				return err
			}); err != nil {
				return nil, err
			}
			if err := settle(ctx, pids, before); err != nil {
				return nil, err
			}
			s := perThing(after.less(before), n)
			s[connsHeld] = float64(n)
			return s, nil
		},
	}
}

// fresh starts the peer anew, since what a process held in an earlier round it
// may not have given back, and returns its processes and what they hold.
func (r run) fresh(ctx context.Context) (pids []int, now holding, err error) {
	if err := r.peer.renew(ctx); err != nil {
		return nil, now, err
	}
	if pids, err = r.peer.carriers(); err != nil {
		return nil, now, err
	}
	now, err = held(pids)
	return pids, now, err
}

// holdable is how many connections a peer is measured with: 10,000, unless it
// may not have the descriptors for as many, or has a process for each of them,
// which are all alike.
func holdable(p peer, limit int) int {
	const most, spare = 10_000, 1_600
	switch p.(type) {
	case *socat:
		return 1_000
	case *dockerProxy:
		return min(most, (limit-spare)/6) // two are connections, four are pipes
	}
	return min(most, (limit-spare)/2)
}

// hold runs fn while connections to the idle service are open.
func (r run) hold(ctx context.Context, conns int, fn func() error) error {
	plan, err := json.Marshal(traffic.Plan{Server: r.peer.address(r.stage.service(idleService)), Conns: conns})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	cmd := place{netns: r.peer.netns()}.command(ctx, r.stage.load, "hold", string(plan))
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("holding connections: %w", err)
	}
	line, _ := bufio.NewReader(stdout).ReadString('\n')
	if line == "held\n" {
		err = fn()
	} else {
		err = fmt.Errorf("holding connections: %q", line)
	}
	stdin.Close()
	if ended := cmd.Wait(); err == nil {
		err = ended
	}
	return err
}

// settle waits until the connections are gone from processes, so that the
// next measurement does not see their end.
func settle(ctx context.Context, pids []int, before holding) error {
	return poll(ctx, 30*time.Second, func() error {
		now, err := held(pids)
		left := now.less(before)
		left.descriptors -= left.pipes // which may be kept for later
		if err == nil && left.descriptors > 10 {
			err = fmt.Errorf("%d descriptors are left of connections that are closed", left.descriptors)
		}
		return err
	})
}

// links measures what a process, or all the processes of a peer, hold for
// links that nobody uses.
func links() workload {
	return workload{
		name:    "per link",
		group:   idleGroup,
		metrics: []metric{memoryPer, descriptors, pipes, linksHeld},
		measure: func(ctx context.Context, r run) (s sample, err error) {
			n := 1000
			if r.brief {
				n = 10
			}
			_, before, err := r.fresh(ctx)
			if err != nil {
				return nil, err
			}
			n, undo, err := r.peer.link(ctx, n)
			if err != nil {
				return nil, err
			}
			defer func() {
				if undone := undo(); err == nil {
					err = undone
				}
			}()
			pids, err := r.peer.carriers() // some have one for each link
			if err != nil {
				return nil, err
			}
			after, err := held(pids)
			if err != nil {
				return nil, err
			}
			s = perThing(after.less(before), n)
			s[linksHeld] = float64(n)
			return s, nil
		},
	}
}

func perThing(h holding, n int) sample {
	per := func(what int64) float64 { return float64(max(what, 0)) / float64(n) }
	return sample{
		memoryPer:   per(h.memory),
		descriptors: per(int64(h.descriptors)),
		pipes:       per(int64(h.pipes)),
	}
}
