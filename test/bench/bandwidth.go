// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
)

// What limits are compared with, beside ptp.
const (
	limited = "bandwidth" // the reference plugin of that name: TBF, and an IFB device for what is sent
	htb     = "htb"       // HTB by hand in the same places
)

const mbit = 1_000_000

// Rates of the limited containers in bit/s: tripRate is that of the one whose round trips are
// measured.
var rates = []int64{10 * mbit, 100 * mbit, 1000 * mbit}

const tripRate = 50 * mbit

// limitRounds are enough, since windows are long: a stream has to settle.
const limitRounds = 3

// Bytes of a frame with 1500 of IP, and of payload in it.
const (
	frameBytes    = 1514
	streamPayload = 1448 // with timestamps
	packetHeaders = 14 + 20 + 8
)

// limits is a node with limited containers, one that is not, and the world.
type limits struct {
	*candidate
	// byRate are containers, and addresses their addresses.
	byRate    map[int64]*namespace
	addresses map[int64]netip.Addr
	free      *namespace
	freeAt    netip.Addr
}

// burst is what is asked for beside a rate: 10 ms, or ten frames.
func burst(rate int64) int64 { return max(rate/100, 10*8*frameBytes) }

// bandwidth compares limits: how near the rate is, what a small connection meets that goes
// through the same limit, and what containers without a limit pay.
func (b *bench) bandwidth(ctx context.Context) (err error) {
	var nodes []*limits
	defer func() {
		for _, n := range nodes {
			err = errors.Join(err, n.close())
		}
	}()
	for _, kind := range []string{tendril, limited, htb} {
		if kind != tendril && !slices.Contains(b.against, kind) {
			continue
		}
		n, err := b.wireLimits(ctx, kind)
		if err != nil {
			return fmt.Errorf("wire limits of %s: %w", kind, err)
		}
		nodes = append(nodes, n)
	}
	for round := range min(b.rounds, limitRounds) {
		for _, rate := range rates {
			for _, way := range ways {
				for _, n := range nodes {
					if err := b.atRate(ctx, n, rate, way); err != nil {
						return fmt.Errorf("measure limits of %s: %w", n.called(), err)
					}
				}
			}
		}
		for _, way := range ways {
			for _, n := range nodes {
				if err := errors.Join(b.firstSecond(ctx, n, way), b.throughLimit(ctx, n, way)); err != nil {
					return fmt.Errorf("measure limits of %s: %w", n.called(), err)
				}
			}
		}
		b.progress("bandwidth: round %d of %d", round+1, min(b.rounds, limitRounds))
	}
	return b.besideLimits(ctx, nodes[0])
}

// way is a direction of the limited container, and the other end.
type way struct {
	sends bool
	world bool
}

var ways = []way{{true, true}, {true, false}, {false, true}, {false, false}}

func (w way) String() string {
	switch w {
	case way{true, true}:
		return "to the world"
	case way{true, false}:
		return "to a container"
	case way{false, true}:
		return "from the world"
	default:
		return "from a container"
	}
}

// path is the way of what is limited.
func (n *limits) path(rate int64, w way) path {
	other, address := n.free, n.freeAt
	if w.world {
		other, address = n.toWorld.server, worldAddress
	}
	if w.sends {
		return path{client: n.byRate[rate], server: other, address: address}
	}
	return path{client: other, server: n.byRate[rate], address: n.addresses[rate]}
}

// note writes down what share of a rate has arrived, in bytes of frames.
func (b *bench) note(n *limits, name string, rate int64, o outcome, frame, payload float64, g goal) {
	b.book.add(metric{Section: "bandwidth", Name: name, Unit: "of the rate", goal: g}, n.called(), o.rate()*8*frame/payload/float64(rate))
}

func (b *bench) noteStreams(n *limits, name string, rate int64, o outcome, g goal) {
	b.note(n, name, rate, o, frameBytes, streamPayload, g)
}

func (b *bench) noteDatagrams(n *limits, name string, rate int64, o outcome, g goal) {
	b.note(n, name, rate, o, datagramSize+packetHeaders, datagramSize, g)
}

// twice is a flood of datagrams: their job, for a rate in bit/s.
func twice(rate int64, warmup, window time.Duration) job {
	return job{Traffic: datagrams, Rate: 2 * rate / 8, Warmup: warmup, Window: window}
}

