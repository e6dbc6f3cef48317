// SPDX-License-Identifier: Apache-2.0

package api

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/tendril-net/tendril/internal/ifname"
)

// HostIfPrefix begins the name of every host side of a veth pair, and of no
// other link.
const HostIfPrefix = ifname.HostPrefix

// HostIfName is the name of the host's side of an attachment's veth pair. It
// follows from the attachment alone, so that DEL finds the link without asking
// anybody. 48 bits of a hash keep it within the kernel's 15 characters; two of
// 1,000 attachments share a name once in 500 million times, and ADD then fails
// with "taken".
func HostIfName(a Attachment) string {
	sum := sha256.Sum256([]byte(a.ContainerID + "/" + a.IfName))
	return HostIfPrefix + hex.EncodeToString(sum[:6])
}

// IsHostIfName says whether a link is named as HostIfName names them.
func IsHostIfName(name string) bool { return ifname.IsHost(name) }

// maxIfName is the length in bytes of the longest name of a network device,
// IFNAMSIZ-1 of linux/if.h.
const maxIfName = 15

// BridgeNameFault says why a bridge that endpoints are ports of cannot have the name;
// empty if it can.
func BridgeNameFault(name string) string {
	if IsHostIfName(name) {
		return "is named as the host's side of an endpoint is"
	}
	return IfNameFault(name)
}

// ParentNameFault says why a device that endpoints are children of cannot have the name;
// empty if it can.
func ParentNameFault(name string) string { return BridgeNameFault(name) }

// KernelMode is the mode in which the kernel has the children of a device, for a Mode
// constant. What a child in mode bridge says to others leaves it as in mode vepa: the
// datapath sees it, and brings it to them. Where the device is in the container, the datapath sees it
// at each child.
func KernelMode(mode string, inContainer bool) string {
	if mode == ModeBridge && !inContainer {
		return ModeVEPA
	}
	return mode
}

// IfNameFault says why a container's interface cannot have the name; empty if it
// can. The kernel refuses some names (dev_valid_name in net/core/dev.c), takes one
// with a percent sign for a template, and shows under "all" and "default" of
// /proc/sys/net/*/conf what is no device.
func IfNameFault(name string) string {
	switch {
	case name == "":
		return "is missing"
	case len(name) > maxIfName:
		return fmt.Sprintf("is longer than %d bytes", maxIfName)
	case name == "." || name == "..":
		return "is no name of a network device"
	case name == "all" || name == "default":
		return "is what the kernel calls the settings of all network devices or of new ones"
	case strings.ContainsRune(name, '%'):
		return "must not hold %, with which the kernel would choose a name"
	}
	for _, b := range []byte(name) {
		// The last is white space of Latin-1, which the kernel goes by.
		if b <= ' ' || b == '/' || b == ':' || b == 0x7f || b == 0xa0 {
			return "must not hold / : white space or control characters"
		}
	}
	return ""
}
