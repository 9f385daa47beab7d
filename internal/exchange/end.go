package exchange

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"sync"
	"time"
)

// end is one end of a connection.
type end struct {
	Conn
	patience time.Duration // how long nothing may move

	out, in  uint64 // seeds
	sent     int64
	got      int64
	scratch  [2][]byte // for send, for receive
	expected []byte
}

const piece = 32 << 10

// deadline is for the next thing to happen.
func (e *end) deadline() { e.SetDeadline(time.Now().Add(e.patience)) }

// send sends n bytes more.
func (e *end) send(n int64) error {
	if e.scratch[0] == nil {
		e.scratch[0] = make([]byte, piece)
	}
	for n > 0 {
		p := e.scratch[0][:min(n, piece)]
		fill(p, e.out, e.sent)
		e.deadline()
		k, err := e.Write(p)
		e.sent += int64(k)
		n -= int64(k)
		if err != nil {
			return explain(err)
		}
	}
	return nil
}

// receive gets n bytes more, and checks them.
func (e *end) receive(n int64) error {
	if e.scratch[1] == nil {
		e.scratch[1], e.expected = make([]byte, piece), make([]byte, piece)
	}
	for n > 0 {
		e.deadline()
		k, err := e.Read(e.scratch[1][:min(n, piece)])
		if k > 0 {
			got, want := e.scratch[1][:k], e.expected[:k]
			fill(want, e.in, e.got)
			if !bytes.Equal(got, want) {
				return e.mismatch(got, want)
			}
			e.got += int64(k)
			n -= int64(k)
		}
		switch {
		case err == io.EOF && n > 0:
			return endedf("ended after %d bytes, with %d to come", e.got, n)
		case err != nil && err != io.EOF:
			return explain(err)
		}
	}
	return nil
}

func (e *end) mismatch(got, want []byte) error {
	at := 0
	for got[at] == want[at] {
		at++
	}
	return wrongf("byte %d is %#02x instead of %#02x", e.got+int64(at), got[at], want[at])
}

// receiveEnd gets the end of the other's direction.
func (e *end) receiveEnd() error {
	e.deadline()
	switch n, err := e.Read(make([]byte, 1)); {
	case n > 0:
		return wrongf("more than the %d bytes that were sent", e.got)
	case err != io.EOF:
		return explain(err)
	}
	return nil
}

// receiveReset gets a reset, after as many bytes as have got through.
func (e *end) receiveReset(atMost int64) error {
	err := e.receive(atMost)
	if err == nil {
		if err = e.receiveEnd(); err == nil {
			return wrongf("ended properly after %d bytes, but was reset", e.got)
		}
	}
	if _, is := errors.AsType[wrong](err); is {
		return err
	}
	return nil
}

// sendReceipt says how much has arrived, and that this is the end.
func (e *end) sendReceipt() error {
	e.deadline()
	if _, err := e.Write(binary.BigEndian.AppendUint64(nil, uint64(e.got))); err != nil {
		return explain(err)
	}
	return explain(e.CloseWrite())
}

// receiveReceipt checks what sendReceipt says.
func (e *end) receiveReceipt(sent int64) error {
	var b [receiptSize]byte
	e.deadline()
	switch n, err := io.ReadFull(e, b[:]); {
	case err == io.EOF || err == io.ErrUnexpectedEOF:
		return endedf("ended after %d bytes of the receipt", n)
	case err != nil:
		return explain(err)
	}
	if n := int64(binary.BigEndian.Uint64(b[:])); n != sent {
		return wrongf("a receipt for %d bytes of %d", n, sent)
	}
	return e.receiveEnd()
}

// both does two things at once, and returns what went wrong, or else what went
// amiss first. Whatever fails ends the other. An end that comes with an error
// of the other direction is none: the kernel tells of a reset only once.
func (e *end) both(a, b func() error) error {
	var errs [2]error
	var first sync.Once
	var err error
	var wg sync.WaitGroup
	for i, fn := range []func() error{a, b} {
		wg.Go(func() {
			if errs[i] = fn(); errs[i] != nil {
				first.Do(func() { err = errs[i] })
				e.reset()
			}
		})
	}
	wg.Wait()
	for i, each := range errs {
		w, is := errors.AsType[wrong](each)
		_, also := errors.AsType[wrong](errs[1-i])
		if is && (also || errs[1-i] == nil || !w.end) {
			return each
		}
	}
	for _, each := range errs {
		if _, is := errors.AsType[wrong](each); each != nil && !is {
			return each
		}
	}
	return err
}

func (e *end) reset() {
	e.SetLinger(0)
	e.Close()
}

// explain tells being stuck from being told of an error.
func explain(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errStuck
	}
	return err
}

// finish closes the connection and makes an outcome of how it went.
func (e *end) finish(p Plan, start time.Time, err error) Outcome {
	o := Outcome{Plan: p, Sent: e.sent, Got: e.got, Took: time.Since(start)}
	if w, is := errors.AsType[wrong](err); is {
		o.Wrong = w
	} else {
		o.Err = err
	}
	if err != nil {
		e.reset()
	} else {
		e.Close()
	}
	return o
}
