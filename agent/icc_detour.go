package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"

	"github.com/linkrun/linkrun/bridge"
	"github.com/linkrun/linkrun/docker"
	"github.com/linkrun/linkrun/netns"
)

// detour is a bridge.Detour in the namespace of one run of a container.
type detour struct {
	run       string // the container's incarnation
	own, peer netip.Addr
	via       string // hardware address of the bridge
}

func (d detour) String() string { return fmt.Sprintf("detour from %v to %v", d.own, d.peer) }

// detour is the way's at one of its ends.
func (w way) detour(end int, host bridge.State) detour {
	d := detour{run: incarnation(w.ends[end]), own: w.addrs[end], peer: w.addrs[1-end]}
	for _, b := range host.Bridges {
		if b.Name == w.bridge.Device {
			d.via = b.MAC.String()
		}
	}
	return d
}

func (d detour) made() (bridge.Detour, error) {
	via, err := net.ParseMAC(d.via)
	if err != nil {
		return bridge.Detour{}, fmt.Errorf("finding the bridge of a %v: %w", d, fs.ErrNotExist)
	}
	return bridge.Detour{Own: d.own, Peer: d.peer, Via: via}, nil
}

// set makes the detour, and returns the index of the container's port.
func (d detour) set(ctr docker.Container) (port int, err error) {
	b, err := d.made()
	if err != nil {
		return 0, err
	}
	ns, err := openNamespace(ctr)
	if err != nil {
		return 0, err
	}
	defer ns.Close()
	return b.Set(ns)
}

// end takes the detour away. One whose container is gone went with it.
func (d detour) end(ctr docker.Container) error {
	b, err := d.made()
	if err != nil {
		return nil // its bridge was gone when it was looked for
	}
	ns, err := openNamespace(ctr)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer ns.Close()
	return b.Clear(ns)
}

// endDetours ends those that no permission takes any more. It is called when
// the rules for them are gone, and tried again for those that fail.
func (k *ICC) endDetours() error {
	var failed []error
	for d, ctr := range k.ending {
		if _, again := k.detours[d]; again {
			delete(k.ending, d)
			continue
		}
		if err := d.end(ctr); err != nil {
			failed = append(failed, err)
			continue
		}
		delete(k.ending, d)
	}
	return errors.Join(failed...)
}

// recall finds the detours that permissions took in the time of an earlier
// agent. If the engine cannot be asked, they stay: without rules, they lead
// to a host that passes nothing on.
func (k *ICC) recall(ctx context.Context) error {
	switch {
	case len(k.allowed.list) == 0:
		return nil
	case k.Engine == nil:
		return fmt.Errorf("looking for detours: %w", docker.ErrUnavailable)
	}
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	if err := k.listNetworks(ctx); err != nil {
		return err
	}
	host, err := k.Ports.Read()
	if err != nil {
		return err
	}
	wanted := WantedBridges(k.networks, ICCDeny)
	for i := range wanted {
		wanted[i].Closed = true
	}
	look := newLookup(k.Engine)
	for _, p := range k.allowed.list {
		ways, _, err := k.ways(ctx, look, p, wanted)
		if err != nil {
			return err
		}
		for _, w := range ways {
			for end, ctr := range w.ends {
				k.ending[w.detour(end, host)] = ctr
			}
		}
	}
	return nil
}

// Namespace opens the network namespace of a running container; see
// openNamespace. The caller closes it.
func Namespace(ctr docker.Container) (*netns.Namespace, error) { return openNamespace(ctr) }
