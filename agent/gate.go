package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/linkrun/linkrun/gate"
)

// openGate is the gate of one recipient, and the goroutine that serves it. The
// zero openGate is one that stays shut.
type openGate struct {
	cancel context.CancelFunc
	served sync.WaitGroup
}

// openGate lets the recipient's init go on, or tells it why it must not. A
// recipient that runs already never asks; its gate stays open for nothing
// until the recipient goes, since nobody can tell the two apart from here.
func (a *Agent) openGate(r *recipient) (*openGate, error) {
	ln, err := listenAt(r)
	if errors.Is(err, syscall.EADDRINUSE) {
		// Another ambassador has it, or somebody in the container. Whoever it
		// is may keep it for good: to go on trying would be to let them keep
		// the ambassador busy.
		a.log.Error("the gate is taken; the container's program will not start if it still waits for its links",
			"recipient", r.name(), "err", err)
		return new(openGate), nil
	}
	if err != nil {
		return nil, fmt.Errorf("opening the gate of %q: %w", r.name(), err)
	}
	log := a.log.With("recipient", r.name())
	first := r.view.Load().PID
	g := gate.Gate{
		Word:   func() gate.Word { return r.word(a.who.Major()) },
		Verify: func(pid, _ int) bool { return pid == first || parentOf(pid) == first },
		Log:    log,
	}
	ctx, cancel := context.WithCancel(context.Background())
	open := &openGate{cancel: cancel}
	open.served.Go(func() {
		switch err := g.Serve(ctx, ln); {
		case err == nil:
			log.Debug("the recipient has its word")
		case !errors.Is(err, context.Canceled):
			log.Error("the recipient gets no word", "err", err)
		}
	})
	return open, nil
}

func (g *openGate) close() {
	if g.cancel == nil {
		return
	}
	g.cancel()
	g.served.Wait()
}

func listenAt(r *recipient) (net.Listener, error) {
	fd, err := r.ns.ListenUnix(strings.TrimPrefix(gate.Address, "@"))
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), gate.Address)
	defer f.Close() // FileListener has a duplicate
	return net.FileListener(f)
}

// parentOf returns a process's parent, 0 when there is no such process. Under
// `docker run --init` the container's first process is Docker's init, and
// linkrun's is its child.
func parentOf(pid int) int {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0
	}
	// The second field, the program's name in brackets, may hold anything;
	// the last bracket ends it. State and parent follow (proc(5)).
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 2 {
		return 0
	}
	ppid, err := strconv.Atoi(string(fields[1]))
	if err != nil {
		return 0
	}
	return ppid
}
