//go:build linux

package netns

import (
	"encoding/binary"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// markInUse reports whether any socket in the namespace of the calling thread
// carries mark and is bound or connected, whatever process holds it: what the
// routing for that mark is still needed for. It asks sock_diag(7).
func markInUse(mark uint32) (bool, error) {
	for _, proto := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		req := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
		req.AddData(diagRequest{proto: proto, mark: mark})
		found := false
		err := req.ExecuteIter(unix.NETLINK_INET_DIAG, nl.SOCK_DIAG_BY_FAMILY, func([]byte) bool {
			found = true
			return false
		})
		if err != nil {
			return false, fmt.Errorf("listing sockets of protocol %d: %w", proto, err)
		}
		if found {
			return true, nil
		}
	}
	return false, nil
}

// diagRequest asks for the IPv4 sockets of a protocol that carry a mark. (The
// sockets that accepted may be IPv6 ones; those that connect, which count, are
// not.) It is a struct inet_diag_req_v2 followed by the attribute
// INET_DIAG_REQ_BYTECODE, see linux/inet_diag.h.
type diagRequest struct {
	proto uint8
	mark  uint32
}

const (
	diagHeaderLen     = 56 // sizeof(struct inet_diag_req_v2)
	diagAttrBytecode  = 1  // INET_DIAG_REQ_BYTECODE
	diagMarkCondition = 10 // INET_DIAG_BC_MARK_COND
	diagOpLen         = 4  // sizeof(struct inet_diag_bc_op)
	diagMarkLen       = 8  // sizeof(struct inet_diag_markcond)

	// All states but TIME_WAIT (6), which needs no route to run out.
	diagStates = ^uint32(1 << 6)
)

func (d diagRequest) Len() int {
	return diagHeaderLen + unix.SizeofRtAttr + diagOpLen + diagMarkLen
}

func (d diagRequest) Serialize() []byte {
	b := make([]byte, diagHeaderLen, d.Len())
	b[0] = unix.AF_INET
	b[1] = d.proto
	binary.NativeEndian.PutUint32(b[4:], diagStates)

	b = binary.NativeEndian.AppendUint16(b, unix.SizeofRtAttr+diagOpLen+diagMarkLen)
	b = binary.NativeEndian.AppendUint16(b, diagAttrBytecode)
	// One instruction: jump to the end of the program, which accepts, or
	// beyond it, which rejects.
	b = append(b, diagMarkCondition, diagOpLen+diagMarkLen)
	b = binary.NativeEndian.AppendUint16(b, diagOpLen+diagMarkLen+4)
	b = binary.NativeEndian.AppendUint32(b, d.mark)
	b = binary.NativeEndian.AppendUint32(b, ^uint32(0)) // mask
	return b
}
