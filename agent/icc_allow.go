package agent

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/linkrun/linkrun/bridge"
	"github.com/linkrun/linkrun/control"
	"github.com/linkrun/linkrun/docker"
	"github.com/linkrun/linkrun/iptables"
	"github.com/linkrun/linkrun/link"
)

// permission lets a recipient reach one port of a source.
type permission struct {
	Recipient, Source string // names
	Port              link.Port
}

func parsePermission(c control.ICCPermission) (permission, error) {
	port, err := link.ParsePort(c.Port)
	switch {
	case err != nil:
		return permission{}, err
	case port.Proto != link.TCP && port.Proto != link.UDP:
		return permission{}, fmt.Errorf("port %s is neither tcp nor udp", port)
	case c.Recipient == "" || c.Source == "":
		return permission{}, errors.New("it takes a recipient and a source")
	case c.Recipient == c.Source:
		return permission{}, fmt.Errorf("%q is both the recipient and the source", c.Source)
	}
	return permission{c.Recipient, c.Source, port}, nil
}

func (p permission) String() string {
	return fmt.Sprintf("permission of %s to reach %s of %s", p.Recipient, p.Port, p.Source)
}

func (p permission) compare(q permission) int {
	return cmp.Or(strings.Compare(p.Recipient, q.Recipient), strings.Compare(p.Source, q.Source), p.Port.Compare(q.Port))
}

// permissions are those that were given, and what became of each. They are
// kept in a file: unlike links, no label of a container tells of them.
type permissions struct {
	file  string
	list  []permission // sorted
	state map[permission]outcome
}

// outcome is what a permission comes to at the moment.
type outcome struct {
	rules []iptables.Allow
	down  string // why nothing passes; "" if it does
}

const permissionsFile = "icc.json"

