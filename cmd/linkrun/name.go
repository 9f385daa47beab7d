package main

import (
	"fmt"
	"math/rand/v2"
	"strings"
)

// Two short lists. The number after them makes the name unique.
const (
	moods = "amber brisk calm deft eager fleet gentle hardy ivory jolly keen lucid mellow nimble quiet rapid steady tidy vivid warm"
	birds = "avocet bittern crane dunlin egret finch godwit heron ibis jackdaw kestrel linnet martin osprey plover rail swift tern veery wren"
)

// newName invents a container's name. The variable ALIAS_NAME holds it, so it
// has to be known before docker would invent one.
func newName() string {
	pick := func(list string) string {
		words := strings.Fields(list)
		return words[rand.IntN(len(words))]
	}
	return fmt.Sprintf("%s-%s-%06x", pick(moods), pick(birds), rand.IntN(1<<24))
}
