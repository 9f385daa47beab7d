package doctor

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/linkrun/linkrun/internal/frame"
)

// How long things may take.
const (
	// plugTime is for the kernel to notice that a cable is plugged in.
	plugTime = 5 * time.Second

	// isolateTime is for the ambassador to isolate a new port.
	isolateTime = time.Second

	// grace is how long a frame is at least waited for that should not come.
	grace = 500 * time.Millisecond

	// controlTime is for the frames that should come, on the bridges that the
	// trial makes for itself.
	controlTime = 5 * time.Second
)

// Try sends frames from throw-away ports on every bridge of the calling
// thread's namespace, and says what arrived that should not. First it sends
// the same frames where nothing is to stop them: what does not arrive there,
// it could not see anywhere.
//
// The error is about the trial itself. What was made for it is removed in any
// case.
func Try(ctx context.Context, f Facts) ([]Finding, error) {
	blind, took, control, err := tryControl(ctx)
	if err != nil {
		return nil, fmt.Errorf("trying the trial: %w", err)
	}
	t := newTrial(f)
	t.grace = max(grace, 4*took) // on a busy host, all takes longer
	defer t.close()
	found := []Finding{control}
	more, err := t.run(ctx)
	found = append(found, more...)
	if err == nil {
		found = append(found, t.judge(blind)...)
	}
	for i := range found {
		found[i].How = Tried
	}
	return found, errors.Join(err, t.close())
}

// trial is one round of shots.
type trial struct {
	facts Facts
	magic uint32
	grace time.Duration // how long frames are waited for
	ports []*port
	taps  map[string]*frame.Tap // on interfaces of the host, by name
	shots []shot
	seen  []bool        // by shot
	took  time.Duration // until the last of them was seen
}

func newTrial(f Facts) *trial {
	return &trial{facts: f, magic: rand.Uint32(), taps: make(map[string]*frame.Tap)}
}

// close removes what the trial made. It may be called more than once.
func (t *trial) close() error {
	var errs []error
	for _, p := range t.ports {
		errs = append(errs, p.unplug())
	}
	for _, tap := range t.taps {
		errs = append(errs, tap.Close())
	}
	// Only now: what is still under way would have the host ask for them again.
	for _, p := range t.ports {
		p.forget()
	}
	for i, seen := range t.seen {
		if seen {
			t.shots[i].forgetConnection()
		}
	}
	t.ports, t.taps, t.seen = nil, nil, nil
	return errors.Join(errs...)
}

// run plugs the ports in, sends the shots, and looks for them. The findings
// are about bridges that could not be tried.
func (t *trial) run(ctx context.Context) (found []Finding, err error) {
	pairs := make(map[int][2]*port)
	for _, b := range t.facts.Bridges {
		if err := ctx.Err(); err != nil {
			return found, err
		}
		a, z, err := t.plugPair(b)
		if err == nil {
			pairs[b.Index] = [2]*port{a, z}
			continue
		}
		found = append(found, Finding{Verdict: Unknown, CIS: "2.2", Check: "ports", Subject: b.subject(), Detail: "not tried: " + err.Error()})
	}
	isolated := time.Now().Add(isolateTime) // for all bridges: the ports have been there since
	for _, b := range t.facts.Bridges {
		pair, plugged := pairs[b.Index]
		if !plugged {
			continue
		}
		finding, ready := t.ready(ctx, b, pair, isolated)
		found = append(found, finding)
		if !ready {
			delete(pairs, b.Index)
		}
	}
	if err := ctx.Err(); err != nil {
		return found, err
	}
	found = append(found, t.aim(pairs)...)
	return found, t.fire()
}

// plugPair makes two ports on a bridge.
func (t *trial) plugPair(b Bridge) (a, z *port, err error) {
	ip4, ip6 := b.spares(false, 2), b.spares(true, 2)
	var pair [2]*port
	for i := range pair {
		p, err := plug(b, ip4[i], ip6[i], t.magic)
		if p != nil {
			t.ports = append(t.ports, p)
		}
		if err != nil {
			return nil, nil, err
		}
		pair[i] = p
	}
	return pair[0], pair[1], nil
}

// ready waits until the ports of a bridge are as a container's would be when
// its program runs, which on a closed bridge is isolated by a certain time.
func (t *trial) ready(ctx context.Context, b Bridge, pair [2]*port, isolated time.Time) (Finding, bool) {
	f := Finding{Verdict: Unknown, CIS: "2.2", Check: "new-port", Subject: b.subject()}
	host, err := t.tap(b.Device)
	if err != nil {
		f.Detail = "not tried: " + err.Error()
		return f, false
	}
	for _, p := range pair {
		connected, err := p.connected(host, t.magic, time.Now().Add(plugTime))
		switch {
		case err != nil:
			f.Detail = "not tried: " + err.Error()
			return f, false
		case !connected:
			f.Detail = "not tried: no frame passes between a new port and the host"
			return f, false
		}
	}
	if err := b.awaitAddresses(ctx, time.Now().Add(plugTime)); err != nil {
		f.Detail = "not tried: " + err.Error()
		return f, false
	}
	if !b.Closed {
		f.Verdict, f.Detail = Note, "a new port is not isolated, as the bridge is open"
		return f, true
	}
	for ; ; time.Sleep(time.Millisecond) {
		open := ""
		for _, p := range pair {
			on, err := p.isolated()
			if err != nil {
				f.Detail = "not tried: " + err.Error()
				return f, false
			}
			if !on {
				open = p.name
			}
		}
		switch {
		case open == "":
			f.Verdict, f.Detail = OK, "a new port is isolated at once"
			return f, true
		case time.Now().After(isolated) || ctx.Err() != nil:
			f.Verdict, f.Detail = Hole, "a new port is not isolated"
			f.Hint = "ambassador serve isolates the ports of closed bridges, and those that appear"
			return f, true
		}
	}
}

