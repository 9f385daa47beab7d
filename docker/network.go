package docker

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
)

// NetworkInfo is a network of the engine, whoever is on it.
type NetworkInfo struct {
	ID     string
	Name   string
	Driver string
	Labels map[string]string

	// Device is the bridge on the host. Empty for a network that is not made
	// of one: of another driver, or of another host.
	Device string

	Default  bool // the bridge that containers are on if nothing is said
	ICC      bool // the engine lets containers on it reach each other
	Internal bool // it has no way to the outside

	Subnets  []netip.Prefix
	Gateways []netip.Addr
}

// Options of a network (moby's libnetwork/drivers/bridge labels).
const (
	optionDevice  = "com.docker.network.bridge.name"
	optionICC     = "com.docker.network.bridge.enable_icc"
	optionDefault = "com.docker.network.bridge.default_bridge"
)

// Networks lists the networks, by name.
func (c *Client) Networks(ctx context.Context) ([]NetworkInfo, error) {
	res, err := c.api.NetworkList(ctx, client.NetworkListOptions{})
	if err != nil {
		return nil, fmt.Errorf("listing networks: %w", c.explain(ctx, err))
	}
	var found []NetworkInfo
	for _, item := range res.Items {
		found = append(found, fromNetwork(item.Network))
	}
	slices.SortFunc(found, func(a, b NetworkInfo) int { return strings.Compare(a.Name, b.Name) })
	return found, nil
}

func fromNetwork(in network.Network) NetworkInfo {
	out := NetworkInfo{
		ID: in.ID, Name: in.Name, Driver: in.Driver, Labels: in.Labels, Internal: in.Internal,
		Default: isSet(in.Options[optionDefault], false),
		ICC:     isSet(in.Options[optionICC], true),
	}
	if in.Driver == "bridge" && !in.ConfigOnly {
		out.Device = in.Options[optionDevice]
		if out.Device == "" && len(in.ID) >= 12 {
			out.Device = "br-" + in.ID[:12]
		}
	}
	for _, c := range in.IPAM.Config {
		if c.Subnet.IsValid() {
			out.Subnets = append(out.Subnets, c.Subnet)
		}
		if c.Gateway.IsValid() {
			out.Gateways = append(out.Gateways, c.Gateway)
		}
	}
	return out
}

// isSet reads an option as the engine's bridge driver does, with
// strconv.ParseBool; what that refuses, the engine has not accepted.
func isSet(value string, otherwise bool) bool {
	switch value {
	case "1", "t", "T", "true", "TRUE", "True":
		return true
	case "0", "f", "F", "false", "FALSE", "False":
		return false
	}
	return otherwise
}
