// SPDX-License-Identifier: Apache-2.0

// Package failpoint names the instants at which a crash must do no harm.
// Built with the tag "failpoint", the process whose environment says
// TENDRIL_FAILPOINT=NAME kills itself with SIGKILL when it reaches that point;
// built without, Hit compiles to nothing.
package failpoint

// Point is an instant between two side effects.
type Point string

// The points of cmd/cni, in the order in which ADD and DEL reach them.
const (
	CNIAddStart        Point = "cni-add-start"
	CNIAddLinked       Point = "cni-add-linked"     // veth pair created
	CNIAddLeased       Point = "cni-add-leased"     // delegated IPAM answered
	CNIAddPrepared     Point = "cni-add-prepared"   // agent holds the intent
	CNIAddAttached     Point = "cni-add-attached"   // policy in place, datapath attached
	CNIAddConfigured   Point = "cni-add-configured" // addresses and routes set
	CNIAddPrinted      Point = "cni-add-printed"    // result written
	CNIDelStart        Point = "cni-del-start"
	CNIDelUnlinked     Point = "cni-del-unlinked"  // veth pair removed
	CNIDelReleased     Point = "cni-del-released"  // agent released the endpoint
	CNIDelDelegated    Point = "cni-del-delegated" // delegated IPAM released
	AgentPrepareStart  Point = "agent-prepare-start"
	AgentPrepareStored Point = "agent-prepare-stored"
	AgentAttachStart   Point = "agent-attach-start"
	AgentAttachPolicy  Point = "agent-attach-policy" // policy in place
	AgentAttachLinks   Point = "agent-attach-links"  // programs attached
	AgentAttachMaps    Point = "agent-attach-maps"   // map entries written
	AgentAttachStored  Point = "agent-attach-stored"
	AgentDeleteStart   Point = "agent-delete-start"
	AgentDeleteMaps    Point = "agent-delete-maps"  // map entries removed
	AgentDeleteLinks   Point = "agent-delete-links" // programs detached, pins removed
	AgentDeleteStored  Point = "agent-delete-stored"
	AgentPolicyWritten Point = "agent-policy-written" // next to the one that counts
	AgentPolicyCounts  Point = "agent-policy-counts"  // the one before not removed yet
)

// CNI lists the points of the plugin, Agent those of the agent in ADD and DEL, Policy those
// where policy changes.
var (
	CNI = []Point{
		CNIAddStart, CNIAddLinked, CNIAddLeased, CNIAddPrepared, CNIAddAttached, CNIAddConfigured,
		CNIAddPrinted, CNIDelStart, CNIDelUnlinked, CNIDelReleased, CNIDelDelegated,
	}
	Agent = []Point{
		AgentPrepareStart, AgentPrepareStored, AgentAttachStart, AgentAttachPolicy, AgentAttachLinks, AgentAttachMaps,
		AgentAttachStored, AgentDeleteStart, AgentDeleteMaps, AgentDeleteLinks, AgentDeleteStored,
	}
	Policy = []Point{AgentPolicyWritten, AgentPolicyCounts}
)
