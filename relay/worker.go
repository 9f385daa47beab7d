package relay

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Events carry two words: the first names the slot and end of a connection
// and the second its generation, or the second is one of these and the first
// is what it says.
const (
	isWake     int32 = -1 // the worker's eventfd
	isListener int32 = -2 // the number of a listener
	isPackets  int32 = -3 // the number of a packet listener
)

// roundsPerWait is how often the queue is worked off before the worker looks
// for new events. Connections that have more to do at once, most often the
// end of a stream right behind its last bytes, save the look in between.
const roundsPerWait = 4

// worker is one event loop with an epoll set of its own. Its connections, pipes
// and timers belong to it alone; others reach it through its inbox.
type worker struct {
	engine *Engine
	index  int
	calls  calls
	start  time.Time

	poll      epollSet
	wakeFD    int32
	now       uint32 // ticks since the engine started, as of the last return from waiting
	slab      slab
	wheel     wheel
	pipes     pipePool
	spills    spillPool
	queue     []int32 // connections that have something to do
	turn      []int32 // the queue being worked off
	batch     batch
	listeners map[int32]*listening
	paused    []*listening
	packets   map[int32]*PacketListener
	datagrams datagrams
	ready     []*conn // flows with answers
	rounds    uint64  // of answering flows
	stopping  bool

	copiedBytes, splicedBytes uint64 // of this round
	events                    [256]unix.EpollEvent
	spare                     [copySize]byte

	yielded time.Duration // when, since start
	usual   time.Duration // how long a wait has taken lately
	found   int           // events by the last wait
	pace    pace
	load    atomic.Int64  // connections, for the choice of a worker
	busy    atomic.Uint64 // the tick of the last look, and percent of a processor
	wakeups atomic.Uint64
	copied  atomic.Uint64
	spliced atomic.Uint64

	inbox struct {
		sync.Mutex
		tasks  []func(*worker)
		closed bool
	}
}

func newWorker(e *Engine, index int, start time.Time) (*worker, error) {
	poll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("making an epoll set: %w", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		unix.Close(poll)
		return nil, fmt.Errorf("making an eventfd: %w", err)
	}
	w := &worker{
		engine:    e,
		index:     index,
		calls:     kernelCalls(),
		start:     start,
		poll:      epollSet{int32(poll)},
		wakeFD:    int32(wake),
		pipes:     pipePool{open: &e.pipes, bound: e.pipeBound()},
		listeners: make(map[int32]*listening),
		packets:   make(map[int32]*PacketListener),
	}
	if errno := w.poll.control(unix.EPOLL_CTL_ADD, w.wakeFD, unix.EPOLLIN|unix.EPOLLET, 0, isWake); errno != 0 {
		w.closeDescriptors()
		return nil, fmt.Errorf("watching an eventfd: %w", errno)
	}
	if e.seam != nil {
		e.seam(w, &w.calls)
	}
	return w, nil
}

// loop runs until a task sets stopping. It is not locked to its thread: to
// yield would then take two other threads' help each time.
func (w *worker) loop() {
	w.startRing()
	for !w.stopping {
		for i := range w.wait() {
			w.dispatch(&w.events[i])
		}
		if len(w.ready) > 0 {
			w.answerFlows()
		}
		for range roundsPerWait {
			if len(w.queue) == 0 {
				break
			}
			w.round()
		}
		w.wheel.expire(&w.slab, w.now, w.expire)
		w.resume()
		w.report()
		w.look()
	}
	w.closeEverything()
}

// yieldAfter is how long a worker keeps its processor from other goroutines.
//
// Go takes the processor away after 10 ms, and it takes a goroutine that loops
// over system calls for one that has never stopped running. From then on it
// does so whenever the worker waits, and looks for the next time every 20 µs:
// under load that thread took 8 % on top of the worker's time. A goroutine
// that yields by itself is left alone.
const yieldAfter = 5 * time.Millisecond