// tap is the trial's tap on an interface of the host.
func (t *trial) tap(name string) (*frame.Tap, error) {
	if tap := t.taps[name]; tap != nil {
		return tap, nil
	}
	tap, err := frame.Open(name, t.magic)
	if err != nil {
		return nil, err
	}
	t.taps[name] = tap
	return tap, nil
}

// maxPorts is how many ports of a link are tried. A source may expose
// thousands, and what stops one stops all.
const maxPorts = 32

// aim makes the shots. The findings are about what is not shot at.
func (t *trial) aim(pairs map[int][2]*port) (more []Finding) {
	f := &t.facts
	for _, b := range f.Bridges {
		pair, ok := pairs[b.Index]
		if !ok {
			continue
		}
		a := pair[0]
		t.shots = append(t.shots, pairShots(a, pair[1], f.exposedOn(b))...)
		for _, other := range f.Bridges {
			to, ok := pairs[other.Index]
			if ok && other.Index != b.Index && (b.Closed || other.Closed || f.control) {
				t.shots = append(t.shots, routedShots(a, to[1])...)
			}
		}
		for i := range f.Containers {
			c := &f.Containers[i]
			if e, tap := t.target(c, b); tap != nil {
				t.shots = append(t.shots, strangerShots(a, c, e, tap)...)
			}
		}
		for _, l := range f.Links {
			source, toSource := t.target(f.container(l.Source), b)
			if toSource == nil {
				continue
			}
			recipient, toRecipient := t.target(f.container(l.Recipient), b)
			if toRecipient == nil {
				recipient = nil
			}
			if n := len(l.Ports); n > maxPorts {
				more = append(more, Finding{Verdict: Note, Check: "link-port", Subject: fmt.Sprintf("link %s to %s (%s)", l.Recipient, l.Source, l.Kind),
					Detail: fmt.Sprintf("%d of its %d ports are tried", maxPorts, n)})
				l.Ports = l.Ports[:maxPorts]
			}
			t.shots = append(t.shots, linkShots(a, l, source, recipient, toSource, toRecipient)...)
		}
	}
	return more
}

// target is where a container is on a bridge, and a tap on the way to it: on
// the host's end of its cable, where the bridge lets out what it lets
// through. Nil, if it is not on the bridge, or gone since.
func (t *trial) target(c *Container, b Bridge) (*Endpoint, *frame.Tap) {
	e := c.on(b.Device)
	if e == nil || e.Port == "" || len(e.MAC) == 0 {
		return nil, nil
	}
	tap, err := t.tap(e.Port)
	if err != nil {
		return nil, nil
	}
	return e, tap
}

// exposedOn is a port that a source on the bridge exposes.
func (f *Facts) exposedOn(b Bridge) uint16 {
	for _, l := range f.Links {
		if f.container(l.Source).on(b.Device) != nil {
			for _, p := range l.Ports {
				return p.Number
			}
		}
	}
	return 80
}

// fire sends all the shots, and then looks where they came out.
func (t *trial) fire() error {
	t.seen = make([]bool, len(t.shots))
	unseen := make(map[*frame.Tap]int)
	for i, s := range t.shots {
		unseen[s.to]++
		if err := s.from.Send(s.kind.make(s.hop, s.flow, frame.Token{Magic: t.magic, ID: uint32(i)})); err != nil {
			return fmt.Errorf("%s, %s: %w", s.subject, s.what, err)
		}
	}
	fired := time.Now()
	for tap := range unseen {
		if err := tap.Watch(fired.Add(t.grace), func(id uint32) bool {
			if int64(id) < int64(len(t.shots)) && t.shots[id].to == tap && !t.seen[id] {
				t.seen[id] = true
				unseen[tap]--
				t.took = time.Since(fired)
			}
			return unseen[tap] == 0
		}); err != nil {
			return err
		}
	}
	return nil
}

// judge says what it means that shots arrived, or that they did not. Shots of
// the same kind at the same thing are one finding.
func (t *trial) judge(blind map[string]bool) (found []Finding) {
	place := make(map[string]int)
	for i, s := range t.shots {
		f := Finding{CIS: "2.2", Check: s.check, Subject: s.subject, Frames: []string{s.what}}
		switch {
		case t.seen[i]:
			f.Verdict, f.Detail = s.on.verdict(), "arrives"
			if f.Verdict != Note {
				f.Hint = "ambassador serve --icc=enforce closes the bridges whose networks have ICC disabled, --icc=deny all that are not labelled ambassador.icc=allow"
			}
		case blind[s.check]:
			f.Verdict, f.Detail = Unknown, "not seen, and would not have been"
		default:
			f.Verdict, f.Detail = OK, "does not arrive"
		}
		key := strings.Join([]string{string(f.Verdict), f.Check, f.Subject}, "\x00")
		if at, ok := place[key]; ok {
			found[at].Frames = append(found[at].Frames, s.what)
			continue
		}
		place[key] = len(found)
		found = append(found, f)
	}
	return found
}

// verdict is what it means that something passes between containers of the
// bridge.
func (b Bridge) verdict() Verdict {
	switch {
	case b.Closed || b.Default && !b.Allowed:
		return Hole
	case b.Allowed:
		return Note
	}
	return Warning
}
