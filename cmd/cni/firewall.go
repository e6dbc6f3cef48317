// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/tendril-net/tendril/pkg/api"
)

// keyNamedPorts is where the container's named ports are.
const keyNamedPorts = "args.cni.ports"

// readIsolation reads what the network refuses without any policy: ingressPolicy is of
// the reference plugin firewall, icc is Docker's enable_icc.
func (c *config) readIsolation(o object) {
	o.read("ingressPolicy", &c.network.IngressPolicy, "a string")
	known := []string{api.IngressOpen, api.IngressSameBridge, api.IngressIsolated}
	if given := c.network.IngressPolicy; given != "" && !slices.Contains(known, given) {
		o.fault("ingressPolicy", fmt.Sprintf("there is no %q; there are %q", given, known))
	}
	icc := true
	o.read("icc", &icc, "true or false")
	c.network.NoICC = !icc
}

// readNamedPorts reads the ports that policy may name, in the words of a Pod's
// containerPorts. One without a name cannot be named.
func readNamedPorts(o object, key string) []api.NamedPort {
	var ports []api.NamedPort
	for _, p := range o.objects(key) {
		one := api.NamedPort{ContainerPort: readPort(p, "containerPort"), Protocol: "tcp"}
		p.read("name", &one.Name, "a string")
		written := ""
		p.read("protocol", &written, "a string")
		switch name := strings.ToLower(written); name {
		case "":
		case "tcp", "udp", "sctp":
			one.Protocol = name
		default:
			p.fault("protocol", fmt.Sprintf("%q is not TCP, UDP or SCTP", written))
		}
		if one.Name != "" {
			ports = append(ports, one)
		}
	}
	return ports
}
