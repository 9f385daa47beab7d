package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/pflag"

	"github.com/linkrun/linkrun/agent"
	"github.com/linkrun/linkrun/control"
	"github.com/linkrun/linkrun/docker"
	"github.com/linkrun/linkrun/doctor"
)

const doctorUsage = `Usage: ambassador doctor [flags]

Says whether anything passes between containers that should not. It reads the
settings of the engine and the host, and names the items of the CIS Docker
Benchmark they belong to. Then it tries: from throw-away ports on each bridge it
sends frames of every kind to each other, to containers and to the ports of
links, and looks where they come out. It leaves nothing behind.

Exits with 0 only if nothing passes that should not.

Flags:
  -H, --host HOST   the engine (default DOCKER_HOST, else
                    unix:///var/run/docker.sock); it has to be on this host
      --dir DIR     where the ambassador keeps its socket
                    (default AMBASSADOR_DIR, else /run/ambassador)
      --icc MODE    which bridges are meant to be closed, if no ambassador
                    enforces anything: enforce or deny (default enforce)
      --strict      do not pass with warnings either
      --json        print JSON

Example:
  $ sudo ambassador doctor && echo nothing passes
`

func runDoctor(ctx context.Context, args []string, stdout, _ io.Writer) error {
	flags := pflag.NewFlagSet("doctor", pflag.ContinueOnError)
	host := flags.StringP("host", "H", docker.HostFromEnvironment(), "")
	dir := flags.String("dir", control.Dir(), "")
	mode := agent.ICCEnforce
	flags.Var(&mode, "icc", "")
	strict := flags.Bool("strict", false, "")
	asJSON := flags.Bool("json", false, "")
	if err := parse(flags, args, stdout, doctorUsage); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return hinted{errors.New("the doctor needs root: it makes ports on bridges, and sends raw frames"), "run it as root"}
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	engine, err := docker.Dial(ctx, *host)
	if err != nil {
		return noEngine(err)
	}
	defer engine.Close()
	facts, err := examine(ctx, engine, *dir, mode)
	if err != nil {
		return err
	}
	var report doctor.Report
	report.Add(doctor.Judge(facts)...)
	tried, err := doctor.Try(ctx, facts)
	report.Add(tried...)
	if err != nil {
		report.Add(doctor.Finding{Verdict: doctor.Unknown, How: doctor.Tried, Check: "trial", Subject: "host", Detail: "not finished: " + err.Error()})
	}
	write := report.WriteTable
	if *asJSON {
		write = report.WriteJSON
	}
	if err := write(stdout); err != nil {
		return err
	}
	if !report.Passed(*strict) {
		return fmt.Errorf("the worst that was found is a %s", report.Worst())
	}
	return nil
}
