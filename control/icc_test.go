package control

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
)

// iccFixed answers as it was told, and notes what it was asked.
type iccFixed struct {
	fixed
	icc   ICC
	err   error
	asked *[]string
}

func (f iccFixed) note(format string, args ...any) error {
	*f.asked = append(*f.asked, fmt.Sprintf(format, args...))
	return f.err
}

func (f iccFixed) ICC(context.Context) (ICC, error) { return f.icc, f.note("icc") }
func (f iccFixed) ICCOff(context.Context) ([]string, error) {
	return []string{"a rule", "a port"}, f.note("off")
}
func (f iccFixed) ICCAllow(_ context.Context, p ICCPermission) error {
	return f.note("allow %s %s %s", p.Recipient, p.Source, p.Port)
}
func (f iccFixed) ICCRevoke(_ context.Context, p ICCPermission) error {
	return f.note("revoke %s %s %s", p.Recipient, p.Source, p.Port)
}

func TestICCAnswersArriveWhole(t *testing.T) {
	var asked []string
	want := ICC{Mode: "deny", Bridges: []ICCBridge{{Network: "n", Bridge: "b", Wanted: "closed", Why: "w", Found: "f", Ports: 2, Isolated: 1}},
		Allowed: []ICCPermission{{Recipient: "r", Source: "s", Port: "1/tcp", State: "down", Reason: "why"}}, Missing: []string{"m"}}
	dir := filepath.Join(t.TempDir(), "dir")
	defer serve(t, dir, iccFixed{icc: want, asked: &asked})()
	c, ctx := Dial(dir), t.Context()
	if got, err := c.ICC(ctx); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("ICC = %+v, %v", got, err)
	}
	if got, err := c.ICCOff(ctx); err != nil || !slices.Equal(got, []string{"a rule", "a port"}) {
		t.Errorf("ICCOff = %q, %v", got, err)
	}
	p := ICCPermission{Recipient: "r", Source: "s", Port: "1/tcp"}
	if err := errors.Join(c.ICCAllow(ctx, p), c.ICCRevoke(ctx, p)); err != nil {
		t.Error(err)
	}
	if want := []string{"icc", "off", "allow r s 1/tcp", "revoke r s 1/tcp"}; !slices.Equal(asked, want) {
		t.Errorf("asked was %q, want %q", asked, want)
	}
}

func TestICCRefusalsArriveWhole(t *testing.T) {
	var asked []string
	h := iccFixed{asked: &asked, err: &RefusedError{Status: 409, Message: "no", Hint: "try"}}
	dir := filepath.Join(t.TempDir(), "dir")
	stop := serve(t, dir, h)
	var refused *RefusedError
	if err := Dial(dir).ICCAllow(t.Context(), ICCPermission{}); !errors.As(err, &refused) ||
		*refused != (RefusedError{Status: 409, Message: "no", Hint: "try"}) {
		t.Errorf("the error is %+v", err)
	}
	stop()
	h.err = errors.New("broken")
	defer serve(t, dir, h)()
	if _, err := Dial(dir).ICC(t.Context()); !errors.As(err, &refused) || refused.Status != 500 || err.Error() != "broken" {
		t.Errorf("the error is %+v", err)
	}
	if err := Dial(dir).do(t.Context(), "POST", "/icc/allow", "no object", nil); !errors.As(err, &refused) || refused.Status != 400 {
		t.Errorf("the error is %+v", err)
	}
}