// wait returns the number of events that are there.
func (w *worker) wait() int {
	asleep := time.Since(w.start)
	if asleep-w.yielded > yieldAfter {
		w.yielded = asleep
		runtime.Gosched()
	}
	n, errno := 0, syscall.Errno(0)
	timeout := w.timeout()
	if timeout != 0 {
		n, errno = w.spin(asleep)
	}
	if n == 0 && errno == 0 {
		n, errno = w.poll.wait(w.events[:], timeout)
	}
	if errno != 0 && errno != unix.EINTR {
		// Nothing but a bug leads here: the set is valid as long as the
		// loop runs. Better no relay than one that spins.
		panic(fmt.Sprintf("relay: waiting for events: %v", errno))
	}
	w.wakeups.Add(1)
	awake := time.Since(w.start)
	w.pace.slept += awake - asleep
	n = max(n, 0)
	w.waited(n, awake-asleep)
	w.now = uint32(awake >> tickShift)
	return n
}

func (w *worker) startRing() {
	if w.engine.oneByOne {
		return
	}
	r, err := newRing()
	if err != nil {
		w.engine.log().Debug("calls are made one by one", "error", err)
		return
	}
	w.calls.ring = r
}

func (w *worker) dispatch(ev *unix.EpollEvent) {
	switch {
	case ev.Pad >= 0:
		if c := w.slab.find(ev.Fd>>1, ev.Pad); c != nil {
			if c.flow != nil {
				w.ready = append(w.ready, c)
				return
			}
			w.event(c, int(ev.Fd&1), ev.Events)
		}
	case ev.Pad == isListener:
		if l := w.listeners[ev.Fd]; l != nil {
			w.accept(l)
		}
	case ev.Pad == isPackets:
		if l := w.packets[ev.Fd]; l != nil {
			w.fromClients(l)
		}
	case ev.Pad == isWake:
		w.runInbox()
	}
}

// timeout is how long the worker may sleep, in milliseconds.
func (w *worker) timeout() int {
	if len(w.queue) > 0 {
		return 0
	}
	sleep, any := w.wheel.sleep()
	for _, s := range w.paused {
		if left := s.retryAt - w.now; !any || left < sleep {
			sleep, any = left, true
		}
	}
	if !any {
		return -1
	}
	return int(uint64(sleep)<<tickShift/1e6) + 1
}

func (w *worker) report() {
	if w.copiedBytes != 0 {
		w.copied.Add(w.copiedBytes)
		w.copiedBytes = 0
	}
	if w.splicedBytes != 0 {
		w.spliced.Add(w.splicedBytes)
		w.splicedBytes = 0
	}
}

// post has the worker run task between two events. It is false when the
// worker has stopped and never will.
func (w *worker) post(task func(*worker)) bool {
	w.inbox.Lock()
	defer w.inbox.Unlock()
	if w.inbox.closed {
		return false
	}
	w.inbox.tasks = append(w.inbox.tasks, task)
	if len(w.inbox.tasks) == 1 {
		one := [8]byte{1}
		unix.Write(int(w.wakeFD), one[:])
	}
	return true
}

// call is post, and waits until the task is done.
func (w *worker) call(task func(*worker)) bool {
	done := make(chan struct{})
	ok := w.post(func(w *worker) {
		defer close(done)
		task(w)
	})
	if ok {
		<-done
	}
	return ok
}

func (w *worker) runInbox() {
	var count [8]byte
	unix.Read(int(w.wakeFD), count[:])
	w.inbox.Lock()
	tasks := w.inbox.tasks
	w.inbox.tasks = nil
	w.inbox.Unlock()
	for _, task := range tasks {
		task(w)
	}
}

// closeEverything leaves no descriptor behind.
func (w *worker) closeEverything() {
	w.inbox.Lock()
	w.inbox.closed = true
	tasks := w.inbox.tasks
	w.inbox.tasks = nil
	w.inbox.Unlock()
	for _, task := range tasks {
		task(w)
	}
	for _, l := range w.listeners {
		w.stopListening(l.listener)
	}
	for _, l := range w.packets {
		w.stopPackets(l)
	}
	w.slab.each(func(c *conn) { w.end(c, wasCut) })
	w.pipes.close()
	w.report()
	if w.calls.ring != nil {
		w.calls.ring.close()
	}
	w.closeDescriptors()
}

func (w *worker) closeDescriptors() {
	closeFD(w.wakeFD)
	closeFD(w.poll.fd)
}
