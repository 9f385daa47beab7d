package control

import (
	"context"
	"net/http"
	"time"
)

// Peers is the ambassador's sessions with other hosts.
type Peers struct {
	Self  Self   `json:"self"`
	Hosts []Peer `json:"hosts"`
}

// Self is who this host is to others.
type Self struct {
	ID        string    `json:"id,omitempty"` // "" for a host without an identity
	Until     time.Time `json:"until,omitzero"`
	Authority string    `json:"authority,omitempty"` // the host that has it; "" is none
	Listens   []string  `json:"listens"`
	Problem   string    `json:"problem,omitempty"` // why nobody talks to it
}

// Peer is another host.
type Peer struct {
	Host    string        `json:"host"`
	State   string        `json:"state"`            // StateUp or StateDown
	Since   time.Time     `json:"since,omitzero"`   // when that began
	Reason  string        `json:"reason,omitempty"` // why it is down
	Address string        `json:"address,omitempty"`
	Dialed  bool          `json:"dialed"` // by this host
	RTT     time.Duration `json:"round_trip_ns"`
	Streams int           `json:"streams"`
	Wanted  bool          `json:"wanted"` // by a link of this host, or to renew its certificate
}

// PeersHandler is a Handler that knows of other hosts.
type PeersHandler interface{ Peers() Peers }

func peersRoutes(mux *http.ServeMux, h PeersHandler) {
	mux.HandleFunc("GET /peers", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, h.Peers()) })
}

// Peers asks for the sessions with other hosts.
func (c *Client) Peers(ctx context.Context) (Peers, error) {
	var p Peers
	return p, c.do(ctx, http.MethodGet, "/peers", nil, &p)
}
