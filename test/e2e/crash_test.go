// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tendril-net/tendril/internal/failpoint"
	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/internal/nstest"
)

// crashSite is a node on which one container lives through all that happens to
// the others.
type crashSite struct {
	*site
	keeper   *nodetest.Container
	at       netip.AddrPort
	baseline nodetest.State
	// path is CNI_PATH, leases the folder of the IPAM plugin found there.
	path, leases string
}

func newCrashSite(t *testing.T) *crashSite {
	s := &crashSite{site: running(t), path: ipamDir(t), leases: t.TempDir()}
	s.keeper = s.Attach(t, "keeper", s.pods)
	s.at = serveUDP(t, s.world, netip.AddrPortFrom(world4, 0))
	s.baseline = s.State(t)
	return s
}

// networks are one whose addresses the agent leases, and one whose addresses
// come from another plugin.
func (s *crashSite) networks() map[string]nodetest.Network {
	return map[string]nodetest.Network{
		"tendril": s.pods,
		"delegated": s.Network("delegated").With("ipam", map[string]any{
			"type": ipamName, "dir": s.leases,
		}),
	}
}

// recover is what a runtime does about a container that it gives up.
func (s *crashSite) recover(t *testing.T, how string, c *nodetest.Container) {
	t.Helper()
	call := c.Call("DEL")
	if how == "GC" {
		var keep []any
		if c.Network["name"] == s.pods["name"] {
			keep = append(keep, map[string]any{"containerID": s.keeper.ContainerID, "ifname": s.keeper.IfName})
		} else {
			keep = []any{}
		}
		call = nodetest.Call{Command: "GC", Network: c.Network.With("cni.dev/valid-attachments", keep)}
	}
	call.Path = s.path
	if answer := s.Call(t, call); answer.Error != nil || answer.Killed {
		t.Fatalf("%s: %+v", how, answer)
	}
}

// clean fails the test when something is left of a container.
func (s *crashSite) clean(t *testing.T, ns *nstest.NS) {
	t.Helper()
	s.BecomesRecorded(t, s.baseline)
	if lines := nodetest.Lines(t, ns, "ip", "-o", "link", "show"); len(lines) != 1 {
		t.Errorf("the container has links: %q", lines)
	}
	if leases := must(os.ReadDir(s.leases))(t); len(leases) != 0 {
		t.Errorf("the IPAM plugin has leases: %v", leases)
	}
	if got := askUDP(t, dialUDP(t, s.keeper.NS, netip.AddrPort{}, s.at), pattern(10)).Addr(); got != uplink4 {
		t.Errorf("the world saw the container that stays as %s", got)
	}
}

// works adds, uses and deletes the container.
func (s *crashSite) works(t *testing.T, c *nodetest.Container) {
	t.Helper()
	s.add(t, c)
	if got := askUDP(t, dialUDP(t, c.NS, netip.AddrPort{}, s.at), pattern(10)).Addr(); got != uplink4 {
		t.Errorf("the world saw the container as %s", got)
	}
	s.recover(t, "DEL", c)
	s.clean(t, c.NS)
}

func (s *crashSite) add(t *testing.T, c *nodetest.Container) {
	t.Helper()
	call := c.Call("ADD")
	call.Path = s.path
	if answer := s.Call(t, call); answer.Error != nil || answer.Killed {
		t.Fatalf("ADD: %+v", answer)
	}
}

// container is one that is not attached. What a failing test leaves of it is
// removed, so that the next test finds a clean node.
func (s *crashSite) container(t *testing.T, network nodetest.Network) *nodetest.Container {
	t.Helper()
	c := &nodetest.Container{NS: nstest.New(t, "crash"), Network: network}
	c.ContainerID, c.IfName = "crash", "eth0"
	t.Cleanup(func() {
		if t.Failed() {
			call := c.Call("DEL")
			call.Path = s.path
			s.Call(t, call)
		}
	})
	return c
}

// The plugin is killed at each of its failpoints. DEL clears up behind it, and
// GC does, with the agent that saw it and with one that was killed as well.
func TestPluginCrash(t *testing.T) {
	s := newCrashSite(t)
	for name, network := range s.networks() {
		recoveries := []string{"DEL", "GC"}
		if name == "tendril" && !small() {
			recoveries = append(recoveries, "restart, DEL", "restart, GC")
		}
		for _, point := range failpoint.CNI {
			if point == failpoint.CNIAddLeased && name != "delegated" {
				continue // nobody is asked for a lease
			}
			for _, how := range recoveries {
				t.Run(name+" "+string(point)+" "+how, func(t *testing.T) {
					c := s.container(t, network)
					call := c.Call("ADD")
					if strings.HasPrefix(string(point), "cni-del-") {
						s.add(t, c)
						call = c.Call("DEL")
					}
					call.Path, call.Crash = s.path, point
					if answer := s.Call(t, call); !answer.Killed {
						t.Fatalf("the plugin did not die at the failpoint: %+v", answer)
					}
					how, restart := strings.CutPrefix(how, "restart, ")
					if restart {
						s.Kill(t)
						s.Start(t)
					}
					s.recover(t, how, c)
					s.clean(t, c.NS)
					s.works(t, c)
				})
			}
		}
	}
}

// The agent is killed at each of its failpoints. The plugin undoes its half, or
// finishes it; the next agent does the rest by itself or when DEL or GC says so.
func TestAgentCrash(t *testing.T) {
	s := newCrashSite(t)
	recoveries := []string{"DEL", "GC"}
	for name, network := range s.networks() {
		for i, point := range failpoint.Agent {
			for j, how := range recoveries {
				if (small() || name != "tendril") && i%2 != j {
					continue // one of the two
				}
				t.Run(name+" "+string(point)+" "+how, func(t *testing.T) {
					c := s.container(t, network)
					s.Stop(t)
					s.StartToCrash(t, point)
					call := c.Call("ADD")
					wantCode := uint(11) // try again later
					if strings.HasPrefix(string(point), "agent-delete-") {
						s.add(t, c)
						call, wantCode = c.Call("DEL"), 0
					}
					call.Path = s.path
					answer := s.Call(t, call)
					s.Crashed(t)
					code := uint(0)
					if answer.Error != nil {
						code = answer.Error.Code
					}
					if diff := cmp.Diff(wantCode, code); diff != "" || answer.Killed {
						t.Errorf("code of %s (-want +got):\n%s%+v", call.Command, diff, answer)
					}
					if lines := nodetest.Lines(t, c.NS, "ip", "-o", "link", "show"); len(lines) != 1 {
						t.Errorf("after %s the container has links: %q", call.Command, lines)
					}
					s.Start(t)
					s.recover(t, how, c)
					s.clean(t, c.NS)
					s.works(t, c)
				})
			}
		}
	}
	// What the maps held of all of them goes, too.
	s.Delete(t, s.keeper)
	nodetest.Eventually(t, "numbers that wait for the purge", func() error {
		return nodetest.Unlike(s.Metrics(t)["tendril_endpoint_ids_draining"], 0)
	})
	left := s.State(t).Entries
	want := map[string]int{"endpoints": 0, "flows": 0, "fragments": 0, "interfaces": 1, "masquerade_exclude": 0, "translations": 0}
	if diff := cmp.Diff(want, left); diff != "" {
		t.Errorf("entries of the maps (-want +got):\n%s", diff)
	}
	if pins := must(filepath.Glob(filepath.Join(s.BPFRoot, "links", "*")))(t); len(pins) > 2 {
		t.Errorf("besides those of the uplink, links are pinned: %v", pins)
	}
}
