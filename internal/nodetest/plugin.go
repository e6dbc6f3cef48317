// SPDX-License-Identifier: Apache-2.0

package nodetest

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"maps"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/tendril-net/tendril/internal/dhcptest"
	"github.com/tendril-net/tendril/internal/failpoint"
	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/api"
)

// Network is a CNI network configuration.
type Network map[string]any

// Network returns a configuration for the node's agent that masquerades and
// leases one address from each subnet.
func (n *Node) Network(name string, subnets ...string) Network {
	var ranges []any
	for _, s := range subnets {
		ranges = append(ranges, []any{map[string]any{"subnet": s}})
	}
	return Network{
		"cniVersion": "1.1.0", "name": name, "type": "tendril-cni", "socket": n.Socket, "ipMasq": true,
		"ipam": map[string]any{"type": "tendril", "ranges": ranges},
	}
}

// With returns a copy with another value for a key.
func (c Network) With(key string, value any) Network {
	c = maps.Clone(c)
	c[key] = value
	return c
}

// Call is one run of the plugin.
type Call struct {
	Command string
	// ContainerID, NetNS (a path) and IfName are empty for GC and STATUS.
	ContainerID, NetNS, IfName string
	Network                    Network
	// Path is CNI_PATH; empty leads to the reference plugins.
	Path string
	// Crash is where the plugin kills itself; empty for nowhere.
	Crash failpoint.Point
}

// Answer is what the plugin said.
type Answer struct {
	Stdout, Stderr string
	// Error is nil when the plugin succeeded, or was killed.
	Error *types.Error
	// Killed says that SIGKILL ended it.
	Killed bool
}

// Call runs the plugin in the node's namespace. It may be called from several
// goroutines.
func (n *Node) Call(tb testing.TB, c Call) Answer {
	tb.Helper()
	text, err := json.Marshal(c.Network)
	if err != nil {
		tb.Error(err)
		return Answer{}
	}
	program := n.Programs.CNI
	if c.Crash != "" {
		program = n.Programs.CrashCNI
	}
	command := exec.Command(program)
	command.Env = append(
		environment(), "TENDRIL_FAILPOINT="+string(c.Crash),
		"CNI_COMMAND="+c.Command, "CNI_CONTAINERID="+c.ContainerID, "CNI_NETNS="+c.NetNS, "CNI_IFNAME="+c.IfName,
		"CNI_PATH="+cmp.Or(c.Path, dhcptest.Plugins),
	)
	var stdout, stderr bytes.Buffer
	command.Stdin, command.Stdout, command.Stderr = bytes.NewReader(text), &stdout, &stderr
	if err := n.Exec(tb, command); err != nil {
		tb.Error(err)
		return Answer{Error: types.NewError(types.ErrInternal, err.Error(), "")}
	}
	err = command.Wait()
	answer := Answer{Stdout: stdout.String(), Stderr: stderr.String()}
	exit := (*exec.ExitError)(nil)
	switch {
	case err == nil:
	case errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL:
		answer.Killed = true
	default:
		answer.Error = &types.Error{}
		if json.Unmarshal(stdout.Bytes(), answer.Error) != nil || answer.Error.Msg == "" {
			answer.Error = types.NewError(types.ErrInternal, "the plugin said no error", err.Error()+": "+stdout.String()+stderr.String())
		}
	}
	return answer
}

// Container is a network namespace that the plugin has attached.
type Container struct {
	*nstest.NS
	api.Attachment
	Network Network
	// Result of the ADD, as it came.
	Result string
	// Addresses of either family; zero where it has none.
	IPv4, IPv6 netip.Addr
	// Gateways are the host's addresses towards it.
	Gateway4, Gateway6 netip.Addr
	// MAC of its interface and of the host's side, and that side's name.
	MAC, HostMAC net.HardwareAddr
	HostIfName   string
}

// Attach makes a container and attaches it as eth0. Its namespace is removed
// when the test ends, and the interface with it.
func (n *Node) Attach(tb testing.TB, id string, network Network) *Container {
	tb.Helper()
	return n.AttachTo(tb, nstest.New(tb, id), id, "eth0", network)
}

// AttachTo attaches another interface.
func (n *Node) AttachTo(tb testing.TB, ns *nstest.NS, id, ifName string, network Network) *Container {
	tb.Helper()
	c := &Container{NS: ns, Attachment: api.Attachment{ContainerID: id, IfName: ifName}, Network: network}
	answer := n.Call(tb, c.Call("ADD"))
	if answer.Error != nil || answer.Killed {
		tb.Fatalf("ADD of %s: %+v", id, answer)
	}
	if err := c.Read(answer.Stdout); err != nil {
		tb.Fatalf("read the result of ADD: %v\n%s", err, answer.Stdout)
	}
	return c
}

// Call is a run of the plugin for the container.
func (c *Container) Call(command string) Call {
	return Call{Command: command, ContainerID: c.ContainerID, NetNS: c.Path, IfName: c.IfName, Network: c.Network}
}

// Read takes over what an ADD answered.
func (c *Container) Read(text string) error {
	c.Result = text
	var result current.Result
	if err := json.Unmarshal([]byte(text), &result); err != nil {
		return err
	}
	mine := -1
	for i, link := range result.Interfaces {
		mac, err := net.ParseMAC(link.Mac)
		if err != nil {
			return err
		}
		switch {
		case link.Sandbox != "" && link.Name == c.IfName:
			mine, c.MAC = i, mac
		case strings.HasPrefix(link.Name, api.HostIfPrefix):
			c.HostIfName, c.HostMAC = link.Name, mac
		}
	}
	for _, ip := range result.IPs {
		if ip.Interface == nil || *ip.Interface != mine {
			continue
		}
		address, _ := netip.AddrFromSlice(ip.Address.IP)
		gateway, _ := netip.AddrFromSlice(ip.Gateway)
		if address = address.Unmap(); address.Is4() {
			c.IPv4, c.Gateway4 = address, gateway.Unmap()
		} else {
			c.IPv6, c.Gateway6 = address, gateway
		}
	}
	return nil
}

// Delete runs DEL, which must succeed.
func (n *Node) Delete(tb testing.TB, c *Container) {
	tb.Helper()
	if answer := n.Call(tb, c.Call("DEL")); answer.Error != nil || answer.Killed {
		tb.Errorf("DEL of %s: %+v", c.ContainerID, answer)
	}
}
