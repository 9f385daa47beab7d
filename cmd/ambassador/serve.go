package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"

	"github.com/linkrun/linkrun/agent"
	"github.com/linkrun/linkrun/bridge"
	"github.com/linkrun/linkrun/control"
	"github.com/linkrun/linkrun/docker"
	"github.com/linkrun/linkrun/iptables"
	"github.com/linkrun/linkrun/policy"
	"github.com/linkrun/linkrun/relay"
)

const serveUsage = `Usage: ambassador serve [flags]

Carries the links of one Docker Engine, in the foreground, until it is told to
stop. Containers keep running when it stops; their links refuse connections
until it is back, and it finds them again by their labels.

It also keeps containers from reaching each other by anything but links, on the
bridges that are closed: by firewall rules, and by isolating the ports of the
bridge. That stands when it stops; only ` + "`ambassador icc off`" + ` removes it.

Flags:
  -H, --host HOST    the engine (default DOCKER_HOST, else
                     unix:///var/run/docker.sock)
      --dir DIR      where it keeps its socket and lock
                     (default AMBASSADOR_DIR, else /run/ambassador)
      --icc MODE     which bridges are closed (default enforce):
                     off      none; what stands already is left alone
                     enforce  those whose network has ICC disabled
                     deny     all, except networks labelled ambassador.icc=allow
      --workers N    threads that move bytes (default: one per CPU, at most 4)
      --log LEVEL    debug, info, warn or error (default info)

With other hosts, which takes an identity (ambassador ca, ambassador join):
      --listen ADDR  let them call, at ADDR:7443, ADDR:PORT, or PORT of every
                     address; may be given more than once
      --peer HOST=ADDR
                     where a host is; others are called by their names, and the
                     one whose authority this host has joined is known; may be
                     given more than once
      --hold D       how long connections to a host that is down are held before
                     they are refused (default 0s)
      --policy FILE  rules about who of other hosts may connect to what here,
                     one a line, besides what the sources' labels allow:
                     allow|deny HOST/RECIPIENT SOURCE[:PORT[/PROTO]];
                     read again when it changes, which cuts what is denied then
      --identity DIR where the identity of this host is kept
                     (default /var/lib/ambassador/identity)
      --cert FILE --key FILE --roots FILE
                     an identity of your own making instead, in PEM, with one
                     URI spiffe://DOMAIN/host/NAME; read again when it changes

Example:
  $ sudo ambassador serve --listen 7443 --peer hostb=192.0.2.2
`

func serve(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	host := flags.StringP("host", "H", docker.HostFromEnvironment(), "")
	dir := flags.String("dir", control.Dir(), "")
	workers := flags.Int("workers", 0, "")
	icc := agent.ICCEnforce
	flags.Var(&icc, "icc", "")
	level := slog.LevelInfo
	flags.TextVar(&level, "log", level, "")
	var others hostFlags
	others.add(flags)
	rules := flags.String("policy", "", "")
	if err := parse(flags, args, stdout, serveUsage); err != nil {
		return err
	}
	if err := others.check(); err != nil {
		return err
	}
	others.dir = cmp.Or(others.dir, identityDir(*dir))
	if os.Geteuid() != 0 {
		return hinted{errors.New("serving links needs root: it makes sockets in the containers' network namespaces"),
			"run it as root, or let systemd start ambassador.service"}
	}
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))

	engine, err := docker.Dial(ctx, *host)
	if err != nil {
		return noEngine(err)
	}
	defer engine.Close()

	hosts, err := openHosts(ctx, others, log)
	if err != nil {
		return err
	}
	defer hosts.Close()
	var file *policy.File
	if *rules != "" {
		if file, err = policy.OpenFile(*rules); err != nil {
			return hinted{err, "correct it: a rule is allow|deny HOST/RECIPIENT SOURCE[:PORT[/PROTO]], and '#' begins a comment"}
		}
	}
	return serveEngine(ctx, engine, *dir, *workers, icc, hosts, file, log)
}

// policyEvery is how often the policy file is looked at. What it denies is cut
// after two looks.
const policyEvery = 250 * time.Millisecond

