package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
)

// Exit codes, those of docker run.
const (
	exitRefused     = 125 // docker, or linkrun, did not start the container
	exitNotRunnable = 126 // the command cannot be executed
	exitNotFound    = 127 // the command does not exist
)

// problem is an error that a user reads: what went wrong, what to do about
// it, and the exit code.
type problem struct {
	err  error
	hint string
	code int
}

func (p *problem) Error() string { return p.err.Error() }
func (p *problem) Unwrap() error { return p.err }

// fail returns a problem with exit code 125.
func fail(hint, format string, args ...any) error {
	return &problem{err: fmt.Errorf(format, args...), hint: hint, code: exitRefused}
}

// report prints err, what is wrong in one line and what to do in another, and
// returns the exit code.
func report(w io.Writer, err error) int {
	if err == nil {
		return 0
	}
	if exit := exitStatus(0); errors.As(err, &exit) {
		return int(exit)
	}
	p := &problem{err: err, code: exitRefused}
	errors.As(err, &p)
	fmt.Fprintln(w, "linkrun:", oneLine(err.Error()))
	if p.hint != "" {
		fmt.Fprintln(w, "linkrun: hint:", oneLine(p.hint))
	}
	return p.code
}

func warn(w io.Writer, format string, args ...any) {
	fmt.Fprintln(w, "linkrun: warning:", oneLine(fmt.Sprintf(format, args...)))
}

func oneLine(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' }), " ")
}
