// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/tendril-net/tendril/pkg/api"
)

// keyPorts is where the runtime's mappings are.
const keyPorts = "runtimeConfig.portMappings"

// readPorts reads the capability portMappings, as the conventions and the
// reference plugin portmap have it.
func readPorts(o object, key string) []api.PortMapping {
	var ports []api.PortMapping
	for _, m := range o.objects(key) {
		m.known("hostPort", "containerPort", "protocol", "hostIP")
		ports = append(ports, api.PortMapping{
			HostIP:        text(m, "hostIP", parseAddr, "an address"),
			HostPort:      readPort(m, "hostPort"),
			ContainerPort: readPort(m, "containerPort"),
			Protocol:      readProtocol(m, "protocol"),
		})
	}
	return ports
}

func readPort(o object, key string) uint16 {
	if !o.has(key) {
		o.fault(key, "missing")
		return 0
	}
	port := 0
	o.read(key, &port, "a whole number")
	if port < 1 || port > 65535 {
		o.fault(key, fmt.Sprintf("%d is not between 1 and 65535", port))
		return 0
	}
	return uint16(port)
}

// readProtocol reads a name that runtimes write in capitals, too. Absent it is
// TCP.
func readProtocol(o object, key string) string {
	written := ""
	o.read(key, &written, "a string")
	switch name := strings.ToLower(written); name {
	case "":
		return "tcp"
	case "tcp", "udp":
		return name
	case "sctp":
		o.faults.add(faultf(types.ErrUnsupportedField, "%s: %s cannot be mapped: its checksum covers the ports, "+
			"and the kernel does not let a packet's be computed anew; tcp and udp can", o.at(key), written))
	default:
		o.fault(key, fmt.Sprintf("%q is not tcp or udp", written))
	}
	return ""
}
