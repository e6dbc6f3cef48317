// SPDX-License-Identifier: Apache-2.0

// Package ifname knows what names of network devices mean: which are the host's sides of
// endpoints, and which are VLANs of others (eth0.50 is number 50 of eth0).
package ifname

import (
	"strconv"
	"strings"

	"github.com/tendril-net/tendril/internal/vlan"
)

// HostPrefix is what the names of the host's sides of endpoints begin with; 12 lower-case hex digits follow.
const HostPrefix = "tdl"

// IsHost says whether a device is named as the host's side of an endpoint is.
func IsHost(name string) bool {
	hash, ok := strings.CutPrefix(name, HostPrefix)
	return ok && len(hash) == 12 && strings.Trim(hash, "0123456789abcdef") == ""
}

// VLAN is the name of a VLAN of a device. Number 0 is none: the name is the device's.
func VLAN(lower string, id int) string {
	if id == 0 {
		return lower
	}
	return lower + "." + strconv.Itoa(id)
}

// VLANOf reads the name of a VLAN. False where the name is none of a VLAN.
func VLANOf(name string) (lower string, id int, ok bool) {
	dot := strings.LastIndexByte(name, '.')
	if dot < 1 {
		return "", 0, false
	}
	id, err := strconv.Atoi(name[dot+1:])
	if err != nil || id < 1 || id > vlan.Max || VLAN(name[:dot], id) != name {
		return "", 0, false
	}
	return name[:dot], id, true
}
