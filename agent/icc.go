package agent

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/linkrun/linkrun/bridge"
	"github.com/linkrun/linkrun/docker"
	"github.com/linkrun/linkrun/iptables"
)

// NetworkEngine is what is asked of a Docker Engine to know its bridges.
type NetworkEngine interface {
	Engine
	Networks(ctx context.Context) ([]docker.NetworkInfo, error)
}

// rules is the host's firewall; see iptables.Firewall.
type rules interface {
	Reconcile(ctx context.Context, p iptables.Policy) ([]string, error)
	Check(ctx context.Context, p iptables.Policy) ([]string, error)
	Remove(ctx context.Context) ([]string, error)
}

// ports is the host's bridges; see bridge.Host.
type ports interface {
	Read() (bridge.State, error)
	Enforce(bridges []string) ([]string, error)
	Check(bridges []string) ([]string, error)
	Follow(ctx context.Context) error
	Netfilter() bool
	Forwards() bool
}

// ICC keeps the engine's bridges closed: it makes the rules and the isolation
// of ports what the networks and the mode ask for, whenever one of these
// changes, and whenever somebody has undone it. What it enforces outlives it,
// until Off.
type ICC struct {
	Engine NetworkEngine
	Who    docker.Engine
	Rules  rules
	Ports  ports
	Dir    string // where permissions are kept
	Log    *slog.Logger

	inbox inbox

	mu       sync.Mutex // one change of the host at a time; guards what follows
	mode     Mode
	networks []docker.NetworkInfo // as last listed; nil: never
	allowed  permissions
	detours  map[detour]docker.Container // that permissions take now
	ending   map[detour]docker.Container // that none takes any more
	readyYet func()                      // not called yet
	failing  bool                        // the last step failed
}

// How often the host is looked at without a reason. A flush of the tables is
// no event of anybody's; it has to be put right within two seconds.
const (
	glanceEvery = time.Second
	lookEvery   = 30 * time.Second
)

// askFor bounds how long the engine may take to answer: whoever holds the
// lock for it keeps containers from starting.
const askFor = 10 * time.Second

// Begin reads the permissions and sets the mode. It comes before everything
// else: without a mode, what an earlier ambassador enforced would be given up.
func (k *ICC) Begin(mode Mode) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.mode = mode
	k.detours, k.ending = make(map[detour]docker.Container), make(map[detour]docker.Container)
	return k.allowed.load(k.Dir)
}

// Run enforces the mode until ctx ends. It calls ready once, when what the mode
// asks for is enforced.
func (k *ICC) Run(ctx context.Context, ready func()) error {
	k.mu.Lock()
	k.readyYet = ready
	k.mu.Unlock()
	var helpers sync.WaitGroup
	defer helpers.Wait()
	var broken error // why Follow ended, which then ends everything
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	helpers.Go(func() {
		// The agent's own stream tells of an engine that went away.
		watch(ctx, k.Engine, &k.inbox, slog.New(slog.DiscardHandler))
	})
	helpers.Go(func() {
		if err := k.Ports.Follow(ctx); err != nil {
			broken = err
			stop()
		}
	})
	glance, look := time.NewTicker(glanceEvery), time.NewTicker(lookEvery)
	defer glance.Stop()
	defer look.Stop()
	for {
		var why reasons
		select {
		case <-ctx.Done():
			stop()
			helpers.Wait()
			return broken
		case <-glance.C:
		case <-look.C:
			why = reasons{networks: true, containers: true}
		case <-k.inbox.ready():
			why = reasonsOf(k.inbox.take())
		}
		k.step(ctx, why)
	}
}

// reasons are what a change makes it worth to ask the engine for.
type reasons struct {
	networks   bool
	containers bool
}

func reasonsOf(changes []change) (why reasons) {
	for _, c := range changes {
		if c.resync || c.event.Type == "network" {
			why.networks = true
		}
		// A container that joins a network while it runs has a new address.
		why.containers = why.containers || c.resync || c.event.Container != ""
	}
	return why
}

