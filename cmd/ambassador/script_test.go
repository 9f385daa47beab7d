package main

import (
	"context"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/linkrun/linkrun/control"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"ambassador": main})
}

// The scripts say what a user sees. Besides the usual commands they have
//
//	agent         a fake ambassador at $AMBASSADOR_DIR
//	listen DIR    what serve does for other hosts, for the identity in DIR, at
//	              the address $ADDR
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			short, err := os.MkdirTemp("", "script") // a socket's name must not be long
			if err != nil {
				return err
			}
			env.Defer(func() { os.RemoveAll(short) })
			env.Setenv("AMBASSADOR_DIR", filepath.Join(short, "ambassador"))
			env.Setenv("DOCKER_HOST", "unix://"+filepath.Join(short, "docker.sock"))
			return nil
		},
		Condition: func(cond string) (bool, error) { return cond == "root" && os.Geteuid() == 0, nil },
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"agent": func(ts *testscript.TestScript, _ bool, _ []string) {
				server, err := control.Listen(ts.Getenv("AMBASSADOR_DIR"), &fakeAgent{}, slog.New(slog.DiscardHandler))
				ts.Check(err)
				ctx, cancel := context.WithCancel(context.Background())
				done := make(chan struct{})
				go func() {
					defer close(done)
					server.Serve(ctx)
				}()
				ts.Defer(func() { cancel(); <-done })
			},
			"listen": func(ts *testscript.TestScript, _ bool, args []string) {
				ctx, cancel := context.WithCancel(context.Background())
				h, err := openHosts(ctx, hostFlags{listen: []string{"127.0.0.1:0"}, dir: ts.MkAbs(args[0])}, slog.New(slog.DiscardHandler))
				ts.Check(err)
				done := make(chan struct{})
				go func() {
					defer close(done)
					h.Run(ctx)
				}()
				ts.Defer(func() { cancel(); <-done })
				ts.Setenv("ADDR", h.addresses()[0])
			},
		},
	})
}

func (a *fakeAgent) Peers() control.Peers {
	until := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	return control.Peers{
		Self: control.Self{ID: "spiffe://ambassador/host/hosta", Until: until, Authority: "hosta", Listens: []string{"[::]:7443"}},
		Hosts: []control.Peer{
			{Host: "hostb", State: control.StateUp, Since: time.Now(), Address: "192.0.2.2:7443", RTT: 312345, Streams: 4, Dialed: true, Wanted: true},
			{Host: "hostc", State: control.StateDown, Reason: "dial tcp 192.0.2.3:7443: connect: connection refused", Wanted: true},
		},
	}
}

// fakeAgent has two bridges, and keeps one permission.
type fakeAgent struct {
	allowed []control.ICCPermission
	off     bool
}

func (a *fakeAgent) Status() control.Status { return control.Status{} }
func (a *fakeAgent) Links() []control.Link  { return nil }

func (a *fakeAgent) ICC(context.Context) (control.ICC, error) {
	return control.ICC{
		Mode: "deny",
		Bridges: []control.ICCBridge{
			{Network: "bridge", Bridge: "docker0", Wanted: "closed", Found: "closed", Ports: 2, Isolated: 2, Why: "every bridge is, with --icc=deny"},
			{Network: "lab", Bridge: "br-1", Wanted: "open", Found: "open", Ports: 1, Why: "the network is labelled ambassador.icc=allow"},
		},
		Allowed: a.allowed,
		Missing: []string{"ip: made the jump from DOCKER-USER"},
	}, nil
}

func (a *fakeAgent) ICCOff(context.Context) (removed []string, err error) {
	if !a.off {
		removed = []string{"ip: removed chain AMBASSADOR-ICC: 3 rules", "gave port veth1 of bridge docker0 back"}
	}
	a.off = true
	return removed, nil
}

func (a *fakeAgent) ICCAllow(_ context.Context, p control.ICCPermission) error {
	p.State = control.StateUp
	if p.Source == "gone" {
		p.State, p.Reason = control.StateDown, `there is no container "gone"`
	}
	a.allowed = append(a.allowed, p)
	return nil
}

func (a *fakeAgent) ICCRevoke(_ context.Context, p control.ICCPermission) error {
	for i, q := range a.allowed {
		if q.Recipient == p.Recipient && q.Source == p.Source && q.Port == p.Port {
			a.allowed = append(a.allowed[:i], a.allowed[i+1:]...)
			return nil
		}
	}
	return &control.RefusedError{Status: http.StatusNotFound, Message: "there is no such permission", Hint: "`ambassador icc status` lists those there are"}
}
