// Package places bounds how many strangers may be dealt with at a time: for
// one more, the one that has taken longest has to go. It waits for nobody.
package places

import (
	"container/list"
	"io"
	"sync"
)

// Places are those that are taken. The zero value has none. A stranger who
// comes again and again, and says nothing, drives out others of its kind
// before it drives out anyone who is quick.
type Places struct {
	mu    sync.Mutex
	taken list.List // of io.Closer, longest first
}

// Take gives c one of n places. When all are taken it closes whoever has had
// one longest. leave gives the place back; it may be called after that, and
// more than once.
func (p *Places) Take(n int, c io.Closer) (leave func()) {
	p.mu.Lock()
	var goes []io.Closer
	for p.taken.Len() >= max(n, 1) {
		goes = append(goes, p.taken.Remove(p.taken.Front()).(io.Closer))
	}
	place := p.taken.PushBack(c)
	p.mu.Unlock()
	for _, c := range goes {
		c.Close()
	}
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.taken.Remove(place) // does nothing if somebody else has it
	}
}
