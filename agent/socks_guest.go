package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/linkrun/linkrun/control"
	"github.com/linkrun/linkrun/socks"
)

var _ control.ConnectHandler = (*Agent)(nil)

// Connect opens the way to a port of what a recipient calls host, for an
// operator who looks at the recipient's links from outside. It reaches what a
// SOCKS5 address of the recipient's would, whether that has one or not. The
// error is a *control.RefusedError.
func (a *Agent) Connect(ctx context.Context, recipient, host string, port uint16) (control.Way, error) {
	r := a.recipientNamed(recipient)
	if r == nil {
		return nil, &control.RefusedError{Status: http.StatusNotFound, Message: fmt.Sprintf("there is no recipient %q", recipient),
			Hint: "`ambassador links` lists those there are"}
	}
	ctx, cancel := context.WithTimeout(ctx, socks.DefaultTimeout)
	defer cancel()
	way, err := a.way(ctx, r, host, port)
	if err != nil {
		return nil, &control.RefusedError{Status: statusOf(err), Message: err.Error()}
	}
	a.log.Info("an operator connects", "recipient", recipient, "host", host, "port", port)
	return guestWay{way, r}, nil
}

func statusOf(err error) int {
	switch {
	case errors.Is(err, socks.ErrNotAllowed):
		return control.StatusNotAllowed
	case errors.Is(err, syscall.ECONNREFUSED):
		return control.StatusRefused
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.ETIMEDOUT),
		errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return control.StatusUnreachable
	}
	return http.StatusInternalServerError
}

func (a *Agent) recipientNamed(name string) *recipient {
	if list := a.published.Load(); list != nil {
		for _, r := range *list {
			if r.name() == name {
				return r
			}
		}
	}
	return nil
}

// guests keeps the connections of operators from outliving the recipient whose
// links they use. The zero value lets them in.
type guests struct {
	sync.Mutex
	gone bool
}

// showOut returns when no operator begins to use r's links any more.
func (r *recipient) showOut() {
	r.guests.Lock()
	defer r.guests.Unlock()
	r.guests.gone = true
}

// guestWay is a way that may be there longer than the recipient.
type guestWay struct {
	socks.Way
	r *recipient
}

func (w guestWay) Carry(client int) {
	w.r.guests.Lock()
	defer w.r.guests.Unlock()
	if w.r.guests.gone {
		unix.Close(client)
		w.Close()
		return
	}
	w.Way.Carry(client)
}
