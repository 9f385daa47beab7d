package control

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
)

// ICC is what is enforced between containers, wanted against found.
type ICC struct {
	Mode    string          `json:"mode"` // "off", "enforce" or "deny"
	Bridges []ICCBridge     `json:"bridges"`
	Allowed []ICCPermission `json:"allowed"`
	Missing []string        `json:"missing"` // what would have to be done for found to be what is wanted
}

// ICCBridge is a network that is made of a bridge.
type ICCBridge struct {
	Network  string `json:"network"`
	Bridge   string `json:"bridge"`
	Wanted   string `json:"wanted"` // "closed" or "open"
	Why      string `json:"why"`
	Found    string `json:"found"` // "closed", or what is not
	Ports    int    `json:"ports"` // that containers are behind
	Isolated int    `json:"isolated"`
}

// ICCPermission lets a recipient reach one port of a source over a closed
// bridge.
type ICCPermission struct {
	Recipient string `json:"recipient"`
	Source    string `json:"source"`
	Port      string `json:"port"` // "5432/tcp"

	State  string `json:"state,omitempty"` // as of a link; in answers only
	Reason string `json:"reason,omitempty"`
}

// ICCHandler answers requests about what passes between containers.
type ICCHandler interface {
	ICC(context.Context) (ICC, error)
	ICCOff(context.Context) (removed []string, err error)
	ICCAllow(context.Context, ICCPermission) error
	ICCRevoke(context.Context, ICCPermission) error
}

// removed is the answer to a request to remove everything.
type removed struct {
	Removed []string `json:"removed"`
}

// ICC asks what is enforced.
func (c *Client) ICC(ctx context.Context) (ICC, error) {
	var s ICC
	return s, c.do(ctx, http.MethodGet, "/icc", nil, &s)
}

// ICCOff has everything removed that is enforced, and says what that was.
func (c *Client) ICCOff(ctx context.Context) ([]string, error) {
	var r removed
	err := c.do(ctx, http.MethodPost, "/icc/off", struct{}{}, &r)
	return r.Removed, err
}

// ICCAllow lets a recipient reach a port of a source.
func (c *Client) ICCAllow(ctx context.Context, p ICCPermission) error {
	return c.do(ctx, http.MethodPost, "/icc/allow", p, nil)
}

// ICCRevoke takes back what ICCAllow gave.
func (c *Client) ICCRevoke(ctx context.Context, p ICCPermission) error {
	return c.do(ctx, http.MethodPost, "/icc/revoke", p, nil)
}

func iccRoutes(mux *http.ServeMux, h ICCHandler) {
	mux.HandleFunc("GET /icc", func(w http.ResponseWriter, r *http.Request) {
		s, err := h.ICC(r.Context())
		answerOr(w, s, err)
	})
	mux.HandleFunc("POST /icc/off", func(w http.ResponseWriter, r *http.Request) {
		list, err := h.ICCOff(r.Context())
		answerOr(w, removed{list}, err)
	})
	permission := func(do func(context.Context, ICCPermission) error) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			var p ICCPermission
			if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<16)).Decode(&p); err != nil {
				answerOr(w, nil, &RefusedError{Status: http.StatusBadRequest, Message: "the request cannot be read: " + err.Error()})
				return
			}
			answerOr(w, struct{}{}, do(r.Context(), p))
		}
	}
	mux.HandleFunc("POST /icc/allow", permission(h.ICCAllow))
	mux.HandleFunc("POST /icc/revoke", permission(h.ICCRevoke))
}

// answerOr answers with v, or says why not.
func answerOr(w http.ResponseWriter, v any, err error) {
	var refused *RefusedError
	switch {
	case err == nil:
		answer(w, http.StatusOK, v)
	case errors.As(err, &refused):
		answer(w, refused.Status, refused)
	default:
		answer(w, http.StatusInternalServerError, RefusedError{Message: err.Error()})
	}
}