func streaming(n int, warmup, window time.Duration) job {
	return job{Traffic: streams, Streams: n, Warmup: warmup, Window: window}
}

// atRate measures the share of the rate that arrives.
func (b *bench) atRate(ctx context.Context, n *limits, rate int64, w way) error {
	p, name := n.path(rate, w), fmt.Sprintf("%d Mbit/s %s, ", rate/mbit, w)
	for _, one := range []struct {
		name    string
		streams int
		goal    goal
	}{
		// A bucket gives a stream that loses what it missed in its silence: only the mean is steady.
		{"TCP, 1 stream", 1, goal{"median", 0.95, 1.05}},
		{"TCP, 8 streams", 8, goal{"median", 0.97, 1.03}},
	} {
		o, err := exchange(ctx, p, serverPort, streaming(one.streams, time.Second, 10*b.window))
		if err != nil {
			return fmt.Errorf("%s%s: %w", name, one.name, err)
		}
		b.noteStreams(n, name+one.name, rate, o, one.goal)
	}
	// The credit for the silence since the streams have lost something is used up by then.
	o, err := exchange(ctx, p, serverPort, twice(rate, time.Second, 4*b.window))
	if err != nil {
		return fmt.Errorf("%sUDP: %w", name, err)
	}
	b.noteDatagrams(n, name+"UDP at twice the rate", rate, o, goal{"median", 0.97, 1.03})
	// What is meant is twice the rate. A sender that cannot keep up would meet no limit.
	sent := outcome{Count: o.Sent, Elapsed: o.SentIn}
	b.noteDatagrams(n, name+"UDP that was sent", rate, sent, goal{Of: "median", AtLeast: 1.2})
	return nil
}

// firstSecond measures the share of the rate that arrives in the first second after a pause of a second,
// which fills any bucket: all have 10 ms. A minute adds nothing to that.
func (b *bench) firstSecond(ctx context.Context, n *limits, w way) error {
	name := fmt.Sprintf("first second after a pause, %d Mbit/s %s, ", tripRate/mbit, w)
	p := n.path(tripRate, w)
	for _, one := range []struct {
		name string
		job  job
		note func(*limits, string, int64, outcome, goal)
		goal goal
	}{
		// A stream has to find its rate first.
		{"TCP", streaming(1, 0, time.Second), b.noteStreams, goal{"median", 0.8, 1.03}},
		{"UDP", twice(tripRate, 0, time.Second), b.noteDatagrams, goal{"median", 0.97, 1.03}},
	} {
		time.Sleep(time.Second) //nolint:forbidigo // a pause, not a wait
		o, err := exchange(ctx, p, serverPort, one.job)
		if err != nil {
			return fmt.Errorf("%s%s: %w", name, one.name, err)
		}
		one.note(n, name+one.name, tripRate, o, one.goal)
	}
	return nil
}

// throughLimit measures round trips of a small connection while a stream fills the limit.
func (b *bench) throughLimit(ctx context.Context, n *limits, w way) error {
	name := fmt.Sprintf("%d Mbit/s %s", tripRate/mbit, w)
	p := n.path(tripRate, w)
	type result struct {
		outcome
		err error
	}
	filled := make(chan result, 1)
	go func() {
		o, err := exchange(ctx, p, serverPort, streaming(1, time.Second, 8*b.window))
		filled <- result{o, err}
	}()
	o, err := exchange(ctx, p, serverPort+1, job{Traffic: trips, Ports: 1, Warmup: time.Second, Window: 8 * b.window})
	stream := <-filled
	if err = errors.Join(err, stream.err); err != nil {
		return fmt.Errorf("round trips, %s: %w", name, err)
	}
	b.book.add(metric{
		Section: "bandwidth", Name: "99th percentile of round trips beside a stream, " + name,
		Unit: "ms", against: limited, goal: goal{Of: "ratio", AtMost: 0.5},
	}, n.called(), milliseconds(o.P99))
	b.noteStreams(n, "stream beside round trips, "+name, tripRate, stream.outcome, goal{Of: "median", AtLeast: 0.9})
	return nil
}

