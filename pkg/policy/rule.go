// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding/binary"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// rule is an element of spec.ingress or spec.egress.
type rule struct {
	policy    *Policy
	name      string // of the policy
	direction Direction
	index     int
	// order is its position among all rules.
	order int
	// digest is of the name, direction, index and content, and hash what is left
	// of it in the maps.
	digest digest
	hash   uint64
	// ranges are those of the ports given by number, names the others.
	ranges []portRange
	names  []portName
	// everybody says that no peers are given: ranges are for identity 0 then.
	everybody bool
	// group holds the specific peers; nil if there are none to look for.
	group *group
}

// given returns peers and ports as they were written.
func (r *rule) given() ([]networkingv1.NetworkPolicyPeer, []networkingv1.NetworkPolicyPort) {
	if r.direction == Egress {
		given := &r.policy.Object.Spec.Egress[r.index]
		return given.To, given.Ports
	}
	given := &r.policy.Object.Spec.Ingress[r.index]
	return given.From, given.Ports
}

// topBit tells the hash of a rule from other keys of the map of hits.
const topBit = 1 << 63

// seal computes the digest when all else is there.
func (r *rule) seal() {
	var c content
	c.text(r.name)
	c.number(uint64(r.direction))
	c.number(uint64(r.index))
	c.flag(r.everybody)
	writeRanges(&c, r.ranges)
	writeNames(&c, r.names)
	if r.group != nil {
		c.digest(r.group.digest)
	}
	r.digest = c.sum()
	r.hash = binary.BigEndian.Uint64(r.digest[:]) | topBit
}

// group is a list of specific peers. Rules with the same peers share it, so an
// identity is only as long as peers differ, however many policies say "the
// Internet". Rules of egress share it only if they name the same ports, because
// a name means another port at each server.
type group struct {
	id     int // in the order of digests
	digest digest
	blocks []block
	names  []portName
	// namesOnly: no rule of the group allows its peers a port by number, so what
	// has none of the names is no member.
	namesOnly bool
	// identities are those with the group as a part, and sets those with rules
	// of it.
	identities map[*identity]*part
	sets       []setRules
}

// number is the id; -1 for no group.
func (g *group) number() int {
	if g == nil {
		return -1
	}
	return g.id
}

// peer is all endpoints that a podSelector and a namespaceSelector select.
// Groups that say the same share it.
type peer struct {
	selector peerSelector
	groups   []*group
}

type peerSelector struct {
	// namespace is that of the policy; if "", namespaces selects them.
	namespace  string
	namespaces selector
	pods       selector
}

// anyone selects every endpoint.
var anyone peerSelector

func newPeerSelector(namespace string, p *networkingv1.NetworkPolicyPeer) peerSelector {
	pods := p.PodSelector
	if pods == nil {
		pods = new(metav1.LabelSelector)
	}
	if p.NamespaceSelector == nil {
		return peerSelector{namespace: namespace, pods: newSelector(pods)}
	}
	return peerSelector{namespaces: newSelector(p.NamespaceSelector), pods: newSelector(pods)}
}

// groupPart is what one peer of a rule says. The key is its content.
type groupPart struct {
	key      string
	block    *block
	selector peerSelector
}

func blockPart(b block) groupPart {
	var c content
	c.flag(true)
	b.appendTo(&c)
	return groupPart{key: string(c.data), block: &b}
}

func selectorPart(s peerSelector) groupPart {
	var c content
	c.flag(false)
	c.text(s.namespace)
	s.namespaces.appendTo(&c)
	s.pods.appendTo(&c)
	return groupPart{key: string(c.data), selector: s}
}

// groupParts are the specific peers of a rule, sorted, each once; nil if there
// is nobody to look for.
func (r *rule) groupParts() []groupPart {
	peers, _ := r.given()
	if len(peers) == 0 {
		if r.direction == Egress && len(r.names) > 0 {
			return []groupPart{selectorPart(anyone)} // who has the name
		}
		return nil
	}
	namespace := namespaceOf(r.policy.Object.Namespace)
	parts := make([]groupPart, 0, len(peers))
	for i := range peers {
		if peers[i].IPBlock == nil {
			parts = append(parts, selectorPart(newPeerSelector(namespace, &peers[i])))
		} else if b, e := parseBlock(peers[i].IPBlock, field.NewPath("ipBlock")); e == nil { // it was validated
			parts = append(parts, blockPart(b))
		}
	}
	slices.SortFunc(parts, func(a, b groupPart) int { return strings.Compare(a.key, b.key) })
	return slices.CompactFunc(parts, func(a, b groupPart) bool { return a.key == b.key })
}