func (s *permissions) load(dir string) error {
	s.file, s.list, s.state = filepath.Join(dir, permissionsFile), nil, nil
	text, err := os.ReadFile(s.file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var kept []control.ICCPermission
	if err == nil {
		err = json.Unmarshal(text, &kept)
	}
	for _, c := range kept {
		var p permission
		if p, err = parsePermission(c); err != nil {
			break
		}
		s.list = append(s.list, p)
	}
	if err != nil {
		return fmt.Errorf("reading the permissions in %q: %w", s.file, err)
	}
	slices.SortFunc(s.list, permission.compare)
	return nil
}

// store keeps a list, all of it or the one before.
func (s *permissions) store(list []permission) error {
	kept := []control.ICCPermission{}
	for _, p := range list {
		kept = append(kept, control.ICCPermission{Recipient: p.Recipient, Source: p.Source, Port: p.Port.String()})
	}
	text, err := json.MarshalIndent(kept, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(s.file), 0o700); err != nil {
		return fmt.Errorf("keeping the permissions: %w", err)
	}
	next := s.file + ".next"
	if err := os.WriteFile(next, append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("keeping the permissions: %w", err)
	}
	if err := os.Rename(next, s.file); err != nil {
		return fmt.Errorf("keeping the permissions: %w", err)
	}
	s.list = list
	return nil
}

// clear forgets all of them.
func (s *permissions) clear() error {
	s.list, s.state = nil, nil
	if err := os.Remove(s.file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forgetting the permissions: %w", err)
	}
	return nil
}

func (s *permissions) rules() (all []iptables.Allow) {
	for _, p := range s.list {
		all = append(all, s.state[p].rules...)
	}
	return all
}

// way is a bridge over which a permission can be made good.
type way struct {
	ends   [2]docker.Container // recipient, source
	addrs  [2]netip.Addr       // of one family
	bridge WantedBridge
}

// ways finds the ways of a permission. Without any, down says why nothing
// passes; it is empty if everything does, the bridge being open. The error is
// the engine's, and a reason to try again.
func (k *ICC) ways(ctx context.Context, look *lookup, p permission, wanted []WantedBridge) (ways []way, down string, err error) {
	var ends [2]docker.Container
	for i, name := range []string{p.Recipient, p.Source} {
		res, err := resolve(ctx, look, link.Link{Source: name})
		switch {
		case err != nil:
			return nil, "", err
		case res.down != "":
			return nil, res.down, nil
		}
		ends[i] = res.source
	}
	down = "the two have no bridge in common"
	for _, b := range wanted {
		recipient, ok1 := endpoint(ends[0], b.ID)
		source, ok2 := endpoint(ends[1], b.ID)
		switch why := k.impassable(b); {
		case !ok1 || !ok2:
		case !b.Closed:
			return nil, "", nil
		case why != "":
			down = why
		default:
			for _, addrs := range [][2]netip.Addr{{recipient.IPv4, source.IPv4}, {recipient.IPv6, source.IPv6}} {
				if addrs[0].IsValid() && addrs[1].IsValid() {
					ways = append(ways, way{ends, addrs, b})
				}
			}
		}
	}
	return ways, down, nil
}

func endpoint(ctr docker.Container, network string) (docker.Network, bool) {
	i := slices.IndexFunc(ctr.Networks, func(n docker.Network) bool { return n.ID == network })
	if i < 0 {
		return docker.Network{}, false
	}
	return ctr.Networks[i], true
}

// impassable says why nothing can be allowed on a closed bridge, if so.
func (k *ICC) impassable(b WantedBridge) string {
	switch {
	case !b.ICC && strings.HasPrefix(k.Who.Firewall, "nftables"):
		// A packet that one table accepts is still dropped by another.
		return "the engine's nftables rules refuse it, and nothing can overrule them; use a link"
	case !k.Ports.Netfilter():
		return "bridge netfilter is not there, without which rules cannot tell who sends (modprobe br_netfilter)"
	case !k.Ports.Forwards():
		return "the host does not forward packets (net.ipv4.ip_forward)"
	}
	return ""
}

// resolve finds out what each permission comes to now, and makes the detours
// that it takes.
func (k *ICC) resolve(ctx context.Context, wanted []WantedBridge) error {
	state := make(map[permission]outcome, len(k.allowed.list))
	current := make(map[detour]docker.Container)
	if len(k.allowed.list) > 0 {
		ctx, cancel := context.WithTimeout(ctx, askFor)
		defer cancel()
		host, err := k.Ports.Read()
		if err != nil {
			return err
		}
		look := newLookup(k.Engine)
		for _, p := range k.allowed.list {
			ways, down, err := k.ways(ctx, look, p, wanted)
			out := outcome{down: down}
			for _, w := range ways {
				if err == nil {
					err = k.open(w, p.Port, host, &out, current)
				}
			}
			if err != nil {
				return fmt.Errorf("following the %v: %w", p, err)
			}
			if before, known := k.allowed.state[p]; !known || before.down != out.down {
				k.Log.Info("permission", "recipient", p.Recipient, "source", p.Source, "port", p.Port, "down", out.down)
			}
			state[p] = out
		}
	}
	k.allowed.state = state
	for d, ctr := range k.detours {
		if _, still := current[d]; !still {
			k.ending[d] = ctr
		}
	}
	k.detours = current
	return nil
}

// open makes the detours of a way, and adds its rule to the outcome. A
// container that has just stopped is no error.
func (k *ICC) open(w way, port link.Port, host bridge.State, out *outcome, made map[detour]docker.Container) error {
	rule := iptables.Allow{Bridge: w.bridge.Device, Port: port}
	for i, end := range []*iptables.Endpoint{&rule.Recipient, &rule.Source} {
		d := w.detour(i, host)
		end.Addr = w.addrs[i]
		index, err := d.set(w.ends[i])
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, bridge.ErrNoAddress) {
			out.down = fmt.Sprintf("container %q has just stopped", w.ends[i].Name)
			return nil
		}
		if err != nil {
			return err
		}
		made[d] = w.ends[i]
		at := slices.IndexFunc(host.Ports, func(p bridge.Port) bool { return p.Index == index && p.Bridge == w.bridge.Device })
		if at < 0 {
			out.down = fmt.Sprintf("container %q is not on bridge %q any more", w.ends[i].Name, w.bridge.Device)
			return nil
		}
		end.Device = host.Ports[at].Name
	}
	out.rules, out.down = append(out.rules, rule), ""
	return nil
}
