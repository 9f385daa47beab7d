package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/linkrun/linkrun/control"
	"github.com/linkrun/linkrun/policy"
	"github.com/linkrun/linkrun/tunnel"
)

// askTime bounds the question for a source on another host that somebody waits
// for at a terminal.
const askTime = 8 * time.Second

var _ control.SourceHandler = (*Agent)(nil)

// Source asks another host about a source, for a recipient that is not there
// yet. The error is a *control.RefusedError.
func (a *Agent) Source(ctx context.Context, host, source, recipient string) (control.Source, error) {
	refuse := func(status int, hint, format string, args ...any) (control.Source, error) {
		return control.Source{}, &control.RefusedError{Status: status, Message: fmt.Sprintf(format, args...), Hint: hint}
	}
	own := ""
	if a.Hosts != nil {
		own = a.Name()
	}
	switch {
	case own == "":
		return refuse(http.StatusConflict, "make one with `ambassador ca init`, or with `ambassador token` there and `ambassador join` here",
			"host %q cannot be reached: %v", host, errNoHosts)
	case host == own:
		return refuse(http.StatusBadRequest, "link to it without the host: "+source, "host %q is this host", host)
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	defer a.Hosts.Want(host)()
	st, err := a.openWatch(ctx, host, source, recipient, firstPatience)
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			err = a.away(host, err)
		}
		return refuse(http.StatusBadGateway, "does `ambassador serve --listen` run there, and is its address known here? See `ambassador peers`", "%v", err)
	}
	defer st.Abort()
	defer context.AfterFunc(ctx, st.Abort)()
	t, err := readTelling(st)
	switch {
	case err != nil:
		return refuse(http.StatusBadGateway, "see the log of the ambassador there", "asking host %q about source %q: %v", host, source, err)
	case t.Name == "" && t.Status == tunnel.NoSource:
		return refuse(http.StatusNotFound, fmt.Sprintf("there, a container of that name has to allow it: --label %s=%s/%s", policy.Label, own, recipient),
			"host %q has no source %q that %q may be linked to", host, source, recipient)
	case t.Name == "":
		return refuse(http.StatusBadGateway, "see the log of the ambassador there", "%s", onHost(t.Reason, host))
	}
	return control.Source{Name: t.Name, Hostname: t.Hostname, Env: t.Env, Ports: t.Ports, Down: t.Reason}, nil
}
