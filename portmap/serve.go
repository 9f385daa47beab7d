//go:build linux

package portmap

import (
	"golang.org/x/sys/unix"
)

// serveTCP has sink serve the listener that listen returns, after ready has
// had a look at it.
func serveTCP(sink Sink, listen func() (fd int, err error), ready func(fd int) error) (stop func() error, err error) {
	fd, err := listen()
	if err != nil {
		return nil, err
	}
	if err = ready(fd); err == nil {
		stop, err = sink.Listen(fd)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return stop, nil
}

// servePackets has sink serve the UDP socket that listen returns, with a raw
// socket of ns to answer from, after ready has had a look at the former.
func servePackets(sink Sink, ns Namespace, listen func() (fd int, err error), ready func(fd int) error) (stop func() error, err error) {
	recv, err := listen()
	if err != nil {
		return nil, err
	}
	reply, err := ns.RawPackets()
	if err != nil {
		unix.Close(recv)
		return nil, err
	}
	if err = ready(recv); err == nil {
		stop, err = sink.Packets(recv, reply)
	}
	if err != nil {
		unix.Close(recv)
		unix.Close(reply)
		return nil, err
	}
	return stop, nil
}
