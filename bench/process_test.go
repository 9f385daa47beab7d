package main

import (
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"
)

func TestParseStat(t *testing.T) {
	got, err := parseStat([]byte("42 (a (b) c) S 7 42 42 0 -1 4194560 100 0 0 0 1 2 30 400 20 0 1 0 5 6 7\n"))
	want := process{pid: 42, above: 7, name: "a (b) c", cpu: 4330 * time.Millisecond}
	if err != nil || got != want {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	for _, bad := range []string{"", "42", "42 a S 7", ") 42 ("} {
		if got, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q is read as %+v", bad, got)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("42 (a (b) c) S 7 42 42 0 -1 4194560 100 0 0 0 1 2 30 400 20 0 1 0 5 6 7\n"))
	f.Add([]byte("1 () R x"))
	f.Fuzz(func(t *testing.T, text []byte) { parseStat(text) })
}

// TestChildrenCount looks at a shell whose children use time, and end.
func TestChildrenCount(t *testing.T) {
	cmd := exec.Command("sh", "-c", "while :; do (i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done); done")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	eventually(t, func() error {
		used, err := cpuTime([]int{cmd.Process.Pid})
		if err == nil && used < 100*time.Millisecond {
			err = fmt.Errorf("the shell and its children are said to have used %v", used)
		}
		return err
	})
	members, err := family([]int{os.Getpid()})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range members {
		if p.pid == cmd.Process.Pid && p.above == os.Getpid() {
			return
		}
	}
	t.Errorf("the shell is not in the family: %+v", members)
}

func TestHeld(t *testing.T) {
	self := []int{os.Getpid()}
	before, err := held(self)
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	block := make([]byte, 64<<20)
	for i := range block {
		block[i] = 1
	}
	after, err := held(self)
	if err != nil {
		t.Fatal(err)
	}
	more := after.less(before)
	if more.descriptors != 2 || more.pipes != 2 || more.processes != 0 {
		t.Errorf("a pipe is %+v", more)
	}
	if more.memory < int64(len(block)) {
		t.Errorf("%d bytes are said to be %d", len(block), more.memory)
	}
	if block[len(block)-1] != 1 { // and keep it until here
		t.Error("it is gone")
	}
}

// eventually asks until cond returns nil.
func eventually(t *testing.T, cond func() error) {
	t.Helper()
	if err := poll(t.Context(), 30*time.Second, cond); err != nil {
		t.Fatal(err)
	}
}
