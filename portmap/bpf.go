//go:build linux

package portmap

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	ebpflink "github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// bpf is the program in the kernel. It runs when the kernel looks for the
// socket of a packet to this namespace that belongs to no connection: for a SYN,
// and for a UDP datagram. See Documentation/bpf/prog_sk_lookup.rst.
type bpf struct {
	verdicts *ebpf.Map // of keys
	sockets  *ebpf.Map // by verdict
	prog     *ebpf.Program
	link     ebpflink.Link
}

// maxKeys bounds what the map of verdicts can grow to, at about 100 bytes each
// in use: 32,768 for an alias with every other port of both protocols exposed.
const maxKeys = 1 << 17

// loadBPF is the loader of Open.
func loadBPF(ns int) (program, error) {
	b := new(bpf)
	if err := b.load(ns); err != nil {
		b.close()
		return nil, err
	}
	return b, nil
}

func (b *bpf) load(ns int) (err error) {
	// Before Linux 5.11, maps count against RLIMIT_MEMLOCK, which is small.
	if err := rlimit.RemoveMemlock(); err != nil {
		return fmt.Errorf("raising the limit of locked memory: %w", err)
	}
	b.verdicts, err = ebpf.NewMap(&ebpf.MapSpec{
		Name:       "linkrun_ports",
		Type:       ebpf.LPMTrie,
		KeySize:    12,
		ValueSize:  4,
		MaxEntries: maxKeys,
		Flags:      unix.BPF_F_NO_PREALLOC, // a trie has to be
	})
	if err != nil {
		return fmt.Errorf("making the map of ports: %w", err)
	}
	b.sockets, err = ebpf.NewMap(&ebpf.MapSpec{
		Name:       "linkrun_sockets",
		Type:       ebpf.SockMap,
		KeySize:    4,
		ValueSize:  4,
		MaxEntries: uint32(refused), // it has no entry: there is no socket to find
	})
	if err != nil {
		return fmt.Errorf("making the map of sockets: %w", err)
	}
	b.prog, err = ebpf.NewProgram(&ebpf.ProgramSpec{
		Name:         "linkrun_steer",
		Type:         ebpf.SkLookup,
		AttachType:   ebpf.AttachSkLookup,
		Instructions: instructions(b.verdicts.FD(), b.sockets.FD()),
		License:      "Apache-2.0",
	})
	if err != nil {
		return fmt.Errorf("loading the program (sk_lookup, Linux 5.9): %w", err)
	}
	b.link, err = ebpflink.AttachNetNs(ns, b.prog)
	if err != nil {
		return fmt.Errorf("attaching the program to the namespace: %w", err)
	}
	return nil
}

// Offsets in struct bpf_sk_lookup, linux/bpf.h.
const (
	ctxFamily    = 8
	ctxProtocol  = 12
	ctxLocalIP4  = 40 // network order
	ctxLocalPort = 60 // host order
)

// What bpf_sk_assign is told, and what the program returns: linux/bpf.h.
const (
	skDrop           = 0
	skPass           = 1
	skLookupFReplace = 1
)

// instructions are those of the program:
//
//	if family != AF_INET                       → pass
//	key = {64 bits, local ip, protocol, local port}
//	verdict = verdicts[longest prefix of key]
//	if there is none                           → pass
//	sock = sockets[verdict]
//	if there is none                           → drop
//	assign sock to the packet; if it is refused → drop
//	pass
//
// Drop makes the client see its connection refused: nobody is there.
func instructions(verdicts, sockets int) asm.Instructions {
	const keyAt = -16 // on the stack: struct key, 12 bytes
	return asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),

		// A client's AF_INET6 socket that is connected to a v4-mapped address
		// sends IPv4, and is AF_INET here.
		asm.LoadMem(asm.R2, asm.R6, ctxFamily, asm.Word),
		asm.JNE.Imm(asm.R2, unix.AF_INET, "pass"),

		asm.StoreImm(asm.RFP, keyAt, portBits, asm.Word),
		asm.LoadMem(asm.R2, asm.R6, ctxLocalIP4, asm.Word),
		asm.StoreMem(asm.RFP, keyAt+4, asm.R2, asm.Word),
		asm.LoadMem(asm.R2, asm.R6, ctxProtocol, asm.Word),
		asm.HostTo(asm.BE, asm.R2, asm.Half),
		asm.StoreMem(asm.RFP, keyAt+8, asm.R2, asm.Half),
		asm.LoadMem(asm.R2, asm.R6, ctxLocalPort, asm.Word),
		asm.HostTo(asm.BE, asm.R2, asm.Half),
		asm.StoreMem(asm.RFP, keyAt+10, asm.R2, asm.Half),

		asm.LoadMapPtr(asm.R1, verdicts),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, keyAt),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "pass"),

		asm.LoadMapPtr(asm.R1, sockets),
		asm.Mov.Reg(asm.R2, asm.R0),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "drop"),

		// Replace what another program has chosen: after a restart without
		// interruption there are two of ours for a while, the newer one last.
		asm.Mov.Reg(asm.R7, asm.R0),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Reg(asm.R2, asm.R7),
		asm.Mov.Imm(asm.R3, skLookupFReplace),
		asm.FnSkAssign.Call(),
		asm.Mov.Reg(asm.R8, asm.R0),
		asm.Mov.Reg(asm.R1, asm.R7),
		asm.FnSkRelease.Call(),
		asm.JNE.Imm(asm.R8, 0, "drop"),

		asm.Mov.Imm(asm.R0, skPass).WithSymbol("pass"),
		asm.Return(),
		asm.Mov.Imm(asm.R0, skDrop).WithSymbol("drop"),
		asm.Return(),
	}
}

func (b *bpf) put(k key, v verdict) error {
	if err := b.verdicts.Put(k.bytes(), uint32(v)); err != nil {
		return fmt.Errorf("steering %v: %w", k, err)
	}
	return nil
}

func (b *bpf) remove(k key) error {
	if err := b.verdicts.Delete(k.bytes()); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("no longer steering %v: %w", k, err)
	}
	return nil
}

func (b *bpf) receive(v verdict, fd int) error {
	if err := b.sockets.Put(uint32(v), uint32(fd)); err != nil {
		return fmt.Errorf("putting a socket into the map: %w", err)
	}
	return nil
}

// close closes what there is: load may have stopped half-way.
func (b *bpf) close() error {
	var errs []error
	if b.link != nil {
		errs = append(errs, b.link.Close())
	}
	return errors.Join(append(errs, b.prog.Close(), b.sockets.Close(), b.verdicts.Close())...)
}
