package bridge

import "os"

// What follows is read of the calling thread's namespace, which is the one
// the host was opened in unless the program wanders.

// Netfilter says whether the kernel has bridge netfilter, so that a bridge
// can be told to show its frames to the firewall.
func (h *Host) Netfilter() bool {
	_, err := os.Stat("/proc/sys/net/bridge")
	return err == nil
}

// NetfilterEverywhere says whether the frames of all bridges pass the
// firewall, whatever each is told.
func (h *Host) NetfilterEverywhere() bool {
	return sysctl("net/bridge/bridge-nf-call-iptables") && sysctl("net/bridge/bridge-nf-call-ip6tables")
}

// Forwards says whether the host routes IPv4 packets that are not for itself.
func (h *Host) Forwards() bool { return sysctl("net/ipv4/ip_forward") }

func sysctl(name string) bool {
	text, err := os.ReadFile("/proc/sys/" + name)
	return err == nil && string(text) == "1\n"
}