// serveEngine brings the parts up in the order of their needs and down in the
// reverse one.
func serveEngine(ctx context.Context, engine *docker.Client, dir string, workers int, mode agent.Mode, hosts *hosts, rules *policy.File, log *slog.Logger) error {
	if _, err := relay.RaiseFileLimit(); err != nil {
		log.Warn("the number of connections stays limited", "err", err)
	}
	mover := &relay.Engine{Workers: workers, Log: log}
	if err := mover.Start(); err != nil {
		return fmt.Errorf("starting the relay: %w", err)
	}
	defer mover.Close()

	who, err := engine.Engine(ctx)
	if err != nil {
		return noEngine(err)
	}
	bridges, err := bridge.Open(log)
	if err != nil {
		return err
	}
	defer bridges.Close()
	a := agent.New(engine, who, mover, log)
	icc := newICC(dir, bridges, log)
	icc.Engine, icc.Who = engine, who
	if err := icc.Begin(mode); err != nil {
		return err
	}
	a.Settled = icc.Settled
	a.Hosts, a.Name, a.Hold, a.Policy = hosts, hosts.Name, hosts.Hold > 0, rules
	hosts.Handle, hosts.Changed = a.Answer, a.HostChanged
	server, err := control.Listen(dir, newAnswers(a, icc, hosts, engine.Host(), who), log)
	if err != nil {
		return noDir(err, dir)
	}
	defer server.Close()

	log.Info("serving links", "engine", engine.Host(), "engine_version", who.Version, "dir", dir, "icc", mode, "version", version())
	var notReady atomic.Int32
	ready := func() {
		if notReady.Add(-1) > 0 {
			return
		}
		// Only now: whoever is ordered after the unit may count on the links,
		// and on nothing else passing. Without systemd this does nothing.
		if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
			log.Warn("telling systemd", "err", err)
		}
		log.Info("ready")
	}
	notReady.Store(2)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return server.Serve(ctx) })
	g.Go(func() error { return hosts.Run(ctx) })
	if rules != nil {
		g.Go(func() error {
			rules.Follow(ctx, policyEvery, a.PolicyChanged, log)
			return nil
		})
	}
	g.Go(func() error { return icc.Run(ctx, ready) })
	g.Go(func() error {
		return a.Run(ctx, func() {
			log.Info("every link found is carried")
			ready()
		})
	})
	err = g.Wait()
	daemon.SdNotify(false, daemon.SdNotifyStopping)
	log.Info("stopped")
	return err
}

// newICC is the parts of what closes bridges, without an engine.
func newICC(dir string, bridges *bridge.Host, log *slog.Logger) *agent.ICC {
	return &agent.ICC{
		Rules: new(iptables.Firewall),
		Ports: bridges,
		Dir:   control.StateDir(dir),
		Log:   log,
	}
}

// answers is what the control socket tells.
type answers struct {
	*agent.Agent
	control.ICCHandler
	control.PeersHandler
	status control.Status
}

func newAnswers(a *agent.Agent, icc control.ICCHandler, peers control.PeersHandler, host string, who docker.Engine) answers {
	return answers{a, icc, peers, control.Status{
		Version:  version(),
		PID:      os.Getpid(),
		Engine:   host,
		EngineID: who.ID,
		Since:    time.Now(),
	}}
}

func (a answers) Status() control.Status { return a.status }

func noEngine(err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return hinted{err, "run it as root"}
	case errors.Is(err, docker.ErrUnavailable):
		return hinted{err, "start the engine, or name it with --host or DOCKER_HOST"}
	}
	return hinted{err, "see `docker info`, and the log of the engine"}
}

func noDir(err error, dir string) error {
	switch {
	case errors.Is(err, control.ErrLocked):
		return hinted{err, "stop it first, or give this one a directory of its own with --dir"}
	case errors.Is(err, fs.ErrPermission), errors.Is(err, fs.ErrNotExist):
		return hinted{err, fmt.Sprintf("make %q writable for root, or choose another with --dir", dir)}
	}
	return err
}
