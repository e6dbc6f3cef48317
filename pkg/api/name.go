// SPDX-License-Identifier: Apache-2.0

package api

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
)

// HostIfPrefix begins the name of every host side of a veth pair, and of no
// other link.
const HostIfPrefix = "tdl"

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
func IsHostIfName(name string) bool {
	hash, ok := strings.CutPrefix(name, HostIfPrefix)
	_, err := hex.DecodeString(hash)
	return ok && err == nil && len(hash) == 12
}
