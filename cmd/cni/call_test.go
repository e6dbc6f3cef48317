// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
)

// FuzzCall holds for any environment: no panic; a refusal is an error of the specification that names a
// variable; what is accepted of an ADD names a container and an interface that can be.
func FuzzCall(f *testing.F) {
	f.Add("ADD", "c1", "/var/run/netns/c1", "eth0", "IP=10.0.0.1;K8S_POD_NAME=web;IgnoreUnknown=1")
	f.Add("DEL", "c1", "", "eth0/1", "=;==;IP")
	f.Add("ADD", "-", "x", ".", ";")
	f.Add("CHECK", "", "", "", "\x00=\xff")
	f.Fuzz(func(t *testing.T, command, container, netns, ifName, args string) {
		variables := map[string]string{"CNI_CONTAINERID": container, "CNI_NETNS": netns, "CNI_IFNAME": ifName, "CNI_ARGS": args}
		c, err := parseCall(func(name string) string { return variables[name] }, command, true)
		if err != nil {
			if answer := cniError(err); answer.Code != types.ErrInvalidEnvironmentVariables || !strings.HasPrefix(answer.Msg, "CNI_") {
				t.Errorf("an error of another code, or that names no variable: %+v", answer)
			}
			return
		}
		if c.ContainerID == "" || c.IfName == "" || command != "DEL" && (c.netns == "" || len(c.IfName) > 15) {
			t.Errorf("accepted without what a command needs: %+v", c)
		}
		if refusal := c.refuseUnknown(); refusal != nil && cniError(refusal).Code != types.ErrInvalidEnvironmentVariables {
			t.Errorf("an error of another code: %v", refusal)
		}
	})
}
