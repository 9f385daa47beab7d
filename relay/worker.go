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
)

// worker is one thread with an epoll set of its own. Its connections, pipes
// and timers belong to it alone; others reach it through its inbox.
type worker struct {
	engine *Engine
	index  int
	calls  calls
	start  time.Time

	poll      epollSet
	wakeFD    int32
	now       uint32 // ticks since start, as of the last return from waiting
	slab      slab
	wheel     wheel
	pipes     pipePool
	spills    spillPool
	queue     []int32 // connections that have used up their turn
	other     []int32 // the queue being worked off
	listeners map[int32]*listening
	stopping  bool

	copiedBytes, splicedBytes uint64 // of this round
	events                    [128]unix.EpollEvent
	buf                       [copySize]byte

	load    atomic.Int64 // connections, for the choice of a worker
	wakeups atomic.Uint64
	copied  atomic.Uint64
	spliced atomic.Uint64

	inbox struct {
		sync.Mutex
		tasks  []func(*worker)
		closed bool
	}
}

func newWorker(e *Engine, index int) (*worker, error) {
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
		calls:     e.calls,
		start:     time.Now(),
		poll:      epollSet{int32(poll)},
		wakeFD:    int32(wake),
		pipes:     pipePool{open: &e.pipes, bound: e.pipeBound()},
		listeners: make(map[int32]*listening),
	}
	if errno := w.poll.control(unix.EPOLL_CTL_ADD, w.wakeFD, unix.EPOLLIN|unix.EPOLLET, 0, isWake); errno != 0 {
		w.closeDescriptors()
		return nil, fmt.Errorf("watching an eventfd: %w", errno)
	}
	return w, nil
}

// loop runs on a thread of its own until a task sets stopping.
func (w *worker) loop() {
	// The thread is not given back: Go ends it with the goroutine.
	runtime.LockOSThread()
	for !w.stopping {
		n, errno := w.poll.wait(w.events[:], w.timeout())
		if errno != 0 && errno != unix.EINTR {
			// Nothing but a bug leads here: the set is valid as long as the
			// loop runs. Better no relay than one that spins.
			panic(fmt.Sprintf("relay: waiting for events: %v", errno))
		}
		w.wakeups.Add(1)
		w.now = uint32(uint64(time.Since(w.start)) >> tickShift)
		for i := range max(n, 0) {
			w.dispatch(&w.events[i])
		}
		w.runQueue()
		w.wheel.expire(&w.slab, w.now, w.expire)
		w.retryListeners()
		w.report()
	}
	w.closeEverything()
}

func (w *worker) dispatch(ev *unix.EpollEvent) {
	switch {
	case ev.Pad >= 0:
		if c := w.slab.find(ev.Fd>>1, ev.Pad); c != nil {
			w.event(c, int(ev.Fd&1), ev.Events)
		}
	case ev.Pad == isListener:
		if l := w.listeners[ev.Fd]; l != nil {
			w.accept(l)
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
	for _, l := range w.listeners {
		if l.paused && (!any || l.retryAt-w.now < sleep) {
			sleep, any = l.retryAt-w.now, true
		}
	}
	if !any {
		return -1
	}
	return int(uint64(sleep)<<tickShift/1e6) + 1
}

// runQueue gives those that wait for another turn one each.
func (w *worker) runQueue() {
	if len(w.queue) == 0 {
		return
	}
	w.queue, w.other = w.other[:0], w.queue
	for _, slot := range w.other {
		if c := w.slab.at(slot); c.queued {
			c.queued = false
			w.run(c)
		}
	}
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
		rawWrite(w.wakeFD, one[:])
	}
	return true
}

func (w *worker) runInbox() {
	var count [8]byte
	rawRead(w.wakeFD, count[:])
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
	w.slab.each(func(c *conn) { w.abort(c, wasCut) })
	w.pipes.close()
	w.report()
	w.closeDescriptors()
}

func (w *worker) closeDescriptors() {
	closeFD(w.wakeFD)
	closeFD(w.poll.fd)
}

// retryable says whether an accept failed for want of something that others
// give back.
func retryable(errno syscall.Errno) bool {
	switch errno {
	case unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM:
		return true
	}
	return false
}
