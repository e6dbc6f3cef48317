// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/tendril-net/tendril/pkg/api"
	"github.com/tendril-net/tendril/pkg/datapath"
)

// ground is what the node knows of the networks' address ranges as long as they
// have endpoints: an unreachable route for each subnet that leases come from,
// so that what is sent to an address without endpoint does not leave by the
// default route; and the destinations that are not masqueraded. The subnet of a
// bridge is on its link, or is none of the node's affair: it has no such route. That of
// macvlan devices, and that of a bridge which is an uplink, is somebody's network, which the node may
// be in, too: it is neither.
type ground struct {
	routes     Routes
	node       NodePlane
	configured []netip.Prefix

	mu          sync.Mutex
	leased      map[netip.Prefix]int // number of endpoints that lease from it
	unreachable map[netip.Prefix]int // number of endpoints that want it
	excludes    map[exclude]int
	uplinks     map[string]time.Time // by name: since when it is none any more, zero: it is one
}

// exclude is a destination that is not masqueraded, unless the device by which the node is among
// the ports of a bridge, if there is one, is an uplink.
type exclude struct {
	subnet netip.Prefix
	device string
}

// subnets returns the subnets that belong to the endpoint's network.
func (r *record) subnets() (leased, all []netip.Prefix) {
	seen := make(map[netip.Prefix]bool)
	for _, set := range r.Origin.Ranges {
		for _, one := range set {
			seen[one.Subnet.Masked()] = true
		}
	}
	leased = slices.Collect(maps.Keys(seen))
	for _, a := range r.Addresses {
		seen[a.Address.Masked()] = true
	}
	return leased, slices.Collect(maps.Keys(seen))
}

// count adds n to the users of the record's subnets and returns the subnets
// that are wanted for the first time, or no longer.
func (g *ground) count(r *record, n int) (routes []netip.Prefix, excludes bool) {
	leased, all := r.subnets()
	for _, p := range leased {
		change(g.leased, p, n)
		if r.isRouted() && change(g.unreachable, p, n) {
			routes = append(routes, p)
		}
	}
	if r.isChild() {
		return nil, false
	}
	for _, p := range all {
		if change(g.excludes, exclude{p, r.Origin.BridgeInterface()}, n) {
			excludes = true
		}
	}
	return routes, excludes
}

// unknown returns the subnets of the ranges that no endpoint leases from, each
// once.
func (g *ground) unknown(ranges []api.RangeSet) []netip.Prefix {
	g.mu.Lock()
	defer g.mu.Unlock()
	fresh := make(map[netip.Prefix]bool)
	for _, set := range ranges {
		for _, r := range set {
			if g.leased[r.Subnet] == 0 {
				fresh[r.Subnet] = true
			}
		}
	}
	return sorted(maps.Keys(fresh))
}

// change returns true when the count has left or reached zero.
func change[K comparable](counts map[K]int, of K, n int) bool {
	before := counts[of]
	if counts[of] += n; counts[of] <= 0 {
		delete(counts, of)
		return before > 0
	}
	return before == 0
}

// add makes the node know the subnets of an endpoint before anything is sent
// to it.
func (g *ground) add(r *record) (err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	routes, excludes := g.count(r, 1)
	defer func() {
		if err != nil {
			err = errors.Join(err, g.withdraw(g.count(r, -1)))
		}
	}()
	if excludes {
		if err := g.applyExcludes(); err != nil {
			return err
		}
	}
	for _, p := range routes {
		if err := g.routes.AddUnreachable(p); err != nil {
			return fmt.Errorf("add unreachable route %s: %w", p, err)
		}
	}
	return nil
}

// remove makes the node forget what only this endpoint had it know.
func (g *ground) remove(r *record) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.withdraw(g.count(r, -1))
}

func (g *ground) withdraw(routes []netip.Prefix, excludes bool) error {
	var errs []error
	for _, p := range routes {
		if err := g.routes.RemoveUnreachable(p); err != nil {
			errs = append(errs, fmt.Errorf("remove unreachable route %s: %w", p, err))
		}
	}
	if excludes {
		errs = append(errs, g.applyExcludes())
	}
	return errors.Join(errs...)
}

// reset makes the node know the subnets of exactly these endpoints.
func (g *ground) reset(records []*record) error {
	g.mu.Lock()
	g.leased = make(map[netip.Prefix]int)
	g.unreachable = make(map[netip.Prefix]int)
	g.excludes = make(map[exclude]int)
	for _, r := range records {
		g.count(r, 1)
	}
	g.mu.Unlock()
	return g.ensure()
}

// setUplinks makes the node know which devices are uplinks now. One that is none any more counts
// for as long as the datapath serves it.
func (g *ground) setUplinks(uplinks []datapath.Uplink, now time.Time) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	before := slices.Sorted(maps.Keys(g.uplinks))
	for name, since := range g.uplinks {
		if since.IsZero() {
			g.uplinks[name] = now
		}
	}
	for _, u := range uplinks {
		g.uplinks[u.Name] = time.Time{}
	}
	maps.DeleteFunc(g.uplinks, func(_ string, since time.Time) bool { return !since.IsZero() && now.Sub(since) > datapath.Linger })
	if slices.Equal(before, slices.Sorted(maps.Keys(g.uplinks))) || len(g.excludes) == 0 {
		return nil
	}
	return g.applyExcludes()
}

// ensure repairs what others have changed.
func (g *ground) ensure() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.routes.ReconcileUnreachable(sorted(maps.Keys(g.unreachable))); err != nil {
		return fmt.Errorf("reconcile unreachable routes: %w", err)
	}
	return g.applyExcludes()
}

func (g *ground) applyExcludes() error {
	wanted := slices.Clone(g.configured)
	for e := range g.excludes {
		if _, serves := g.uplinks[e.device]; !serves {
			wanted = append(wanted, e.subnet)
		}
	}
	if err := g.node.ReconcileExcludes(sorted(slices.Values(wanted))); err != nil {
		return fmt.Errorf("reconcile masquerade excludes: %w", err)
	}
	return nil
}

// sorted returns each prefix once, in an order that does not change.
func sorted(prefixes func(yield func(netip.Prefix) bool)) []netip.Prefix {
	list := slices.SortedFunc(prefixes, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	return slices.Compact(list)
}
