package agent

import (
	"fmt"

	"github.com/linkrun/linkrun/docker"
)

// Mode says which bridges are to be closed.
type Mode string

// The modes.
const (
	ICCOff     Mode = "off"     // none
	ICCEnforce Mode = "enforce" // those whose network has ICC disabled
	ICCDeny    Mode = "deny"    // all, except those whose network is labelled
)

// Set is part of pflag's Value.
func (m *Mode) Set(s string) error {
	switch Mode(s) {
	case ICCOff, ICCEnforce, ICCDeny:
		*m = Mode(s)
		return nil
	}
	return fmt.Errorf("the mode has to be %s, %s or %s", ICCOff, ICCEnforce, ICCDeny)
}

func (m *Mode) String() string { return string(*m) }

// Type is part of pflag's Value.
func (m *Mode) Type() string { return "mode" }

// iccLabel on a network, with the value "allow", keeps its bridge open
// whatever is denied.
const iccLabel = "ambassador.icc"

// WantedBridge is a network's bridge and whether it is to be closed.
type WantedBridge struct {
	docker.NetworkInfo
	Closed  bool
	Allowed bool // by the label
	Why     string
}

// WantedBridges says of each network that is made of a bridge whether a mode
// closes it.
func WantedBridges(networks []docker.NetworkInfo, mode Mode) []WantedBridge {
	var found []WantedBridge
	for _, n := range networks {
		if n.Device == "" {
			continue
		}
		b := WantedBridge{NetworkInfo: n, Allowed: n.Labels[iccLabel] == "allow"}
		switch {
		case mode == ICCDeny && b.Allowed:
			b.Why = fmt.Sprintf("the network is labelled %s=allow", iccLabel)
		case mode == ICCDeny:
			b.Closed, b.Why = true, "every bridge is, with --icc=deny"
		case mode == ICCEnforce && !n.ICC:
			b.Closed, b.Why = true, "the network has ICC disabled"
		case mode == ICCEnforce:
			b.Why = "the network has ICC enabled"
		default:
			b.Why = "nothing is enforced"
		}
		found = append(found, b)
	}
	return found
}
