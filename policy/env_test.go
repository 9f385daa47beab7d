package policy

import (
	"slices"
	"testing"
)

func TestEnv(t *testing.T) {
	vars := []string{"PASSWORD=secret", "PG_MAJOR=15", "PG/X=1", "bare", "=odd"}
	for value, want := range map[string][]string{
		"":             vars,
		"all":          vars,
		"ports":        nil,
		"none":         nil,
		"PG*":          {"PG_MAJOR=15", "PG/X=1"},
		"PG_*, [b]are": {"PG_MAJOR=15", "PG/X=1", "bare"},
		"ALL":          nil,
	} {
		e, err := ParseEnv("db", value)
		if err != nil {
			t.Errorf("%q: %v", value, err)
		}
		if got := e.Filter(vars); !slices.Equal(got, want) {
			t.Errorf("%q lets through %q, want %q", value, got, want)
		}
	}
	if got := Env(nil).Filter(vars); got != nil {
		t.Errorf("the zero value lets through %q", got)
	}
	_, err := ParseEnv("db", "A,[")
	if want := `parsing label "ambassador.allow.env" of "db": "[": syntax error in pattern`; err == nil || err.Error() != want {
		t.Errorf("error %v, want %q", err, want)
	}
}
