package gate

import (
	"errors"
	"fmt"
	"net"
	"syscall"
)

// process is who made the other end of a connection, as this process sees it:
// a pid outside of its pid namespace is 0, a user outside of its user
// namespace is 65534.
type process struct{ pid, uid int }

// peerOf asks the kernel who made the other end: for a client the process
// that called listen, for a server the one that called connect (unix(7)).
func peerOf(conn net.Conn) (process, error) {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return process{}, fmt.Errorf("asking for the peer of a %T: %w", conn, errors.ErrUnsupported)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return process{}, fmt.Errorf("asking for the peer: %w", err)
	}
	var peer process
	var sockErr error
	if err := raw.Control(func(fd uintptr) { peer, sockErr = credentials(int(fd)) }); err != nil {
		return process{}, fmt.Errorf("asking for the peer: %w", err)
	}
	if sockErr != nil {
		return process{}, fmt.Errorf("asking for the peer: %w", sockErr)
	}
	return peer, nil
}
