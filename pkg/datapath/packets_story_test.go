// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/pkg/maps"
)

// narrator tells stories of a node: it makes the node as it was made, runs a step at a time, and looks
// at what is left to look at.
type narrator interface {
	begin(*testing.T)
	step(*testing.T, *script) error
	end(*testing.T) error
}

// noGrace is that of a node which stories are told of, step by step: no program runs beside them.
func noGrace() error { return nil }

// tellStory runs a story in the node's namespace and returns what is wrong with it.
func (n *node) tellStory(t *testing.T, input []byte, s narrator) (err error) {
	n.ns.Do(t, func() {
		defer func() {
			// Here, where it would end the process with all that it has in the kernel.
			if problem := recover(); problem != nil {
				err = fmt.Errorf("panic: %v\n%s", problem, debug.Stack())
			}
		}()
		s.begin(t)
		story := script(input)
		for range stepsMax {
			if len(story) == 0 {
				break
			}
			if err = s.step(t, &story); err != nil {
				return
			}
		}
		err = s.end(t)
	})
	return err
}

// mutated is a packet with as many mutations as the first byte of a step says; ok is false where it
// has a size then that no program is shown.
func (r run) mutated(with *palette, op byte, story *script) (_ run, ok bool) {
	m := mutant{run: r, palette: with}
	m.in = slices.Clone(r.in)
	for range int(op>>5) % (mutationsMax + 1) {
		m.mutate(story)
	}
	return m.run, len(m.in) >= 14 && len(m.in) <= frameMax
}

// present shows a packet to its program, but for what a kernel cannot be shown.
func (n *node) present(t *testing.T, r run) (got result, shown bool, err error) {
	if r.ingress != 0 && !n.ingressWorks(t) {
		r.ingress = 0
	}
	got, err = n.execute(r)
	if errors.Is(err, unix.EINVAL) && len(r.in) < 14+40 {
		return result{}, false, nil // some kernels take no frame without a whole IP header
	}
	if err != nil {
		return result{}, false, fmt.Errorf("run %s with %d bytes: %w", r.program, len(r.in), err)
	}
	return got, true, nil
}

// secondsOf is how long a step lets pass.
func secondsOf(how byte) uint32 {
	return choose([]uint32{1, 15, 36, 66, 126, 246, 306, 7446}, how)
}

// What a step may do to what the programs have remembered.
const (
	routesChange = iota
	newEpoch
	sweep
	evict
	unsettlings
)

// unsettle does one of it, and says what.
func (n *node) unsettle(t *testing.T, what int, e Endpoint) string {
	switch what {
	case routesChange:
		must(t, n.Invalidate())
		return "routes change"
	case newEpoch:
		must(t, n.bumpEpoch(uint32(e.ID)))
		return fmt.Sprintf("endpoint %d has a new epoch", e.ID)
	case sweep:
		_, err := n.Reclaim()
		must(t, err)
		return "dead translations are swept"
	}
	clearMap[maps.FlowKey, maps.Flow](t, n.maps.Flows)
	return "decisions are evicted"
}
