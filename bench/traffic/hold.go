package traffic

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Held are connections that are open and idle.
type Held struct{ fds []int }

// Close closes them.
func (h *Held) Close() error {
	for _, fd := range h.fds {
		unix.Close(fd)
	}
	h.fds = nil
	return nil
}

// Open opens the connections of a plan one after the other. Each does one
// exchange, so that whatever is between has carried something on it.
func Open(p Plan) (*Held, error) {
	if err := raiseFileLimit(); err != nil {
		return nil, err
	}
	h := &Held{}
	for range p.Conns {
		fd, err := connectNow(p.Server)
		if err != nil {
			h.Close()
			return nil, err
		}
		h.fds = append(h.fds, fd)
		if err := exchangeOnce(fd); err != nil {
			h.Close()
			return nil, fmt.Errorf("exchanging with %v: %w", p.Server, err)
		}
	}
	return h, nil
}

func exchangeOnce(fd int) error {
	var line [RequestSize]byte
	request{want: wantReply, reply: RequestSize}.put(&line)
	if _, err := unix.Write(fd, line[:]); err != nil {
		return err
	}
	for got := 0; got < RequestSize; {
		if err := waitFor(fd, unix.POLLIN); err != nil {
			return err
		}
		n, err := unix.Read(fd, line[got:])
		if err == nil && n == 0 {
			return errClosed
		}
		if err != nil && !again(err) {
			return err
		}
		got += max(n, 0)
	}
	return nil
}
