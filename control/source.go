package control

import (
	"context"
	"net/http"
	"net/url"
)

// Source is what a recipient may know of a source on another host.
type Source struct {
	Name     string   `json:"name"`
	Hostname string   `json:"hostname"`
	Env      []string `json:"env"`   // "NAME=value"
	Ports    []string `json:"ports"` // "5432/tcp"
	Down     string   `json:"down,omitempty"`
}

// SourceHandler answers for sources on other hosts.
type SourceHandler interface {
	// Source asks host what a recipient of this name may know of a source.
	Source(ctx context.Context, host, source, recipient string) (Source, error)
}

// Source asks for a source on another host, as a recipient of this name will
// see it.
func (c *Client) Source(ctx context.Context, host, source, recipient string) (Source, error) {
	var s Source
	path := "/sources/" + url.PathEscape(host) + "/" + url.PathEscape(source) + "?recipient=" + url.QueryEscape(recipient)
	return s, c.do(ctx, http.MethodGet, path, nil, &s)
}

func sourceRoutes(mux *http.ServeMux, h SourceHandler) {
	mux.HandleFunc("GET /sources/{host}/{source}", func(w http.ResponseWriter, r *http.Request) {
		s, err := h.Source(r.Context(), r.PathValue("host"), r.PathValue("source"), r.FormValue("recipient"))
		answerOr(w, s, err)
	})
}
