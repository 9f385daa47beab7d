// Package doctor says whether anything passes between containers that should
// not: it judges what was read of an engine and its host, and tries, with
// throw-away ports on each bridge, what a container could try. It repairs
// nothing, and leaves nothing behind.
//
// It is handed what was read, and makes its own frames; it knows neither the
// ambassador nor the engine's API.
package doctor

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// How something was found out.
const (
	Read  = "read"  // in settings, which may not mean what they say
	Tried = "tried" // by sending frames and looking where they come out
)

// Verdict is what was found, worst last.
type Verdict string

// The verdicts.
const (
	OK      Verdict = "ok"
	Note    Verdict = "note"    // nothing wrong; to know
	Warning Verdict = "warning" // a setting that is not advisable, by which nothing passes as yet
	Unknown Verdict = "unknown" // could not be found out: no proof of anything
	Hole    Verdict = "hole"    // something passes, or is free to
)

// Finding is one line of the report.
type Finding struct {
	Verdict Verdict `json:"verdict"`
	How     string  `json:"how"`           // Read or Tried
	CIS     string  `json:"cis,omitempty"` // item of the CIS Docker Benchmark 1.6
	Check   string  `json:"check"`         // what was looked for, one word for machines
	Subject string  `json:"subject"`       // on what
	Detail  string  `json:"detail"`        // what was found

	// Frames are those that were sent, and that Detail is about, in words.
	Frames []string `json:"frames,omitempty"`

	Hint string `json:"hint,omitempty"`
}

// Report is what a doctor found.
type Report struct {
	Findings []Finding `json:"findings"`
}

// Add puts findings in.
func (r *Report) Add(f ...Finding) { r.Findings = append(r.Findings, f...) }

// Worst is the worst verdict, OK for a report without findings.
func (r *Report) Worst() Verdict {
	worst := OK
	for _, f := range r.Findings {
		if rank(f.Verdict) > rank(worst) {
			worst = f.Verdict
		}
	}
	return worst
}

// Passed says that nothing passes that should not, and that this was found
// out. With strict, a warning is no pass either.
func (r *Report) Passed(strict bool) bool {
	worst := rank(r.Worst())
	return worst < rank(Unknown) && (!strict || worst < rank(Warning))
}

func rank(v Verdict) int { return slices.Index([]Verdict{OK, Note, Warning, Unknown, Hole}, v) }

// WriteJSON writes the report for machines.
func (r *Report) WriteJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(struct {
		Worst Verdict `json:"worst"`
		Report
	}{r.Worst(), Report{slices.Concat([]Finding{}, r.Findings)}})
}

// WriteTable writes the report for people: first all that was read, then all
// that was tried, and last what is to be done. What passed all the same
// checks has one row.
func (r *Report) WriteTable(w io.Writer) error {
	for _, how := range []string{Read, Tried} {
		fmt.Fprintf(w, "%s\n\n", map[string]string{
			Read:  "READ: settings of the engine and the host",
			Tried: "TRIED: frames sent from throw-away ports",
		}[how])
		tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintln(tw, "VERDICT\tCIS\tCHECK\tSUBJECT\tFOUND")
		rows := r.rows(how)
		for _, f := range rows {
			verdict := string(f.Verdict)
			if f.bad() {
				verdict = strings.ToUpper(verdict)
			}
			fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\n", verdict, orDash(f.CIS), f.Check, f.Subject, f.Detail)
		}
		if len(rows) == 0 {
			fmt.Fprintln(tw, "-\t-\tnothing\t-\t-")
		}
		if err := tw.Flush(); err != nil {
			return err
		}
		fmt.Fprintln(w)
	}
	var hints []string
	for _, f := range r.Findings {
		if f.Hint != "" && !slices.Contains(hints, f.Hint) {
			hints = append(hints, f.Hint)
			fmt.Fprintf(w, "%s: %s\n", f.Check, f.Hint)
		}
	}
	if len(hints) > 0 {
		fmt.Fprintln(w)
	}
	_, err := fmt.Fprintln(w, r.summary())
	return err
}

// rows are the findings as a person reads them. Of frames by which nothing is
// wrong, all about one subject are one row, which names the checks: there are
// dozens. What is wrong is told in full.
func (r *Report) rows(how string) (rows []Finding) {
	type group struct{ verdict, subject, detail string }
	members := make(map[group][]Finding)
	at := make(map[group]int)
	for _, f := range r.Findings {
		switch {
		case f.How != how:
		case len(f.Frames) == 0:
			rows = append(rows, f)
		case f.bad():
			f.Detail += ": " + strings.Join(f.Frames, "; ")
			rows = append(rows, f)
		default:
			g := group{string(f.Verdict), f.Subject, f.Detail}
			if members[g] = append(members[g], f); len(members[g]) == 1 {
				at[g] = len(rows)
				rows = append(rows, f)
			}
		}
	}
	for g, all := range members {
		row := &rows[at[g]]
		if len(all) == 1 {
			row.Detail = fmt.Sprintf("%s; frames sent: %d", g.detail, len(row.Frames))
			continue
		}
		row.Check = fmt.Sprintf("%d checks", len(all))
		var names []string
		for _, f := range all {
			names = append(names, f.Check)
		}
		row.Detail += ": " + strings.Join(names, ", ")
	}
	return rows
}

// bad says that a finding is one that somebody should look at.
func (f Finding) bad() bool { return rank(f.Verdict) >= rank(Warning) }

func (r *Report) summary() string {
	count := make(map[Verdict]int)
	for _, f := range r.Findings {
		count[f.Verdict]++
	}
	tally := fmt.Sprintf("%d holes, %d unknown, %d warnings", count[Hole], count[Unknown], count[Warning])
	switch {
	case count[Hole] > 0:
		return "Something passes that should not: " + tally + "."
	case count[Unknown] > 0:
		return "It could not be found out whether something passes that should not: " + tally + "."
	}
	return "Nothing passes that should not: " + tally + "."
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
