package agent

import (
	"context"
	"fmt"
	"net/http"
	"slices"

	"github.com/linkrun/linkrun/bridge"
	"github.com/linkrun/linkrun/control"
)

var _ control.ICCHandler = (*ICC)(nil)

// ICC says what is wanted and what is found, per bridge.
func (k *ICC) ICC(ctx context.Context) (control.ICC, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := control.ICC{Mode: string(k.mode), Bridges: []control.ICCBridge{}, Allowed: []control.ICCPermission{}, Missing: []string{}}
	if k.networks == nil || k.mode == ICCOff {
		// Nobody has listed them yet, or goes on doing so. Without, there would
		// be nothing missing.
		if err := k.listNetworks(ctx); err != nil {
			return s, err
		}
	}
	wanted := WantedBridges(k.networks, k.mode)
	host, err := k.Ports.Read()
	if err != nil {
		return s, err
	}
	ruled := true
	if k.mode != ICCOff {
		ports, err := k.Ports.Check(closedDevices(wanted))
		if err != nil {
			return s, err
		}
		rules, err := k.Rules.Check(ctx, k.policy(wanted))
		if err != nil {
			return s, err
		}
		s.Missing = append(append(s.Missing, ports...), rules...)
		ruled = len(rules) == 0
	}
	for _, b := range wanted {
		s.Bridges = append(s.Bridges, reportBridge(b, host, ruled))
	}
	for _, p := range k.allowed.list {
		row := control.ICCPermission{Recipient: p.Recipient, Source: p.Source, Port: p.Port.String(), State: control.StateUp}
		if out, known := k.allowed.state[p]; !known || out.down != "" || k.mode == ICCOff {
			row.State, row.Reason = control.StateDown, out.down
		}
		s.Allowed = append(s.Allowed, row)
	}
	return s, nil
}

func reportBridge(b WantedBridge, host bridge.State, ruled bool) control.ICCBridge {
	row := control.ICCBridge{Network: b.Name, Bridge: b.Device, Wanted: "open", Why: b.Why, Found: "open"}
	for _, p := range host.Ports {
		if p.Bridge == b.Device && p.Guest() {
			row.Ports++
			if p.Isolated {
				row.Isolated++
			}
		}
	}
	if !b.Closed {
		return row
	}
	row.Wanted, row.Found = "closed", "closed"
	switch {
	case !slices.ContainsFunc(host.Bridges, func(h bridge.Bridge) bool { return h.Name == b.Device }):
		row.Found = "not there"
	case row.Isolated < row.Ports:
		row.Found = fmt.Sprintf("%d ports open", row.Ports-row.Isolated)
	case !ruled:
		row.Found = "rules missing"
	}
	return row
}

// ICCAllow lets a recipient reach a port of a source, from now on and until
// it is revoked, wherever the two are then.
func (k *ICC) ICCAllow(ctx context.Context, c control.ICCPermission) error {
	return k.change(ctx, c, func(p permission, there bool) ([]permission, error) {
		if there {
			return k.allowed.list, nil
		}
		list := append(slices.Clone(k.allowed.list), p)
		slices.SortFunc(list, permission.compare)
		return list, nil
	})
}

// ICCRevoke takes a permission back, also from what passes by it now.
func (k *ICC) ICCRevoke(ctx context.Context, c control.ICCPermission) error {
	return k.change(ctx, c, func(p permission, there bool) ([]permission, error) {
		if !there {
			return nil, &control.RefusedError{
				Status: http.StatusNotFound, Message: fmt.Sprintf("there is no %v", p),
				Hint: "`ambassador icc status` lists those there are",
			}
		}
		return slices.DeleteFunc(slices.Clone(k.allowed.list), func(q permission) bool { return p == q }), nil
	})
}

// change makes the list of permissions another one, and the host say so.
func (k *ICC) change(ctx context.Context, c control.ICCPermission, to func(p permission, there bool) ([]permission, error)) error {
	p, err := parsePermission(c)
	if err != nil {
		return &control.RefusedError{Status: http.StatusBadRequest, Message: err.Error(),
			Hint: "name the recipient, the source, and the source's port, such as 5432 or 53/udp"}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.mode == ICCOff {
		return &control.RefusedError{Status: http.StatusConflict, Message: "nothing is enforced, so there is nothing to allow",
			Hint: "start the ambassador with --icc=enforce or --icc=deny"}
	}
	list, err := to(p, slices.Contains(k.allowed.list, p))
	if err != nil {
		return err
	}
	if err := k.allowed.store(list); err != nil {
		return err
	}
	return k.settle(ctx, reasons{containers: true})
}
