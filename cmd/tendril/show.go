// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tendril-net/tendril/pkg/api"
)

// errUnhealthy follows a status that has shown what is wrong.
var errUnhealthy = errors.New("the node is not in order")

func status(c call) error {
	s, err := c.client.Status(c.ctx)
	if err != nil {
		return err
	}
	if c.json {
		err = c.printJSON(s)
	} else {
		err = c.printStatus(s)
	}
	if err == nil && !s.OK {
		err = errUnhealthy
	}
	return err
}

func (c call) printStatus(s api.Status) error {
	health := "ok"
	if !s.OK {
		health = strings.Join(s.Reasons, "; ")
	}
	head := newTable("Agent", fmt.Sprintf("%s, pid %d, up %s", s.Version, s.PID, age(c.now().Sub(s.Started))))
	head.row("Health", health)
	head.row("Kernel", fmt.Sprintf("%s, attaches by %s", s.Kernel, s.Attach))
	head.row("Bandwidth", "held by "+s.Bandwidth)
	head.row("BPF root", s.BPFRoot)
	head.row("Endpoints", strconv.Itoa(s.Endpoints))

	uplinks := newTable("UPLINK", "STATE", "INDEX", "MTU", "IPV4", "IPV6")
	for _, u := range s.Uplinks {
		uplinks.row(u.Name, u.State, index(u.IfIndex), index(u.MTU), address(u.IPv4), address(u.IPv6))
	}
	if len(s.Uplinks) == 0 {
		uplinks = newTable("No uplink: no device has a default route.")
	}
	pools := newTable("NETWORK", "RANGES", "LEASED", "CAPACITY", "USED")
	for _, p := range s.Pools {
		pools.row(p.Network, strings.Join(p.Ranges, ","), count(p.Leased), capacity(p.Capacity), share(p.Leased, p.Capacity))
	}
	maps := newTable("MAP", "ENTRIES", "CAPACITY", "USED", "MEMORY")
	for _, m := range s.Maps {
		entries, used := "", "" // of an array
		if m.Entries != nil {
			entries, used = count(*m.Entries), share(*m.Entries, m.Capacity)
		}
		maps.row(m.Name, entries, count(m.Capacity), used, size(m.Memory))
	}
	counters := newTable("JOURNEY", "REASON", "PACKETS", "BYTES", "FATE")
	shown := slices.DeleteFunc(slices.Clone(s.Counters), func(n api.Counter) bool { return n.Packets == 0 })
	for _, n := range shown {
		fate := "passed"
		if n.Dropped {
			fate = "dropped"
		}
		counters.row(n.Journey, n.Reason, count(n.Packets), size(n.Bytes), fate)
	}
	return c.writeParts([]part{
		{head, 1}, {uplinks, max(1, len(s.Uplinks))}, {pools, len(s.Pools)}, {maps, len(s.Maps)}, {counters, len(shown)},
	})
}

func endpoints(c call) error {
	list, err := c.client.Endpoints(c.ctx)
	if err != nil {
		return err
	}
	if c.json {
		return c.printJSON(list)
	}
	head := []string{"ID", "CONTAINER", "INTERFACE", "NETWORK", "STATE", "ADDRESSES", "HOST DEVICE", "AGE"}
	limits := slices.ContainsFunc(list, func(e api.Endpoint) bool { return !e.Bandwidth.IsZero() })
	if limits {
		head = append(head, "GETS", "SENDS")
	}
	t := newTable(head...)
	for _, e := range list {
		var addresses []string
		for _, a := range e.Addresses {
			addresses = append(addresses, a.Address.Addr().String())
		}
		row := []string{
			strconv.Itoa(int(e.ID)), short(e.ContainerID), e.IfName, e.Network, string(e.State),
			strings.Join(addresses, ","), hostDevice(e), age(c.now().Sub(e.Created)),
		}
		if limits {
			row = append(row, rate(e.Bandwidth.IngressRate), rate(e.Bandwidth.EgressRate))
		}
		t.row(row...)
	}
	return t.write(c.stdout)
}

// limited asks for as many as --limit says, and tells when there are more.
func limited[T any](c call, what string, ask func(ctx context.Context, limit int) ([]T, error)) ([]T, error) {
	limit := cmp.Or(c.limit, api.DefaultFlows)
	list, err := ask(c.ctx, min(limit+1, api.MaxFlows)) // one more tells
	if err != nil || len(list) <= limit {
		return list, err
	}
	fmt.Fprintf(c.stderr, "tendril: there are more %s than these %d: --limit N lists up to %d\n", what, limit, api.MaxFlows)
	return list[:limit], nil
}

func flows(c call) error {
	list, err := limited(c, "flows", c.client.Flows)
	if err != nil {
		return err
	}
	if c.json {
		return c.printJSON(list)
	}
	t := newTable("PROTO", "SOURCE", "DESTINATION", "IN", "ACTION", "TRANSLATED", "OUT", "NEXT HOP", "PACKETS", "BYTES", "IDLE")
	for _, f := range list {
		idle := age(time.Duration(f.Idle) * time.Second)
		if !f.Current {
			idle += " (stale)"
		}
		t.row(f.Protocol, end(f.Source), end(f.Destination), index(f.IfIndex), f.Action, translation(f.Translated),
			index(f.OutIfIndex), address(f.NextHop), count(f.Packets), size(f.Bytes), idle)
	}
	return t.write(c.stdout)
}

func ports(c call) error {
	list, err := c.client.Ports(c.ctx)
	if err != nil {
		return err
	}
	if c.json {
		return c.printJSON(list)
	}
	t := newTable("PROTO", "HOST", "LEADS TO", "CONTAINER", "INTERFACE", "NETWORK")
	for _, p := range list {
		t.row(p.Protocol, p.Host.String(), p.Container.String(), short(p.ContainerID), p.IfName, p.Network)
	}
	return t.write(c.stdout)
}

// end shows one end of a flow; protocols without ports have port 0.
func end(a netip.AddrPort) string {
	if a.Port() == 0 {
		return address(a.Addr())
	}
	return a.String()
}

func translation(t *api.Translation) string {
	if t == nil {
		return ""
	}
	return t.End + " " + end(t.To)
}

// index shows a number of which 0 means none.
func index(i int) string {
	if i == 0 {
		return ""
	}
	return strconv.Itoa(i)
}

// hostDevice is where on the node an endpoint's packets are seen.
func hostDevice(e api.Endpoint) string {
	if e.InContainer {
		return "-"
	}
	return cmp.Or(e.HostIfName, e.Parent)
}