// step brings the host in line. What fails is tried again at the next glance.
func (k *ICC) step(ctx context.Context, why reasons) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var err error
	if k.mode != ICCOff {
		err = k.settle(ctx, why)
	}
	switch {
	case ctx.Err() != nil:
		return
	case err != nil && !k.failing:
		k.Log.Error("what should be closed may be open; trying again", "err", err)
	case err == nil && k.failing:
		k.Log.Info("everything is as closed as it should be again")
	}
	k.failing = err != nil
	if err == nil && k.readyYet != nil {
		k.readyYet()
		k.readyYet = nil
	}
}

// settle makes the host what is wanted. Ports come first: their isolation is
// what holds if the rules fail.
func (k *ICC) settle(ctx context.Context, why reasons) error {
	var failed []error
	if why.networks || k.networks == nil {
		failed = append(failed, k.listNetworks(ctx))
		why.containers = true
	}
	if k.networks == nil {
		return errors.Join(failed...) // what earlier ones enforced stands
	}
	wanted := WantedBridges(k.networks, k.mode)
	failed = append(failed, k.isolate(wanted))
	if why.containers || k.failing {
		failed = append(failed, k.resolve(ctx, wanted))
	}
	done, err := k.Rules.Reconcile(ctx, k.policy(wanted))
	k.logAll(done)
	return errors.Join(append(failed, err, k.endDetours())...)
}

func (k *ICC) listNetworks(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	networks, err := k.Engine.Networks(ctx)
	if err != nil {
		return err
	}
	k.networks = networks
	return nil
}

func (k *ICC) isolate(wanted []WantedBridge) error {
	done, err := k.Ports.Enforce(closedDevices(wanted))
	k.logAll(done)
	return err
}

func (k *ICC) policy(wanted []WantedBridge) iptables.Policy {
	var p iptables.Policy
	for _, b := range wanted {
		p.Bridges = append(p.Bridges, iptables.Bridge{Name: b.Device, Closed: b.Closed})
	}
	p.Allow = k.allowed.rules()
	return p
}

func closedDevices(wanted []WantedBridge) (names []string) {
	for _, b := range wanted {
		if b.Closed {
			names = append(names, b.Device)
		}
	}
	return names
}

func (k *ICC) logAll(done []string) {
	for _, what := range done {
		k.Log.Info("icc", "did", what)
	}
}

// Settled returns when the ports of a container that has just started are
// isolated on every bridge that is closed. Its program must not run before.
func (k *ICC) Settled(ctx context.Context, ctr docker.Container) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.mode == ICCOff {
		return nil
	}
	known := func(n docker.Network) bool {
		return slices.ContainsFunc(k.networks, func(i docker.NetworkInfo) bool { return i.ID == n.ID })
	}
	// Without any network known there would be no bridge to close, and those
	// that are closed would be opened.
	if k.networks == nil || slices.ContainsFunc(ctr.Networks, func(n docker.Network) bool { return !known(n) }) {
		return k.settle(ctx, reasons{networks: true})
	}
	return k.isolate(WantedBridges(k.networks, k.mode))
}

// Remove is ICCOff for an ICC that does not run: it removes what one that ran
// left. Engine may be nil.
func (k *ICC) Remove(ctx context.Context) ([]string, error) {
	if err := k.Begin(ICCOff); err != nil {
		return nil, err
	}
	return k.ICCOff(ctx)
}

// ICCOff removes everything that is enforced, and the permissions, and
// enforces nothing any more. It says what it removed.
func (k *ICC) ICCOff(ctx context.Context) ([]string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.mode = ICCOff
	errDetours := k.recall(ctx)
	removed, errRules := k.Rules.Remove(ctx)
	restored, errPorts := k.Ports.Enforce(nil)
	removed = append(removed, restored...)
	for _, p := range k.allowed.list {
		removed = append(removed, "revoked the "+p.String())
	}
	errAllowed := k.allowed.clear()
	for d, ctr := range k.detours {
		k.ending[d] = ctr
	}
	k.detours = make(map[detour]docker.Container)
	k.logAll(removed)
	return removed, errors.Join(errRules, errPorts, errAllowed, errDetours, k.endDetours())
}
