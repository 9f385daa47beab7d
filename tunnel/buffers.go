package tunnel

import (
	"sync"
	"sync/atomic"
)

// Buffers lends buffers of three sizes to pumps. The zero value is ready to
// use.
type Buffers struct {
	pools [3]sync.Pool
	lent  atomic.Int64
}

// Lent is how many buffers are in use.
func (b *Buffers) Lent() int { return int(b.lent.Load()) }

// bufferSizes grow as a connection turns out to be bulk: most are not. The
// largest is what goes into one frame.
var bufferSizes = [3]int{1 << 10, 16 << 10, maxBody}

type buffer struct {
	bytes []byte
	size  int // index in bufferSizes
}

func (b *Buffers) borrow(size int) *buffer {
	b.lent.Add(1)
	if got, ok := b.pools[size].Get().(*buffer); ok {
		return got
	}
	return &buffer{make([]byte, bufferSizes[size]), size}
}

func (b *Buffers) giveBack(buf *buffer) {
	b.lent.Add(-1)
	b.pools[buf.size].Put(buf)
}

// sizeFor is the smallest size that holds n bytes, or the largest there is.
func sizeFor(n int64) int {
	for i, size := range bufferSizes {
		if n <= int64(size) {
			return i
		}
	}
	return len(bufferSizes) - 1
}
