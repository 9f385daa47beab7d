package agent

import (
	"cmp"
	"maps"
	"slices"

	"github.com/linkrun/linkrun/control"
	"github.com/linkrun/linkrun/relay"
)

// publish shows others the recipients there are now.
func (a *Agent) publish() {
	list := make([]*recipient, 0, len(a.recipients))
	for _, r := range a.recipients {
		list = append(list, r)
	}
	a.published.Store(&list)
}

// Links reports every link, by recipient and alias. It may be called at any
// time, by anyone.
func (a *Agent) Links() []control.Link {
	rows := []control.Link{}
	if list := a.published.Load(); list != nil {
		for _, r := range *list {
			rows = append(rows, r.report()...)
		}
	}
	slices.SortFunc(rows, func(x, y control.Link) int {
		return cmp.Or(cmp.Compare(x.Recipient, y.Recipient), cmp.Compare(x.Alias, y.Alias))
	})
	return rows
}

func (r *recipient) report() []control.Link {
	if r.wrong != nil {
		return []control.Link{{Recipient: r.name(), State: control.StateDown, Reason: r.wrong.Error()}}
	}
	rows := make([]control.Link, 0, len(r.links))
	for _, c := range r.links {
		rows = append(rows, c.report(r.name()))
	}
	return rows
}

func (c *carrier) report(recipient string) control.Link {
	stats := c.relay.Stats()
	row := control.Link{
		Recipient:   recipient,
		Alias:       c.link.Alias,
		Source:      c.link.Ref(),
		Address:     c.link.Addr.String(),
		Ports:       []string{},
		State:       control.StateDown,
		Reason:      "its source has not been looked up yet",
		Open:        stats.Open,
		Total:       int64(stats.Total),
		ToSource:    int64(stats.ToSource),
		ToRecipient: int64(stats.ToRecipient),
		Failures:    failures(stats.Failures),
	}
	v := c.view.Load()
	if v == nil {
		return row
	}
	for _, p := range v.res.source.Ports {
		row.Ports = append(row.Ports, p.String())
	}
	if name := v.res.source.Name; name != "" && c.remote == nil {
		row.Source = name // a renamed source is shown under the name it has now
	}
	if row.Reason = v.down(); row.Reason == "" {
		row.State = control.StateUp
	}
	return row
}

// failures names the causes for people, and leaves out what did not happen.
func failures(f relay.Failures) map[string]int64 {
	m := map[string]int64{
		"refused":          int64(f.Refused),
		"unreachable":      int64(f.Unreachable),
		"connect timeout":  int64(f.Timeout),
		"no socket":        int64(f.NoSocket),
		"connection limit": int64(f.Limit),
		"abandoned":        int64(f.Abandoned),
		"reset":            int64(f.Reset),
		"idle":             int64(f.Idle),
		"lifetime":         int64(f.Lifetime),
		"half-closed":      int64(f.HalfClosed),
		"cut":              int64(f.Cut),
		"dropped":          int64(f.Dropped),
		"other":            int64(f.Other),
	}
	maps.DeleteFunc(m, func(_ string, n int64) bool { return n == 0 })
	return m
}
