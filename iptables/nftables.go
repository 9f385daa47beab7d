package iptables

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// nftables is the Kernel of the calling thread's network namespace.
type nftables struct{}

var _ Kernel = nftables{}

const sizeofHeader = 4 // struct nfgenmsg

// Generation asks for the number of the rule set (NFT_MSG_GETGEN).
func (nftables) Generation() (gen uint32, err error) {
	const nftaGenID = 1
	err = ask(nfMessage(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN, unix.NLM_F_REQUEST, unix.AF_UNSPEC, 0, nil),
		func(kind uint16, body []byte) (done bool, err error) {
			if kind != unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN {
				return false, nil
			}
			value := attribute(body[min(len(body), sizeofHeader):], nftaGenID)
			if len(value) != 4 {
				return true, errors.New("the kernel's answer has no generation")
			}
			gen = binary.BigEndian.Uint32(value)
			return true, nil
		})
	if err != nil {
		return 0, fmt.Errorf("asking for the generation of the nftables: %w", err)
	}
	return gen, nil
}

// DropTable deletes the filter table, in a batch that the kernel refuses with
// ERESTART unless the rule set is still of that generation (nf_tables_valid_genid).
func (nftables) DropTable(ipv6 bool, gen uint32) error {
	const nftaTableName, batchGenID = 1, 1
	family := uint8(unix.NFPROTO_IPV4)
	if ipv6 {
		family = unix.NFPROTO_IPV6
	}
	const batchBegin, batchEnd = 0x10, 0x11 // NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END
	genID := putAttribute(nil, batchGenID, binary.BigEndian.AppendUint32(nil, gen))
	batch := nfMessage(batchBegin, unix.NLM_F_REQUEST, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, genID)
	batch = append(batch, nfMessage(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_DELTABLE, unix.NLM_F_REQUEST|unix.NLM_F_ACK,
		family, 0, putAttribute(nil, nftaTableName, []byte("filter\x00")))...)
	batch = append(batch, nfMessage(batchEnd, unix.NLM_F_REQUEST, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, nil)...)
	err := ask(batch, func(uint16, []byte) (bool, error) { return false, nil })
	if err != nil {
		return fmt.Errorf("deleting the table: %w", err)
	}
	return nil
}

// ask sends messages and passes each answer to handle, until that says it is
// done, or the kernel acknowledges or refuses.
func ask(messages []byte, handle func(kind uint16, body []byte) (done bool, err error)) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// The kernel answers in the sending call. The limit is for a bug, not for it.
	limit := unix.NsecToTimeval(int64(5 * time.Second))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		return err
	}
	if err := unix.Sendto(fd, messages, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	buf := make([]byte, 1<<16)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			return err
		}
		for got := buf[:n]; len(got) >= unix.SizeofNlMsghdr; {
			size := int(binary.NativeEndian.Uint32(got))
			if size < unix.SizeofNlMsghdr || size > len(got) {
				return errors.New("the kernel's answer is cut off")
			}
			kind, body := binary.NativeEndian.Uint16(got[4:]), got[unix.SizeofNlMsghdr:size]
			if kind == unix.NLMSG_ERROR {
				if len(body) < 4 {
					return errors.New("the kernel's answer is cut off")
				}
				if code := int32(binary.NativeEndian.Uint32(body)); code != 0 {
					return unix.Errno(-code)
				}
				return nil
			}
			if done, err := handle(kind, body); done || err != nil {
				return err
			}
			got = got[min(len(got), align(size)):]
		}
	}
}

// nfMessage is a netlink message with the header of nfnetlink.
func nfMessage(kind, flags uint16, family uint8, resource uint16, attributes []byte) []byte {
	m := make([]byte, 0, unix.SizeofNlMsghdr+sizeofHeader+len(attributes))
	m = binary.NativeEndian.AppendUint32(m, uint32(cap(m)))
	m = binary.NativeEndian.AppendUint16(m, kind)
	m = binary.NativeEndian.AppendUint16(m, flags)
	m = binary.NativeEndian.AppendUint64(m, 0) // sequence number and sender: the socket asks once
	m = append(m, family, 0)
	m = binary.BigEndian.AppendUint16(m, resource)
	return append(m, attributes...)
}

func putAttribute(to []byte, kind uint16, value []byte) []byte {
	to = binary.NativeEndian.AppendUint16(to, uint16(unix.SizeofNlAttr+len(value)))
	to = binary.NativeEndian.AppendUint16(to, kind)
	to = append(to, value...)
	for len(to)%unix.NLMSG_ALIGNTO != 0 {
		to = append(to, 0)
	}
	return to
}

// attribute finds the value of one kind, nil if it is not there.
func attribute(in []byte, kind uint16) []byte {
	for len(in) >= unix.SizeofNlAttr {
		size := int(binary.NativeEndian.Uint16(in))
		if size < unix.SizeofNlAttr || size > len(in) {
			return nil
		}
		if binary.NativeEndian.Uint16(in[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER) == kind {
			return in[unix.SizeofNlAttr:size]
		}
		in = in[min(len(in), align(size)):]
	}
	return nil
}

func align(n int) int { return (n + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1) }
