// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tendril-net/tendril/internal/failpoint"
	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/api"
)

// crashSite is a node on which containers come to grief.
type crashSite struct {
	*site
	driver driver
	// keeper is a container that lives through all of that, or nil.
	keeper   *nodetest.Container
	at       netip.AddrPort
	baseline nodetest.State
	// path is CNI_PATH, leases the folder of the IPAM plugin found there.
	path, leases string
}

func newCrashSite(t *testing.T, d driver) *crashSite {
	s := &crashSite{site: drivenBy(t, d), driver: d, path: ipamDir(t), leases: t.TempDir()}
	s.at = serveUDP(t, s.world, netip.AddrPortFrom(world4, 0))
	s.Delete(t, s.Attach(t, "first", s.pods)) // whose bridge stays
	nodetest.Eventually(t, "numbers that wait for the purge", func() error {
		return nodetest.Unlike(s.Metrics(t)["tendril_endpoint_ids_draining"], 0)
	})
	s.baseline = s.State(t)
	return s
}

// keep attaches the container that is to stay.
func (s *crashSite) keep(t *testing.T) {
	t.Helper()
	s.keeper = s.Attach(t, "keeper", s.pods)
	s.keeps(t)
	s.baseline = s.State(t)
}

// keeps fails the test when the container that stays does not work.
func (s *crashSite) keeps(t *testing.T) {
	t.Helper()
	if s.keeper == nil {
		return
	}
	if got := askUDP(t, dialUDP(t, s.keeper.NS, netip.AddrPort{}, s.at), pattern(10)).Addr(); got != s.driver.shown(families()[0], s.keeper) {
		t.Errorf("the world saw the container that stays as %s", got)
	}
}

// networks are one whose addresses the agent leases, and one whose addresses
// come from another plugin. The driver has no part in who that is.
func (s *crashSite) networks() map[string]nodetest.Network {
	all := map[string]nodetest.Network{"tendril": s.pods}
	if s.driver == api.DriverRouted {
		all["delegated"] = s.Network("delegated").With("ipam", map[string]any{"type": ipamName, "dir": s.leases})
	}
	return all
}

// recover is what a runtime does about a container that it gives up.
func (s *crashSite) recover(t *testing.T, how string, c *nodetest.Container) {
	t.Helper()
	call := c.Call("DEL")
	if how == "GC" {
		keep := []any{} // which is a list; none would be no list
		if s.keeper != nil && c.Network["name"] == s.pods["name"] {
			keep = append(keep, map[string]any{"containerID": s.keeper.ContainerID, "ifname": s.keeper.IfName})
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
	s.keeps(t)
}

// shown is the address with which the world sees a container that was added.
func (s *crashSite) shown(t *testing.T, c *nodetest.Container) netip.Addr {
	t.Helper()
	if s.driver != api.DriverMacvlan {
		return uplink4
	}
	return must(s.API.Endpoint(t.Context(), c.Attachment))(t).Addresses[0].Address.Addr()
}

// works adds, uses and deletes the container.
func (s *crashSite) works(t *testing.T, c *nodetest.Container) {
	t.Helper()
	s.add(t, c)
	if got := askUDP(t, dialUDP(t, c.NS, netip.AddrPort{}, s.at), pattern(10)).Addr(); got != s.shown(t, c) {
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
func TestPluginCrash(t *testing.T) { eachDriver(t, testPluginCrash) }

func testPluginCrash(t *testing.T, d driver) {
	nstest.Halve(t, 0)
	s := newCrashSite(t, d)
	s.keep(t)
	for name, network := range s.networks() {
		recoveries := []string{"DEL", "GC"}
		if name == "tendril" && !small() && d == api.DriverRouted {
			recoveries = append(recoveries, "restart, DEL", "restart, GC")
		}
		for i, point := range failpoint.CNI {
			own := point == failpoint.CNIAddLeased || point == failpoint.CNIDelDelegated
			if point == failpoint.CNIAddLeased && name != "delegated" {
				continue // nobody is asked for a lease
			}
			for j, how := range recoveries {
				if small() && name == "delegated" && !own {
					continue // of a delegated lease, what nothing else has
				}
				t.Run(name+" "+string(point)+" "+how, func(t *testing.T) {
					nstest.One(t, i+j) // whom the plugin has told is no kernel's business
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
					recovery, restart := strings.CutPrefix(how, "restart, ")
					if restart {
						s.Kill(t)
						s.Start(t)
					}
					s.recover(t, recovery, c)
					s.clean(t, c.NS)
					s.works(t, c)
				})
			}
		}
	}
}

// What an ADD that was killed has left is no hindrance for the next, until the agent serves
// it: then DEL must come first.
func TestAddAfterKilledAdd(t *testing.T) { eachDriver(t, testAddAfterKilledAdd) }

func testAddAfterKilledAdd(t *testing.T, d driver) {
	s := newCrashSite(t, d)
	s.keep(t)
	for _, point := range []failpoint.Point{
		failpoint.CNIAddStart, failpoint.CNIAddPrepared, failpoint.CNIAddLinked, failpoint.CNIAddAttached, failpoint.CNIAddPrinted,
	} {
		t.Run(string(point), func(t *testing.T) {
			c := s.container(t, s.pods)
			call := c.Call("ADD")
			call.Path, call.Crash = s.path, point
			if answer := s.Call(t, call); !answer.Killed {
				t.Fatalf("the plugin did not die at the failpoint: %+v", answer)
			}
			if point == failpoint.CNIAddAttached || point == failpoint.CNIAddPrinted {
				call.Crash = ""
				want := refusal{4, "CNI_IFNAME: interface eth0 exists in " + c.NS.Path + " already", ""}
				if diff := cmp.Diff(want, refusalOf(s.Call(t, call))); diff != "" {
					t.Errorf("error (-want +got):\n%s", diff)
				}
				s.recover(t, "DEL", c)
			}
			s.works(t, c)
		})
	}
}

// The agent is killed at each of its failpoints. The plugin undoes its half, or
// finishes it; the next agent does the rest by itself or when DEL or GC says so.
func TestAgentCrash(t *testing.T) { eachDriver(t, testAgentCrash) }

func testAgentCrash(t *testing.T, d driver) {
	s := newCrashSite(t, d)
	recoveries := []string{"DEL", "GC"}
	for name, network := range s.networks() {
		if small() && name != "tendril" {
			continue // an agent takes seconds to start there
		}
		for i, point := range failpoint.Agent {
			for j, how := range recoveries {
				if (small() || name != "tendril" || d != api.DriverRouted) && i%2 != j {
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
	s.Becomes(t, s.baseline)
}

// An agent that dies while it puts a node in order that has a container leaves
// that container working, and the next one finishes.
func TestAgentCrashAtStart(t *testing.T) { eachDriver(t, testAgentCrashAtStart) }

func testAgentCrashAtStart(t *testing.T, d driver) {
	s := newCrashSite(t, d)
	empty := s.State(t)
	s.keep(t)
	for _, point := range []failpoint.Point{failpoint.AgentAttachMaps, failpoint.AgentAttachLinks} {
		t.Run(string(point), func(t *testing.T) {
			s.Stop(t)
			s.CrashAtStart(t, point)
			s.keeps(t)
			s.Start(t)
			s.keeps(t)
			s.BecomesRecorded(t, s.baseline)
		})
	}
	s.Delete(t, s.keeper)
	s.Becomes(t, empty)
}