// besideLimits compares containers without a limit on a node that has limits with such on one
// that has none.
func (b *bench) besideLimits(ctx context.Context, with *limits) error {
	plain, err := b.wireNamed(ctx, "tendril-no-limits", tendril)
	if err != nil {
		return err
	}
	defer func() { _ = plain.close() }()
	second, err := with.namespace("free-client")
	if err != nil {
		return err
	}
	if _, err := with.network.add(ctx, container{id: "free-client", ns: second}); err != nil {
		return err
	}
	with.sameNode = path{client: second, server: with.free, address: with.freeAt}
	plain.label, with.label = "tendril, no limits", "tendril, limits of others"
	return b.compare(ctx, scene{
		section: "bandwidth", about: "no limit, ", candidates: []*candidate{plain, with.candidate},
		over: func(c *candidate) path { return c.sameNode }, against: plain.label, subject: with.label,
	}, []comparison{
		{throughput, "Gbit/s", 1e9 / 8, ratio(0.97)},
		{packets, "k/s", 1e3, ratio(0.97)},
		{requestResponse, "k/s", 1e3, ratio(0.97)},
	})
}

// wireLimits makes a node with a container for each rate and one without a limit.
func (b *bench) wireLimits(ctx context.Context, kind string) (_ *limits, err error) {
	c, err := newNode(kind + "-limits")
	if err != nil {
		return nil, err
	}
	n := &limits{candidate: c, byRate: make(map[int64]*namespace), addresses: make(map[int64]netip.Addr)}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.close())
		}
	}()
	c.label = kind
	if err := b.join(ctx, c, kind); err != nil {
		return nil, err
	}
	// The plugins leave the way back to a container by ptp to masquerade, which stands between
	// the world and a container only for what the container begins.
	if err := c.toWorld.server.ip("route add " + podSubnet + " via " + nodeAddress.String()); err != nil {
		return nil, err
	}
	for _, rate := range append(slices.Clone(rates), tripRate) {
		role := fmt.Sprintf("limited-%d", rate/mbit)
		ns, err := n.namespace(role)
		if err != nil {
			return nil, err
		}
		n.byRate[rate] = ns
		before, err := hostDevices(c.node)
		if err != nil {
			return nil, err
		}
		n.addresses[rate], err = c.network.add(ctx, container{id: role, ns: ns, bandwidth: object{
			"ingressRate": rate, "ingressBurst": burst(rate), "egressRate": rate, "egressBurst": burst(rate),
		}})
		if err != nil {
			return nil, err
		}
		if kind == htb {
			if err := n.limitByHand(before, rate); err != nil {
				return nil, err
			}
		}
	}
	if n.free, err = n.namespace("free"); err != nil {
		return nil, err
	}
	n.freeAt, err = c.network.add(ctx, container{id: "free", ns: n.free})
	b.progress("bandwidth: limits of %s are there", kind)
	return n, err
}

func hostDevices(node *namespace) (map[string]bool, error) {
	links, err := node.handle.LinkList()
	if err != nil {
		return nil, err
	}
	names := make(map[string]bool)
	for _, l := range links {
		names[l.Attrs().Name] = true
	}
	return names, nil
}

// limitByHand limits both directions at the host's side of the container that was not there
// before.
func (n *limits) limitByHand(before map[string]bool, rate int64) error {
	after, err := hostDevices(n.node)
	if err != nil {
		return err
	}
	for name := range after {
		if before[name] {
			continue
		}
		ifb := fmt.Sprintf("ifb-%d", rate/mbit)
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.TxQLen = ifb, 1000
		if err := n.node.handle.LinkAdd(&netlink.Ifb{LinkAttrs: attrs}); err != nil {
			return fmt.Errorf("make %s: %w", ifb, err)
		}
		if err := n.node.ip("link set " + ifb + " up"); err != nil {
			return err
		}
		for _, device := range []string{name, ifb} {
			for _, line := range []string{
				"qdisc add dev " + device + " root handle 1: htb default 1",
				fmt.Sprintf("class add dev %s parent 1: classid 1:1 htb rate %dbit burst %db cburst %[3]db", device, rate, burst(rate)/8),
			} {
				if err := n.node.tc(line); err != nil {
					return err
				}
			}
		}
		for _, line := range []string{
			"qdisc add dev " + name + " ingress",
			"filter add dev " + name + " parent ffff: protocol all u32 match u32 0 0 action mirred egress redirect dev " + ifb,
		} {
			if err := n.node.tc(line); err != nil {
				return err
			}
		}
		return nil
	}
	return errors.New("ptp made no device")
}
