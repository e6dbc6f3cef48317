// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"flag"
	"strings"

	"github.com/tendril-net/tendril/internal/nstest"
)

// onKernels are the tests that run on other kernels, too, if no others are asked for: an agent takes a while to start
// where all is emulated. Many are left to some of the kernels, by nstest.Halve and nstest.LeaveTo.
var onKernels = []string{
	"TestConnectivity", "TestCheck", "TestGC", "TestStatus", "TestChained", "TestAgentKilled", "TestRestart",
	"TestPluginCrash", "TestSpoofing", "TestPathMTU", "TestTraceroute", "TestTwoUplinks", "TestDefaultRouteMoves",
	"TestNothingLeavesUnhidden", "TestPortsFromWorld", "TestPortsFromHost", "TestPortsFromContainers",
	"TestPortsRestart", "TestPolicyIngress", "TestPolicyEgress", "TestPolicyWhileTraffic", "TestPolicyAgentKilled",
	"TestNetworkIsolation", "TestBridgeStation", "TestBridgeOnUplink", "TestBridgeVLAN", "TestBridgeTrunk",
	"TestMacvlanOnVLAN", "TestMacvlanInContainer", "TestMacvlanTwoNodes", "TestMacvlanOnUplink", "TestMacvlanDHCP",
	"TestBridgeLodger", "TestPacer",
}

// lessOnKernels is what is left out of them: of the drivers bridge and macvlan, what a kernel cannot change is left to
// the packet tables.
const lessOnKernels = "TestCheck/(bridge|macvlan)|TestSpoofing/(bridge|macvlan)|TestPluginCrash/(bridge|macvlan)"

// chooseForKernel has this process, where it runs on another kernel, run the tests that are for one.
func chooseForKernel() error {
	flag.Parse()
	run, skip := flag.Lookup("test.run").Value, flag.Lookup("test.skip").Value
	if !nstest.Emulated() || run.String() != "" {
		return nil
	}
	if skip.String() == "" {
		if err := skip.Set(lessOnKernels); err != nil {
			return err
		}
	}
	return run.Set("^(" + strings.Join(onKernels, "|") + ")$")
}
