package places_test

import (
	"slices"
	"testing"

	"github.com/linkrun/linkrun/internal/places"
)

// guest notes when it has to go.
type guest struct {
	name string
	gone *[]string
}

func (g guest) Close() error {
	*g.gone = append(*g.gone, g.name)
	return nil
}

func TestTheLongestGoes(t *testing.T) {
	var p places.Places
	var gone []string
	leave := map[string]func(){}
	come := func(name string) { leave[name] = p.Take(2, guest{name, &gone}) }
	come("a")
	come("b")
	leave["a"]()
	leave["a"]()
	come("c") // there is room
	come("d") // in place of b
	leave["b"]()
	come("e") // in place of c, since b's place had gone to d
	if want := []string{"b", "c"}; !slices.Equal(gone, want) {
		t.Errorf("%q had to go, want %q", gone, want)
	}
}

func TestThereIsAlwaysAPlace(t *testing.T) {
	var p places.Places
	var gone []string
	p.Take(0, guest{"a", &gone})
	p.Take(-1, guest{"b", &gone})
	if want := []string{"a"}; !slices.Equal(gone, want) {
		t.Errorf("%q had to go, want %q", gone, want)
	}
}
