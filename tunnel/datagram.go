package tunnel

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
)

// MaxDatagram is the most bytes a datagram has: what UDP takes over IPv4, and
// then some.
const MaxDatagram = 1<<16 - 1

// Datagrams is a stream that carries datagrams, each with its length of two
// bytes before it. Reads may be called from one goroutine at a time, and so
// may writes.
type Datagrams struct {
	Stream *Stream

	dropped atomic.Uint64
	in      *bufio.Reader
	out     []byte
}

// NewDatagrams carries datagrams over st, which stays the caller's to close.
func NewDatagrams(st *Stream) *Datagrams {
	d := newDatagrams(st)
	d.Stream = st
	return d
}

func newDatagrams(r io.Reader) *Datagrams {
	return &Datagrams{in: bufio.NewReaderSize(r, 2048)}
}

// errLong says that a datagram does not fit.
var errLong = errors.New("the datagram is too long")

// Read reads one datagram. One that is longer than p is lost, and an error.
// The end of the stream is io.EOF.
func (d *Datagrams) Read(p []byte) (int, error) {
	var head [2]byte
	if _, err := io.ReadFull(d.in, head[:]); err != nil {
		return 0, err
	}
	n := int(binary.BigEndian.Uint16(head[:]))
	if n > len(p) {
		if _, err := d.in.Discard(n); err != nil {
			return 0, err
		}
		return 0, fmt.Errorf("reading a datagram of %d bytes: %w", n, errLong)
	}
	if _, err := io.ReadFull(d.in, p[:n]); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return 0, err
	}
	return n, nil
}

// Write sends one datagram, or drops it if the other end does not keep up, as
// a network would. It waits for the transport, no longer.
func (d *Datagrams) Write(p []byte) (int, error) {
	if len(p) > MaxDatagram {
		return 0, fmt.Errorf("sending a datagram of %d bytes: %w", len(p), errLong)
	}
	d.out = binary.BigEndian.AppendUint16(d.out[:0], uint16(len(p)))
	d.out = append(d.out, p...)
	if !d.Stream.has(len(d.out)) {
		d.dropped.Add(1)
		return len(p), nil
	}
	if _, err := d.Stream.Write(d.out); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Dropped is how many datagrams Write has dropped.
func (d *Datagrams) Dropped() uint64 { return d.dropped.Load() }

// has tells whether the other end takes n bytes now. A stream that is over
// takes all, for the error to show.
func (s *Stream) has(n int) bool {
	w := s.session.wire
	w.mu.Lock()
	defer w.mu.Unlock()
	return s.ledger.credit >= int64(n) || s.ended.Load() != 0
}
