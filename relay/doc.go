// Package relay moves bytes, and datagrams, between two sockets: half-close,
// reset, limits and counters, by splice where it pays. It makes no socket that
// leaves the process, enters no namespace, knows no Docker, and needs no
// privilege.
//
// # How it works
//
// An Engine is a few workers. Each is an event loop with an epoll set of its
// own, in which every socket is registered once, edge-triggered; all that the
// loop calls is non-blocking. A worker works in rounds:
//
//	wait for events ──► what they say becomes flags of the two ends
//	      ▲                                 │
//	      │                   connections with something to do
//	      │                                 ▼
//	      │             small: read, all of them, then write, all of them,
//	      │             with one entry into the kernel each (io_uring)
//	      │             bulk: splice into a pipe and out of it
//	      └─────────────────────────────────┘
//
// A direction is bulk once a read has filled its buffer, and small again when
// its splices bring little. Bytes that the other end does not take stay in
// the pipe, or in a buffer of their size if they had been copied, and nothing
// more is read: the writer's window closes. Apart from those a connection is
// its two sockets and some 160 bytes.
//
// What is not just another socket is carried by others: they take an accepted
// connection over (Link.Take), and may give it back once it is one, or hold
// the other end of a flow's socket (Source.PacketSocket). The engine counts
// and cuts those connections with the rest.
//
// # What did not pay
//
// On a machine of two processors, against the median of interleaved runs:
//
//   - Spreading connections over the workers: see spread.go.
//   - A multishot receive in io_uring instead of epoll: see ring.go.
//   - BPF sockmap between the two sockets: half the throughput, since what it
//     redirects passes through a work queue.
//   - Reading one message and writing it before the next, as loops do: 4 %
//     more than all reads and then all writes, without any ring.
//   - Fixed socket buffers, from 128 KiB to 4 MiB: bulk is fastest with what
//     the kernel finds by itself, and less than 512 KiB costs a third.
//   - A higher priority, SCHED_BATCH, a processor of its own: within the noise.
//   - Spinning where workers share the load: up to a fifth fewer requests. And
//     for the source's answer alone, not for the recipient's next request: a
//     quarter more processor time, and nothing gained. See spin.go.
//   - Hiding short waits from the Go scheduler: no faster than a yield now and
//     then, and it kept other goroutines waiting.
//   - Delaying the acknowledgement of the source's handshake (TCP_QUICKACK) to
//     send it with a request that is there already: one packet less of eleven,
//     1 µs of 64, and a source that writes twice without TCP_NODELAY would
//     wait 40 ms for an acknowledgement.
package relay
