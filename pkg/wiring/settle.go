// SPDX-License-Identifier: Apache-2.0

package wiring

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// settleTimeout bounds Settle, settlePause lies between two looks.
const (
	settleTimeout = 5 * time.Second
	settlePause   = 500 * time.Microsecond
)

// Settle returns once the kernel has put to use what Configure made. Two things
// it leaves to queues of its own, behind its link lock:
//
//   - the side that was set up first learns that it has a carrier. Until then
//     it drops what it is to send.
//   - an IPv6 address becomes the link's own, although there is no duplicate
//     address detection to wait for. Until then bind says that nobody has it,
//     and what arrives for it is dropped. The last step is the local route;
//     the flag "tentative" goes a moment before.
//
// Commonly the first look finds nothing left to wait for.
func Settle(host, container *Namespace, links Links, r Routed) error {
	var gateway, address netip.Addr // the last: the queue keeps the order
	for _, a := range r.Addresses {
		if a.Addr.Is6() {
			address = a.Addr
			if !a.Foreign {
				gateway = a.Gateway
			}
		}
	}
	deadline := time.Now().Add(settleTimeout)
	if err := settle(host, links.HostName, gateway, deadline); err != nil {
		return err
	}
	return settle(container, links.Name, address, deadline)
}

// SettleBridged is Settle for what ConfigureBridged made. There the bridge has to learn
// that its port has a carrier, and with its first port that it has one itself. A bridge
// that speaks STP keeps a port waiting for half a minute before it forwards: that is not
// waited for.
func SettleBridged(host, container *Namespace, links Links, b Bridged) error {
	if b.Down {
		return nil // there is no carrier to wait for
	}
	const disabled, forwarding = 0, 3 // BR_STATE_* of linux/if_bridge.h
	deadline := time.Now().Add(settleTimeout)
	err := wait{
		messages: []message{getLink(links.HostName), getLink(b.bridge().Interface())},
		ready: func(answers [][]byte) bool {
			side, err1 := readLink(answers[0])
			bridge, err2 := readLink(answers[1])
			return err1 == nil && err2 == nil && side.operational && side.port.state != disabled &&
				(side.port.state != forwarding || bridge.operational)
		},
		what: fmt.Sprintf("%s: no carrier, or not in use as a port of bridge %s", links.HostName, b.bridge().Interface()),
	}.until(host, deadline)
	if err != nil {
		return err
	}
	var awaited []netip.Addr
	for _, a := range b.Addresses {
		if !a.Addr().Is6() {
			continue
		}
		if !b.DAD { // each is asked for in its own time; otherwise the last is enough
			awaited = nil
		}
		awaited = append(awaited, a.Addr())
	}
	if awaited == nil {
		awaited = []netip.Addr{{}} // the carrier alone
	}
	for _, address := range awaited {
		err := settle(container, links.Name, address, deadline)
		if err != nil && b.DAD {
			err = errors.Join(duplicates(container, links.Name), err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// duplicates is ErrDuplicate, with their names, when addresses of the link are another
// station's.
func duplicates(n *Namespace, name string) error {
	var found []error
	err := n.Do(func() error {
		link, err := netlinksafe.LinkByName(name)
		if err != nil {
			return err
		}
		list, err := netlinksafe.AddrList(link, netlink.FAMILY_V6)
		for _, a := range list {
			if a.Flags&unix.IFA_F_DADFAILED != 0 {
				found = append(found, fmt.Errorf("use %s on %s: %w", a.IP, name, ErrDuplicate))
			}
		}
		return err
	})
	return errors.Join(append(found, err)...)
}

func settle(n *Namespace, name string, ipv6 netip.Addr, deadline time.Time) error {
	messages := []message{getLink(name)}
	if ipv6.IsValid() {
		messages = append(messages, lookUpRoute(ipv6, 0))
	}
	return wait{
		messages: messages,
		ready: func(answers [][]byte) bool {
			link, err := readLink(answers[0])
			return err == nil && (link.operational || link.kind == kindMacvlan && link.silent) && (!ipv6.IsValid() || addressReady(answers[1]))
		},
		what: name + ": no carrier, or an address not in use",
	}.until(n, deadline)
}

// wait is for what the kernel does in its own time.
type wait struct {
	// messages ask, ready judges the answers.
	messages []message
	ready    func(answers [][]byte) bool
	// what is waited for and what it may be that lacks, for the error.
	what string
}

func (w wait) until(n *Namespace, deadline time.Time) error {
	for {
		answers, err := n.exchange(w.messages)
		if err != nil {
			return err
		}
		if w.ready(answers) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("wait for %s, after %v", w.what, settleTimeout)
		}
		time.Sleep(settlePause) //nolint:forbidigo // the kernel announces neither a local route nor the qdisc of a carrier
	}
}

// lookUpRoute asks for the route to an address. That there is none is no error. flags are
// RTM_F_* of rtnetlink(7).
func lookUpRoute(a netip.Addr, flags uint32) message {
	body := header(unix.RtMsg{Family: family(a), Dst_len: uint8(a.BitLen()), Flags: flags})
	return message{
		kind: unix.RTM_GETROUTE, body: attributeAddr(body, unix.RTA_DST, a),
		what: fmt.Sprintf("look up route to %s", a), asks: true,
		tolerate: []unix.Errno{unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EACCES, unix.EINVAL},
	}
}

// Offsets of rtm_dst_len and rtm_type in a struct rtmsg.
const routeBits, routeType = 1, 7

// addressReady reads the answer to RTM_GETROUTE, which is absent while there is
// no route at all.
func addressReady(answer []byte) bool {
	return len(answer) >= unix.SizeofRtMsg && answer[routeType] == unix.RTN_LOCAL
}
