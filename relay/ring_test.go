package relay

import (
	"fmt"
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func testRing(t *testing.T) *ring {
	t.Helper()
	r, err := newRing()
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skipf("NOT TESTED: %v", err)
	}
	t.Cleanup(r.close)
	return r
}

// Each call of a batch has the result it would have by itself, in batches of
// every size, many more of them than the ring has entries.
func TestRing(t *testing.T) {
	r := testRing(t)
	var near, far [maxBatch]int32
	for i := range near {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		near[i], far[i] = int32(fds[0]), int32(fds[1])
		defer closeFD(near[i])
		defer closeFD(far[i])
	}
	for n := 1; n <= maxBatch; n++ {
		sends, recvs := make([]transfer, n), make([]transfer, n)
		for i := range n {
			sends[i] = transfer{fd: near[i], buf: fmt.Appendf(nil, "%d of %d", i, n)}
			recvs[i] = transfer{fd: far[i], buf: make([]byte, 100)}
			switch i % 5 {
			case 3:
				sends[i].fd = -1
			case 4:
				sends[i].buf = nil
			}
		}
		r.submit(opSend, sends)
		r.submit(opRecv, recvs)
		for i := range n {
			want, n, errno := string(sends[i].buf), len(sends[i].buf), syscall.Errno(0)
			switch i % 5 {
			case 3:
				if sends[i].errno != unix.EBADF {
					t.Errorf("sent to no descriptor: %v", sends[i].errno)
				}
				want, n, errno = "", 0, unix.EAGAIN
			case 4:
				errno = unix.EAGAIN
			}
			if got := &recvs[i]; got.errno != errno || string(got.buf[:got.n]) != want || errno == 0 && sends[i].n != n {
				t.Errorf("%d: received %q, %v; want %q, %v", i, got.buf[:got.n], got.errno, want, errno)
			}
		}
	}
}

// A full socket fails its own call and no other.
func TestRingFullSocket(t *testing.T) {
	r := testRing(t)
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	sent := 0
	for full := false; !full; {
		calls := make([]transfer, 8)
		for i := range calls {
			calls[i] = transfer{fd: int32(fds[0]), buf: make([]byte, copySize)}
		}
		r.submit(opSend, calls)
		for _, c := range calls {
			switch c.errno {
			case 0:
				sent += c.n
			case unix.EAGAIN:
				full = true
			default:
				t.Fatal(c.errno)
			}
		}
	}
	got := 0
	for buf := make([]byte, 1<<20); got < sent; {
		n, err := unix.Read(fds[1], buf)
		if err != nil {
			t.Fatal(err)
		}
		got += n
	}
	if n, err := unix.Read(fds[1], make([]byte, 1)); err != unix.EAGAIN {
		t.Errorf("%d bytes and %v left after all that were sent", n, err)
	}
}
