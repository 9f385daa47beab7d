package bridge

import (
	"bytes"
	"encoding/binary"
	"errors"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// newRequest is a netlink request on the host's own socket, which stays in
// the namespace it was opened in, whatever thread sends it.
func (h *Host) newRequest(kind, flags int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(kind, flags)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: h.request}
	return req
}

// set changes an interface.
func (h *Host) set(family, index int, attribute *nl.RtAttr) error {
	req := h.newRequest(unix.RTM_SETLINK, unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(family)
	msg.Index = int32(index)
	req.AddData(msg)
	req.AddData(attribute)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

func (h *Host) setIsolated(index int, on bool) error {
	info := nl.NewRtAttr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
	info.AddRtAttr(nl.IFLA_BRPORT_ISOLATED, flag(on))
	return h.set(unix.AF_BRIDGE, index, info)
}

func (h *Host) setKnob(index int, k knob, on bool) error {
	info := nl.NewRtAttr(unix.IFLA_LINKINFO|unix.NLA_F_NESTED, nil)
	info.AddRtAttr(unix.IFLA_INFO_KIND, nl.NonZeroTerminated("bridge"))
	info.AddRtAttr(unix.IFLA_INFO_DATA|unix.NLA_F_NESTED, nil).AddRtAttr(k.attribute, flag(on))
	// RTM_NEWLINK without NLM_F_CREATE changes what is there. RTM_SETLINK
	// would take no settings of a bridge.
	req := h.newRequest(unix.RTM_NEWLINK, unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	req.AddData(info)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// setAlias sets the alias of an interface, or, if it is empty, removes it.
func (h *Host) setAlias(index int, m mark) error {
	return h.set(unix.AF_UNSPEC, index, nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(m)))
}

func flag(on bool) []byte {
	if on {
		return []byte{1}
	}
	return []byte{0}
}

func isSet(value []byte) bool { return len(value) > 0 && value[0] != 0 }

func number(value []byte) int {
	if len(value) != 4 {
		return 0
	}
	return int(int32(binary.NativeEndian.Uint32(value)))
}

func cString(value []byte) string {
	text, _, _ := bytes.Cut(value, []byte{0})
	return string(text)
}

var errCutOff = errors.New("an attribute of an interface is cut off")

// eachAttribute calls fn for the attributes in a row of them.
func eachAttribute(in []byte, fn func(kind uint16, value []byte) error) error {
	for len(in) >= unix.SizeofRtAttr {
		size := int(binary.NativeEndian.Uint16(in))
		if size < unix.SizeofRtAttr || size > len(in) {
			return errCutOff
		}
		kind := binary.NativeEndian.Uint16(in[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
		if err := fn(kind, in[unix.SizeofRtAttr:size]); err != nil {
			return err
		}
		in = in[min(len(in), (size+unix.RTA_ALIGNTO-1)&^(unix.RTA_ALIGNTO-1)):]
	}
	return nil
}
