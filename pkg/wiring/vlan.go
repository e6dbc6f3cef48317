// SPDX-License-Identifier: Apache-2.0

package wiring

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

const kindVLAN = "vlan"

// ErrNoVLAN is returned by MakeVLAN on a kernel without VLANs.
var ErrNoVLAN = errors.New("the kernel has no VLANs (CONFIG_VLAN_8021Q)")

// VLAN is a sub-interface of a device of the node.
type VLAN struct {
	Name string
	// Lower is the interface index of the device.
	Lower int
	// ID is 1 to 4094.
	ID int
}

// MakeVLAN makes the sub-interface and sets it up; on a device that is down the kernel does
// that when it comes up. It returns its interface index. The error is ErrTaken when the
// name, or the number on that device, is in use.
func MakeVLAN(host *Namespace, v VLAN) (int, error) {
	index, err := createVLAN(host, v)
	if err != nil {
		return 0, err
	}
	raise := up(index, v.Name, 0)
	raise.tolerate = []unix.Errno{unix.ENETDOWN}
	if _, err := host.exchange([]message{raise}); err != nil {
		return 0, errors.Join(fmt.Errorf("make VLAN %s: %w", v.Name, err), removeLink(host, v.Name))
	}
	return index, nil
}

// createVLAN is MakeVLAN, but leaves the sub-interface down.
func createVLAN(host *Namespace, v VLAN) (int, error) {
	data := attribute16(nil, unix.IFLA_VLAN_ID, uint16(v.ID))
	info := attributeString(nil, unix.IFLA_INFO_KIND, kindVLAN)
	info = attribute(info, unix.IFLA_INFO_DATA, data)
	body := attributeString(header(unix.IfInfomsg{}), unix.IFLA_IFNAME, v.Name)
	body = attribute32(body, unix.IFLA_LINK, uint32(v.Lower))
	answers, err := host.exchange([]message{{
		kind: unix.RTM_NEWLINK, flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL,
		body: attribute(body, unix.IFLA_LINKINFO, info), what: "make VLAN " + v.Name,
	}, getLink(v.Name)})
	switch {
	case errors.Is(err, unix.EEXIST):
		return 0, fmt.Errorf("%w: %w", err, ErrTaken)
	case errors.Is(err, unix.EOPNOTSUPP):
		return 0, fmt.Errorf("%w: %w", err, ErrNoVLAN)
	case err != nil:
		return 0, err
	}
	made, err := readLink(answers[1])
	if err != nil {
		return 0, errors.Join(fmt.Errorf("make VLAN %s: %w", v.Name, err), removeLink(host, v.Name))
	}
	return made.index, nil
}

// RemoveVLAN removes the sub-interface of that index, by whatever name. That there is none
// is no error; a device of another kind stays.
func RemoveVLAN(host *Namespace, index int) error {
	at := header(unix.IfInfomsg{Index: int32(index)})
	answers, err := host.exchange([]message{{
		kind: unix.RTM_GETLINK, body: at, asks: true, tolerate: []unix.Errno{unix.ENODEV},
		what: fmt.Sprintf("look up link %d", index),
	}})
	if err != nil || answers[0] == nil {
		return err
	}
	if found, err := readLink(answers[0]); err != nil || found.kind != kindVLAN {
		return err
	}
	_, err = host.exchange([]message{{
		kind: unix.RTM_DELLINK, body: at, tolerate: []unix.Errno{unix.ENODEV},
		what: fmt.Sprintf("remove VLAN of index %d", index),
	}})
	return err
}
