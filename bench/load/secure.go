package main

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/linkrun/linkrun/bench/traffic"
	"github.com/linkrun/linkrun/identity"
)

// Raw TLS: client and server encrypt themselves, with a connection and a
// handshake for each, and nothing between them. It is what there would be
// without a tunnel.

const secureProtocol = "linkrun-bench"

// blockSize is what bulk is read and written by, as package traffic does.
const blockSize = 128 << 10

// A connection begins with a byte that says what it is for, and for how long.
const (
	toServer   byte = 's' // read to the end
	fromServer byte = 'b' // write for a time
	oneReply   byte = 'l' // reply once, and close
	replies    byte = 'r' // reply to each request
)

// secureServe answers connections: what load secure-serve ADDRESS IDENTITY does.
func secureServe(ctx context.Context, args []string) error {
	store, err := identity.Open(identity.In(args[1]))
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", args[0])
	if err != nil {
		return err
	}
	ln = tls.NewListener(ln, bulky(store.ServerTLS(secureProtocol)))
	return acceptEach(ctx, ln, func(conn net.Conn) { answer(conn.(*tls.Conn)) })
}

// bulky has records as large as there are from the first one on.
func bulky(c *tls.Config) *tls.Config {
	c.DynamicRecordSizingDisabled = true
	return c
}

func answer(conn *tls.Conn) {
	defer conn.Close()
	var request [traffic.RequestSize]byte
	if _, err := io.ReadFull(conn, request[:]); err != nil {
		return
	}
	block := make([]byte, blockSize)
	switch request[0] {
	case toServer:
		io.CopyBuffer(io.Discard, struct{ io.Reader }{conn}, block)
	case fromServer:
		for end := time.Now().Add(time.Duration(binary.LittleEndian.Uint64(request[8:]))); time.Now().Before(end); {
			if _, err := conn.Write(block); err != nil {
				return
			}
		}
	case oneReply:
		conn.Write(request[:])
	case replies:
		for {
			if _, err := conn.Write(request[:]); err != nil {
				return
			}
			if _, err := io.ReadFull(conn, request[:]); err != nil {
				return
			}
		}
	}
}

// secureRun does what a plan says: what load secure-run IDENTITY PLAN does.
func secureRun(args []string, stdout io.Writer) error {
	store, err := identity.Open(identity.In(args[0]))
	if err != nil {
		return err
	}
	var plan traffic.Plan
	if err := json.Unmarshal([]byte(args[1]), &plan); err != nil {
		return fmt.Errorf("reading the plan %q: %w", args[1], err)
	}
	c := secureClient{plan: plan, config: bulky(store.ClientTLS(secureProtocol, "")), started: time.Now()}
	var clients sync.WaitGroup
	for range max(1, plan.Conns) {
		clients.Go(c.run)
	}
	clients.Wait()
	if c.err != nil {
		return c.err
	}
	return json.NewEncoder(stdout).Encode(c.summary())
}

// secureClient is what the clients of a plan share.
type secureClient struct {
	plan    traffic.Plan
	config  *tls.Config
	started time.Time

	mu        sync.Mutex
	result    traffic.Result
	latencies []time.Duration
	err       error
}

func (c *secureClient) measuring() bool { return time.Since(c.started) >= c.plan.Warmup }
func (c *secureClient) over() bool {
	return time.Since(c.started) >= c.plan.Warmup+c.plan.Duration
}

func (c *secureClient) run() {
	var err error
	switch c.plan.Kind {
	case traffic.Send, traffic.Receive:
		err = c.bulk()
	case traffic.Connect:
		for !c.over() && err == nil {
			err = c.once()
		}
	case traffic.Exchange:
		err = c.exchange()
	default:
		err = fmt.Errorf("there is no %q over TLS", c.plan.Kind)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = errors.Join(c.err, err)
}

func (c *secureClient) dial(what byte) (*tls.Conn, [traffic.RequestSize]byte, error) {
	request := [traffic.RequestSize]byte{what}
	binary.LittleEndian.PutUint64(request[8:], uint64(c.plan.Warmup+c.plan.Duration))
	conn, err := tls.Dial("tcp", c.plan.Server.String(), c.config)
	if err == nil {
		_, err = conn.Write(request[:])
	}
	return conn, request, err
}

func (c *secureClient) bulk() error {
	what := toServer
	if c.plan.Kind == traffic.Receive {
		what = fromServer
	}
	conn, _, err := c.dial(what)
	if err != nil {
		return err
	}
	defer conn.Close()
	block := make([]byte, blockSize)
	for !c.over() {
		n, err := 0, error(nil)
		if what == toServer {
			n, err = conn.Write(block)
		} else {
			n, err = conn.Read(block)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		c.mu.Lock()
		c.result.TotalBytes += uint64(n)
		if c.measuring() {
			c.result.Bytes += uint64(n)
		}
		c.mu.Unlock()
	}
	return nil
}

func (c *secureClient) once() error {
	began := time.Now()
	conn, request, err := c.dial(oneReply)
	if err == nil {
		defer conn.Close()
		_, err = io.ReadFull(conn, request[:])
	}
	c.count(began)
	return err
}

func (c *secureClient) exchange() error {
	began := time.Now()
	conn, request, err := c.dial(replies)
	if err != nil {
		return err
	}
	defer conn.Close()
	for {
		if _, err := io.ReadFull(conn, request[:]); err != nil {
			return err
		}
		c.count(began)
		if c.over() {
			return nil
		}
		began = time.Now()
		if _, err := conn.Write(request[:]); err != nil {
			return err
		}
	}
}

// count counts a reply.
func (c *secureClient) count(began time.Time) {
	took := time.Since(began)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.result.TotalCount++
	if c.measuring() {
		c.result.Count++
		c.latencies = append(c.latencies, took)
	}
}

func (c *secureClient) summary() traffic.Result {
	r := c.result
	r.Seconds = (time.Since(c.started) - c.plan.Warmup).Seconds()
	slices.Sort(c.latencies)
	at := func(part float64) float64 {
		if len(c.latencies) == 0 {
			return 0
		}
		return float64(c.latencies[int(part*float64(len(c.latencies)-1))].Nanoseconds()) / 1e3
	}
	r.Latency = traffic.Latency{P50: at(0.5), P99: at(0.99), P999: at(0.999)}
	return r
}
