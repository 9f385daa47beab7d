package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// A docker that is told to stop hangs up on its plugin, and the container
// shall hear of it.
func TestPluginIsToldToStop(t *testing.T) {
	address := fmt.Sprintf("@linkrun-test-%d", os.Getpid())
	ln, err := net.Listen("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	cmd := exec.CommandContext(t.Context(), filepath.Join(builtDir(t), pluginName), "linkrun", "until-told")
	cmd.Env = append(os.Environ(), envSocket+"="+address)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	if line, err := lines.ReadString('\n'); line != "waiting\n" {
		t.Errorf("docker says %q, %v", line, err)
	}
	conn.Close()
	if rest, err := io.ReadAll(lines); string(rest) != "told by terminated\n" {
		t.Errorf("docker says %q, %v", rest, err)
	}
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 5 {
		t.Errorf("exit code %d, want docker's, 5", code)
	}
}

// Otherwise docker ends as it likes, and the socket does not matter.
func TestPluginEnds(t *testing.T) {
	address := fmt.Sprintf("@linkrun-test-%d", os.Getpid())
	ln, err := net.Listen("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for _, tt := range []struct {
		docker string
		code   int
	}{
		{"exit 0", 0},
		{"echo out; exit 42", 42},
		{"kill -9 $$", 137},
		{"exec <&0; cat; exit 3", 3},
	} {
		script := filepath.Join(t.TempDir(), "docker")
		if err := os.WriteFile(script, []byte("#!/bin/sh\n"+tt.docker+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), filepath.Join(builtDir(t), pluginName), "linkrun", "image")
		cmd.Env = append(os.Environ(), envSocket+"="+address, envOriginalCommand+"="+script)
		out, _ := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != tt.code {
			t.Errorf("%s: exit code %d, want %d; output %q", tt.docker, code, tt.code, out)
		}
	}
}
