package control

import (
	"context"
	"errors"
	"path/filepath"
	"reflect"
	"testing"
)

type sourceFixed struct {
	fixed
	asked *[]string
}

func (f sourceFixed) Source(_ context.Context, host, source, recipient string) (Source, error) {
	*f.asked = []string{host, source, recipient}
	if host == "none" {
		return Source{}, &RefusedError{Status: 404, Message: "no", Hint: "try"}
	}
	return Source{Name: "db", Hostname: "h", Env: []string{"A=b"}, Ports: []string{"1/tcp"}, Down: "why"}, nil
}

func TestSourcesArriveWhole(t *testing.T) {
	var asked []string
	dir := filepath.Join(t.TempDir(), "dir")
	defer serve(t, dir, sourceFixed{asked: &asked})()
	c := Dial(dir)
	want := Source{Name: "db", Hostname: "h", Env: []string{"A=b"}, Ports: []string{"1/tcp"}, Down: "why"}
	if got, err := c.Source(t.Context(), "host-b", "d/b?", "we b&"); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("Source = %+v, %v", got, err)
	}
	if want := []string{"host-b", "d/b?", "we b&"}; !reflect.DeepEqual(asked, want) {
		t.Errorf("asked was %q, want %q", asked, want)
	}
	var refused *RefusedError
	if _, err := c.Source(t.Context(), "none", "db", "web"); !errors.As(err, &refused) || *refused != (RefusedError{404, "no", "try"}) {
		t.Errorf("the error is %+v", err)
	}
}
