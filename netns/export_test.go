//go:build linux

package netns

// PoolMost is the bound of a pool's stock.
const PoolMost = poolMost

// Idle returns how many sockets are in stock.
func (p *Pool) Idle() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.free)
}

// Rest does what the owner does every few seconds.
func (p *Pool) Rest() bool { return p.settle() }
