package exchange

import (
	"errors"
	"net"
	"os"
	"time"
)

// Run does as planned over conn, which it closes. patience is how long nothing
// may move: a connection is to go on or to end.
func Run(conn Conn, p Plan, patience time.Duration) Outcome {
	start := time.Now()
	e := &end{Conn: conn, patience: patience}
	e.out, e.in = p.seeds()
	e.deadline()
	_, err := conn.Write(p.append(nil))
	if err == nil {
		err = e.client(p)
	}
	return e.finish(p, start, explain(err))
}

func (e *end) client(p Plan) error {
	switch p.Kind {
	case Talk:
		if err := talk(p, e.send, e.receive); err != nil {
			return err
		}
		e.CloseWrite()
		return e.receiveReceipt(p.Up)
	case Bulk:
		return e.both(func() error {
			if err := e.send(p.Up); err != nil {
				return err
			}
			return e.CloseWrite()
		}, func() error {
			if err := e.receive(p.Down); err != nil {
				return err
			}
			return e.receiveReceipt(p.Up)
		})
	case Turn:
		if err := e.send(p.Up); err != nil {
			return err
		}
		if err := e.CloseWrite(); err != nil {
			return err
		}
		if err := e.receive(p.Down); err != nil {
			return err
		}
		return e.receiveReceipt(p.Up)
	case Abort:
		if err := e.send(p.Up); err != nil {
			return err
		}
		e.reset()
		return nil
	default: // Rebuff
		return e.receiveReset(p.Down)
	}
}

// talk has a client say and hear in turns; the server's part is with the two
// swapped, and hearing first.
func talk(p Plan, say, hear func(int64) error) error {
	for up, down := p.Up, p.Down; up > 0 || down > 0; {
		u, d := min(up, turn), min(down, turn)
		if err := say(u); err != nil {
			return err
		}
		if err := hear(d); err != nil {
			return err
		}
		up, down = up-u, down-d
	}
	return nil
}

const turn = 4 << 10

// serve is the server's end of a connection.
func serve(conn Conn, patience time.Duration) Outcome {
	start := time.Now()
	e := &end{Conn: conn, patience: patience}
	e.deadline()
	p, err := readPlan(conn)
	if err == nil {
		e.in, e.out = p.seeds()
		err = e.server(p)
	}
	return e.finish(p, start, explain(err))
}

func (e *end) server(p Plan) error {
	switch p.Kind {
	case Talk:
		if err := talk(p, e.receive, e.send); err != nil {
			return err
		}
		if err := e.receiveEnd(); err != nil {
			return err
		}
		return e.sendReceipt()
	case Bulk:
		err := e.both(func() error {
			if err := e.receive(p.Up); err != nil {
				return err
			}
			return e.receiveEnd()
		}, func() error { return e.send(p.Down) })
		if err != nil {
			return err
		}
		return e.sendReceipt()
	case Turn:
		if err := e.receive(p.Up); err != nil {
			return err
		}
		if err := e.receiveEnd(); err != nil {
			return err
		}
		if err := e.send(p.Down); err != nil {
			return err
		}
		return e.sendReceipt()
	case Abort:
		return e.receiveReset(p.Up)
	default: // Rebuff
		if err := e.send(p.Down); err != nil {
			return err
		}
		e.reset()
		return nil
	}
}

// isClosed tells whether a listener was closed on purpose.
func isClosed(err error) bool {
	return errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrClosed)
}
