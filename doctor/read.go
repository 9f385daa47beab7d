package doctor

import (
	"fmt"
	"slices"
	"strings"
)

// Judge says what the facts mean.
func Judge(f Facts) []Finding {
	var found []Finding
	for _, judge := range []func(Facts) []Finding{
		judgeEngine, judgeAmbassador, judgeBridges, judgeCapabilities, judgePublished, judgeHostNetwork, judgeDefaultBridge, judgeSockets,
	} {
		found = append(found, judge(f)...)
	}
	for i := range found {
		found[i].How = Read
	}
	return found
}

func judgeEngine(f Facts) []Finding {
	e := f.Engine
	about := "engine " + e.Version
	if e.Firewall != "" {
		about += ", firewall backend " + e.Firewall
	}
	found := []Finding{{Verdict: Note, Check: "engine", Subject: "engine", Detail: about}}
	add := func(cis, check, detail string, bad bool, hint string) {
		finding := Finding{Verdict: OK, CIS: cis, Check: check, Subject: "engine", Detail: detail}
		if bad {
			finding.Verdict, finding.Hint = Warning, hint
		}
		found = append(found, finding)
	}
	switch {
	case e.FlagsUnknown != "":
		for _, item := range [][2]string{{"2.4", "iptables"}, {"2.16", "userland-proxy"}} {
			found = append(found, Finding{Verdict: Note, CIS: item[0], Check: item[1], Subject: "engine", Detail: "not known: " + e.FlagsUnknown})
		}
	default:
		add("2.4", "iptables", fmt.Sprintf("the engine changes firewall rules: %t", e.ManagesRules), !e.ManagesRules,
			"start the engine without --iptables=false, or its own isolation of networks is not there")
		add("2.16", "userland-proxy", fmt.Sprintf("the engine's proxy for published ports is on: %t", e.UserlandProxy), e.UserlandProxy,
			"start the engine with --userland-proxy=false: with the proxy, a container reaches what others publish by way of the host, whatever its bridge denies")
	}
	if e.Forwarding {
		add("", "forwarding", "the host forwards packets (net.ipv4.ip_forward)", false, "")
	} else {
		add("", "forwarding", "the host forwards no packets (net.ipv4.ip_forward): containers do not reach the outside", true, "sysctl -w net.ipv4.ip_forward=1")
	}
	return found
}

func judgeAmbassador(f Facts) []Finding {
	finding := Finding{CIS: "2.2", Check: "enforcement", Subject: "ambassador", Verdict: OK}
	closed := slices.ContainsFunc(f.Bridges, func(b Bridge) bool { return b.Closed })
	switch {
	case f.Enforced == "":
		finding.Detail = "no ambassador serves: what it left is enforced, and new containers are not"
	case f.Enforced == "off":
		finding.Detail = "the ambassador serves with --icc=off"
	default:
		finding.Detail = "the ambassador serves with --icc=" + f.Enforced
	}
	if (f.Enforced == "" || f.Enforced == "off") && closed {
		finding.Verdict, finding.Hint = Warning, "ambassador serve --icc=enforce"
	}
	found := []Finding{finding}
	for _, what := range f.Missing {
		found = append(found, Finding{
			Verdict: Hole, CIS: "2.2", Check: "enforcement", Subject: "host", Detail: "missing: " + what,
			Hint: "ambassador serve puts it right; `ambassador icc status` shows what is wanted and what is found",
		})
	}
	return found
}

func judgeBridges(f Facts) []Finding {
	var found []Finding
	for _, b := range f.Bridges {
		subject := b.subject()
		icc := Finding{Verdict: OK, CIS: "2.2", Check: "icc", Subject: subject, Detail: "closed: " + b.Why}
		switch {
		case b.Closed:
		case b.Allowed:
			icc.Verdict, icc.Detail = Note, "open: "+b.Why
		case b.Default:
			icc.Verdict, icc.Detail = Hole, "open: "+b.Why
			icc.Hint = "ambassador serve --icc=deny, or start the engine with --icc=false"
		default:
			icc.Verdict, icc.Detail = Warning, "open: "+b.Why
			icc.Hint = "ambassador serve --icc=deny, or create the network with -o com.docker.network.bridge.enable_icc=false; if it is meant to be open, label it ambassador.icc=allow"
		}
		found = append(found, icc)
		if !b.Closed {
			continue
		}
		for _, port := range b.Open {
			found = append(found, Finding{Verdict: Hole, CIS: "2.2", Check: "isolation", Subject: subject, Detail: "port " + port + " is not isolated",
				Hint: "ambassador serve isolates the ports of closed bridges, and those that appear"})
		}
		if len(b.Open) == 0 {
			found = append(found, Finding{Verdict: OK, CIS: "2.2", Check: "isolation", Subject: subject, Detail: "every container's port is isolated"})
		}
		netfilter := Finding{Verdict: OK, CIS: "2.2", Check: "bridge-netfilter", Subject: subject, Detail: "frames pass the host's rules"}
		if !b.Netfilter {
			netfilter.Verdict, netfilter.Detail = Warning, "frames do not pass the host's rules: the isolation of ports is all there is"
			netfilter.Hint = "modprobe br_netfilter, and see /sys/class/net/BRIDGE/bridge/nf_call_iptables"
		}
		found = append(found, netfilter)
	}
	for _, name := range f.Skipped {
		found = append(found, Finding{Verdict: Note, Check: "icc", Subject: "network " + name, Detail: "no bridge of this host: nothing was tried, nothing is enforced"})
	}
	return found
}

