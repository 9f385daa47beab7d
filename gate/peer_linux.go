package gate

import "golang.org/x/sys/unix"

func credentials(fd int) (process, error) {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return process{}, err
	}
	return process{pid: int(cred.Pid), uid: int(cred.Uid)}, nil
}
