// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/pkg/maps"
)

// damaged is a site whose datapath logs what it finds.
type damaged struct {
	*site
	d   *Datapath
	log bytes.Buffer
}

func newDamaged(t *testing.T, attach string) *damaged {
	t.Helper()
	if attach != "clsact" {
		nstest.NeedKernel(t, "tcx", 6, 6)
	}
	s := &damaged{site: newSite(t, attach)}
	s.cfg.Logger = slog.New(slog.NewTextHandler(&s.log, &slog.HandlerOptions{Level: slog.LevelWarn}))
	s.d = s.open(t)
	t.Cleanup(func() { _ = s.d.Close() })
	return s
}

// repair does what the agent does each minute and returns what was logged.
func (s *damaged) repair(t *testing.T) string {
	t.Helper()
	s.log.Reset()
	s.do(t, func() error {
		errs := []error{s.d.RepairPins(), s.d.ReconcileUplinks([]Uplink{s.uplink})}
		for _, e := range s.ends {
			found, err := s.d.RepairEndpoint(e)
			if len(found) > 0 {
				fmt.Fprintf(&s.log, "%s repaired: %s\n", e.IfName, strings.Join(found, "; "))
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
	return s.log.String()
}

func (s *damaged) do(t *testing.T, f func() error) {
	t.Helper()
	var err error
	s.node.Do(t, func() { err = f() })
	must(t, err)
}

// works sends between the containers and to the world, and compares the kernel
// with what was asked for.
func (s *damaged) works(t *testing.T) {
	t.Helper()
	s.datagrams(t, s.world, v4().router, v4().host)
	s.datagrams(t, s.b, v6().b, v6().a)
	s.do(t, func() error {
		var errs []error
		for _, e := range s.ends {
			errs = append(errs, s.d.CheckEndpoint(e))
		}
		return errors.Join(errs...)
	})
}

// onUplink are the programs that the kernel has on the uplink by tcx.
func (s *damaged) onUplink(t *testing.T) int {
	t.Helper()
	count := 0
	s.do(t, func() error {
		for _, where := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
			got, err := link.QueryPrograms(link.QueryOptions{Target: s.uplink.IfIndex, Attach: where})
			if err != nil {
				return err
			}
			count += len(got.Programs)
		}
		return nil
	})
	return count
}

func (s *damaged) pins(t *testing.T) []string {
	t.Helper()
	pins, err := filepath.Glob(filepath.Join(s.cfg.Root, "*", "*"))
	must(t, err)
	return pins
}

func TestRepair(t *testing.T) {
	nstest.Halve(t, 0)
	for name, attach := range attachments(t) {
		t.Run(name, func(t *testing.T) {
			s := newDamaged(t, attach)
			s.works(t)
			whole := s.pins(t)
			if log := s.repair(t); log != "" {
				t.Errorf("log of a repair of nothing: %s", log)
			}
			for _, damage := range []struct {
				name string
				do   func(*testing.T)
				// still says that packets go their way before the repair.
				still bool
				logs  []string
			}{
				{
					"pins", func(t *testing.T) {
						for _, folder := range []string{"maps", "links"} {
							must(t, os.RemoveAll(filepath.Join(s.cfg.Root, folder)))
						}
					}, true, []string{"allocations, bandwidth, child_programs, children, counters, denied, endpoints, epochs,"},
				},
				{
					"bpf-root", func(t *testing.T) { must(t, os.RemoveAll(s.cfg.Root)) }, true,
					[]string{"bpf-root had been removed or unmounted", "translations"},
				},
				{
					"filters", func(t *testing.T) {
						s.node.Do(t, func() {
							for _, ifindex := range []int{s.ends[0].IfIndex, s.ends[1].IfIndex, s.uplink.IfIndex} {
								_ = netlink.QdiscDel(clsactQdisc(ifindex)) // there is none where tcx serves
							}
						})
					}, attach == "tcx", map[string][]string{
						"":       {"program from_container on interface tdla is missing; program to_container on interface tdla is missing"},
						"clsact": {"program to_container on interface tdlb is missing", "program from_uplink on interface up0 is missing"},
					}[attach],
				},
				{
					"links", func(t *testing.T) {
						if own, ok := s.d.hooks.uplinks.(*tcx); ok {
							for _, held := range own.held {
								must(t, held.(interface{ Detach() error }).Detach())
							}
						}
					}, attach == "clsact", map[string][]string{
						"":    {`"uplink repaired" device=up0 found="program from_uplink on interface up0 is missing; program to_uplink`},
						"tcx": {"uplink repaired", "program from_container on interface tdla is missing"},
					}[attach],
				},
				{
					"entries", func(t *testing.T) {
						must(t, s.d.maps.Endpoints.Delete(maps.NewAddress(v4().a)))
						must(t, s.d.maps.Interfaces.Put(uint32(s.uplink.IfIndex), maps.Interface{Role: maps.RoleUplink}))
						must(t, s.d.maps.Interfaces.Put(uint32(s.ends[1].IfIndex), s.ends[0].device()))
					}, false, []string{
						"tdla repaired: entry of 10.10.0.2 in map endpoints is missing\n", `"uplink repaired" device=up0`,
						fmt.Sprintf("tdlb repaired: entry of interface %d in map interfaces has endpoint 1, not 2, and mac %s, not %s, and hostmac %s, not %s\n",
							s.ends[1].IfIndex, s.ends[0].MAC, s.ends[1].MAC, s.ends[0].HostMAC, s.ends[1].HostMAC),
						"in map interfaces has ipv4 none, not 192.0.2.1, and ipv6 none, not 2001:db8::1, and mtu 0, not 1500, and mac 00:00:00:00:00:00, not ",
					},
				},
			} {
				t.Run(damage.name, func(t *testing.T) {
					damage.do(t)
					if damage.still {
						s.works(t)
						// An ADD in between is served whole.
						s.do(t, func() error { return s.d.AttachEndpoint(s.ends[0]) })
					}
					log := s.repair(t)
					for _, want := range damage.logs {
						if !strings.Contains(log, want) {
							t.Errorf("log lacks %q:\n%s", want, log)
						}
					}
					s.works(t)
					if diff := cmp.Diff(whole, s.pins(t)); diff != "" {
						t.Errorf("pins (-before +after):\n%s", diff)
					}
					if log := s.repair(t); log != "" {
						t.Errorf("log of the second repair: %s", log)
					}
				})
			}
			t.Run("next agent", func(t *testing.T) {
				must(t, s.d.Close())
				s.d = s.open(t)
				if log := s.repair(t); log != "" {
					t.Errorf("log: %s", log)
				}
				s.works(t)
			})
		})
	}
}

// TestRepairUnmounted unmounts the bpf file system, which is possible only lazily
// while an agent runs.
func TestRepairUnmounted(t *testing.T) {
	nstest.Deal(t, 1)
	s := newDamaged(t, "")
	whole := s.pins(t)
	at := filepath.Dir(s.cfg.Root)
	if err := unix.Unmount(at, 0); !errors.Is(err, unix.EBUSY) {
		t.Errorf("unmount: got %v, want %v", err, unix.EBUSY)
	}
	must(t, unix.Unmount(at, unix.MNT_DETACH))
	err := s.d.RepairPins()
	if err == nil || !strings.Contains(err.Error(), "is on no bpf file system") {
		t.Errorf("repair without a bpf file system: %v", err)
	}
	s.node.Do(t, func() { // an uplink that comes meanwhile
		other := s.uplink
		other.Name, other.IfIndex = "tdla", s.ends[0].IfIndex
		if err := s.d.ReconcileUplinks([]Uplink{s.uplink, other}); err == nil {
			t.Error("a link was pinned without a bpf file system")
		}
		if err := s.d.AttachEndpoint(s.ends[0]); err != nil {
			t.Error(err)
		}
	})
	if entries, err := os.ReadDir(at); err != nil || len(entries) > 0 {
		t.Errorf("made in the place of the bpf file system: %v, %v", entries, err)
	}
	s.works(t)
	must(t, unix.Mount("bpf", at, "bpf", 0, ""))
	if log := s.repair(t); !strings.Contains(log, "bpf-root had been removed or unmounted") {
		t.Errorf("log: %s", log)
	}
	if diff := cmp.Diff(whole, s.pins(t)); diff != "" {
		t.Errorf("pins (-before +after):\n%s", diff)
	}
	s.works(t)
	var locked *LockedError
	s.node.Do(t, func() {
		if _, err := Open(s.cfg); !errors.As(err, &locked) {
			t.Errorf("another agent: got %v, want a LockedError", err)
		}
	})
	must(t, s.d.Close())
	if got := s.onUplink(t); got != 2 {
		t.Errorf("%d programs on the uplink after the agent's end, want 2", got)
	}
	s.d = s.open(t)
	s.works(t)
}

// TestPinsAreTheLastReference removes the pins of the links and ends the agent
// before it repairs them: the kernel detaches, and the next agent attaches.
func TestPinsAreTheLastReference(t *testing.T) {
	nstest.Halve(t, 0)
	s := newDamaged(t, "")
	must(t, os.RemoveAll(filepath.Join(s.cfg.Root, "links")))
	if got := s.onUplink(t); got != 2 {
		t.Errorf("%d programs on the uplink while the agent runs, want 2", got)
	}
	must(t, s.d.Close())
	if got := s.onUplink(t); got != 0 {
		t.Errorf("%d programs on the uplink without pins and agent, want 0", got)
	}
	s.d = s.open(t)
	if got := s.onUplink(t); got != 2 {
		t.Errorf("%d programs on the uplink after the next start, want 2", got)
	}
	s.works(t)
}

// TestRepairKeepsWhatIsAnothers has pins of somebody else in the place of ours.
func TestRepairKeepsWhatIsAnothers(t *testing.T) {
	s := newDamaged(t, "")
	links, err := filepath.Glob(filepath.Join(s.cfg.Root, "links", "*"))
	must(t, err)
	must(t, os.Rename(links[0], filepath.Join(filepath.Dir(s.cfg.Root), "away")))
	must(t, os.Rename(links[1], links[0]))
	err = s.d.RepairPins()
	if err == nil || !strings.Contains(err.Error(), "remove the pin") {
		t.Errorf("error %v, want that %s is another link's", err, links[0])
	}
	if _, err := os.Stat(links[1]); err != nil {
		t.Errorf("the other link was not pinned again: %v", err)
	}
}