func (b Bridge) subject() string {
	return fmt.Sprintf("bridge %s (network %s)", b.Device, b.Network)
}

// perContainer makes one finding for each container that has what is looked
// for, or one that says nobody does.
func perContainer(f Facts, proto Finding, none string, what func(Container) string) []Finding {
	var found []Finding
	for _, c := range f.Containers {
		if detail := what(c); detail != "" {
			finding := proto
			finding.Subject, finding.Detail = "container "+c.Name, detail
			found = append(found, finding)
		}
	}
	if len(found) == 0 {
		found = append(found, Finding{Verdict: OK, CIS: proto.CIS, Check: proto.Check, Subject: "containers", Detail: none})
	}
	return found
}

func judgeCapabilities(f Facts) []Finding {
	return perContainer(f, Finding{Verdict: Warning, CIS: "5.4", Check: "net-raw",
		Hint: "run containers with --cap-drop NET_RAW"},
		"none may send raw frames",
		func(c Container) string {
			switch {
			case c.Privileged:
				return "is privileged, so it may send raw frames, and leave its container"
			case c.NetRaw:
				return "may send raw frames (NET_RAW)"
			}
			return ""
		})
}

func judgePublished(f Facts) []Finding {
	found := perContainer(f, Finding{Verdict: Note, CIS: "5.9", Check: "published-ports"}, "no ports are published",
		func(c Container) string {
			var ports []string
			for _, p := range c.Published {
				ports = append(ports, fmt.Sprintf("%s -> %s", p.address(), p.Port))
			}
			if len(ports) == 0 {
				return ""
			}
			return "publishes " + strings.Join(ports, ", ")
		})
	return append(found, perContainer(f, Finding{Verdict: Warning, CIS: "5.14", Check: "published-everywhere",
		Hint: "publish on one address: -p ADDRESS:PORT:PORT"},
		"no port is published on every interface",
		func(c Container) string {
			var ports []string
			for _, p := range c.Published {
				if p.On.IsUnspecified() {
					ports = append(ports, p.address())
				}
			}
			if len(ports) == 0 {
				return ""
			}
			return "publishes on every interface, so that other containers reach it by way of the host, too: " + strings.Join(ports, ", ")
		})...)
}

func (p Published) address() string {
	host := p.On.String()
	if p.On.Is6() {
		host = "[" + host + "]"
	}
	return fmt.Sprintf("%s:%d", host, p.Host)
}

func judgeHostNetwork(f Facts) []Finding {
	return perContainer(f, Finding{Verdict: Hole, CIS: "5.10", Check: "host-network",
		Hint: "run it on a network of its own, and link it to what it needs"},
		"none is on the host's network",
		func(c Container) string {
			if !c.HostNetwork {
				return ""
			}
			return "is on the host's network: it reaches every container as the host does"
		})
}

func judgeDefaultBridge(f Facts) []Finding {
	for _, b := range f.Bridges {
		if b.Default && len(b.Containers) > 0 {
			return []Finding{{Verdict: Warning, CIS: "5.30", Check: "default-bridge", Subject: b.subject(),
				Detail: "is used by " + strings.Join(b.Containers, ", "),
				Hint:   "create networks, and run containers on those"}}
		}
	}
	return []Finding{{Verdict: OK, CIS: "5.30", Check: "default-bridge", Subject: "containers", Detail: "none is on the engine's default bridge"}}
}

func judgeSockets(f Facts) []Finding {
	return perContainer(f, Finding{Verdict: Hole, CIS: "5.32", Check: "engine-socket",
		Hint: "do not mount the engine's socket: who has it is root on the host"},
		"none has the engine's socket",
		func(c Container) string {
			if len(c.Sockets) == 0 {
				return ""
			}
			return "has the engine's socket, by which it reaches everything: " + strings.Join(c.Sockets, ", ")
		})
}
