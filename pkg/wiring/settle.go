// SPDX-License-Identifier: Apache-2.0

package wiring

import (
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// operUp is IF_OPER_UP of linux/if.h.
const operUp = 6

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

func settle(n *Namespace, name string, ipv6 netip.Addr, deadline time.Time) error {
	messages := []message{getLink(name)}
	if ipv6.IsValid() {
		body := header(unix.RtMsg{Family: unix.AF_INET6, Dst_len: 128})
		messages = append(messages, message{
			kind: unix.RTM_GETROUTE, body: attributeAddr(body, unix.RTA_DST, ipv6),
			what: fmt.Sprintf("look up route to %s", ipv6), asks: true,
			tolerate: []unix.Errno{unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EACCES, unix.EINVAL},
		})
	}
	for {
		answers, err := n.exchange(messages)
		if err != nil {
			return err
		}
		if linkReady(answers[0]) && (!ipv6.IsValid() || addressReady(answers[1])) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("wait for %s: no carrier, or an address not in use, after %v", name, settleTimeout)
		}
		time.Sleep(settlePause) //nolint:forbidigo // the kernel announces neither a local route nor the qdisc of a carrier
	}
}

func linkReady(answer []byte) bool {
	if len(answer) < unix.SizeofIfInfomsg {
		return false
	}
	state := attributes(answer[unix.SizeofIfInfomsg:])[unix.IFLA_OPERSTATE]
	return len(state) == 1 && state[0] == operUp
}

// addressReady reads the answer to RTM_GETROUTE, which is absent while there is
// no route at all.
func addressReady(answer []byte) bool {
	const typ = 7 // offset of rtm_type
	return len(answer) >= unix.SizeofRtMsg && answer[typ] == unix.RTN_LOCAL
}
