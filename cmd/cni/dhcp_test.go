// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/tendril-net/tendril/internal/dhcptest"
)

// cmdDHCP is "dhcp start" and "dhcp await TEXT".
func cmdDHCP(ts *testscript.TestScript, neg bool, args []string) {
	s := storyOf(ts)
	switch {
	case !neg && len(args) == 1 && args[0] == "start":
		s.dhcp = dhcptest.Serve(s.t, s.node, "10.40.0")
		ts.Setenv("DHCP", dhcptest.Daemon(s.t, ts.Getenv("WORK"), true))
	case !neg && len(args) == 2 && args[0] == "await":
		s.dhcp.Await(s.t, args[1])
	default:
		ts.Fatalf("usage: dhcp start|await TEXT")
	}
}
