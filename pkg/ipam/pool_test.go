// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// newPool makes the pool of a text with one range set.
func newPool(tb testing.TB, text string) *addressSet {
	tb.Helper()
	sets, err := Canonical(mustParse(tb, text))
	if err != nil {
		tb.Fatal(err)
	}
	return newNetwork("n", sets).pools[0]
}

// releaseTo lets an address rest as Store.Release does.
func releaseTo(pool *addressSet, n number, order uint64) {
	for _, r := range pool.crowded(1) {
		pool.wake(r.number)
	}
	pool.free(rested{n, order})
}

func TestPoolCapacity(t *testing.T) {
	for text, want := range map[string]uint64{
		"10.10.0.0/16":                    65533,
		"10.0.0.0/30":                     1,
		"192.0.2.2/31":                    1,
		"10.0.0.0/24 10.0.0.0 10.0.0.255": 253,
		"10.0.0.0/24 10.0.0.10 10.0.0.19": 10,
		"fd00::/127":                      1,
		"fd00::/120":                      254,
		"fd00::/65":                       1<<63 - 2,
		"fd00::/64":                       maxCapacity,
		"fd00::/9":                        maxCapacity,
		"fd00::/64, fd01::/64":            maxCapacity,
		"10.0.0.0/24, 10.0.0.0/8 10.0.1.0 10.0.1.9 10.0.0.50": 252 + 10,
	} {
		if got := newPool(t, text).capacity; got != want {
			t.Errorf("%s: got %d, want %d", text, got, want)
		}
	}
}

// Every address is handed out once, none of those that may not, and then there
// is none. Sizes around those of chunks and words.
func TestPoolHandsOutEverything(t *testing.T) {
	for _, text := range []string{
		"10.0.0.0/30", "192.0.2.2/31", "10.0.0.0/24", "10.0.0.0/24 - - 10.0.0.77", "10.0.0.0/20", "10.10.0.0/16",
		"10.0.0.0/8 10.0.15.255 10.0.16.0, 10.0.0.0/8 10.0.47.200 10.0.64.5 10.0.48.0", "fd00::/116", "fd00::/115 - - fd00::1000",
		"10.0.0.0/29, 10.0.1.0/29, 10.0.2.0/29", "fd00::/64 fd00::ffff:ffff:ffff:f000",
	} {
		sets, err := Canonical(mustParse(t, text))
		if err != nil {
			t.Fatal(err)
		}
		n := newNetwork("n", sets)
		seen := make(map[number]bool)
		for range n.pools[0].capacity {
			at := mustTake(t, n.pools[0])
			if seen[at] {
				t.Fatalf("%s: %s was handed out twice", text, at.addr())
			}
			seen[at] = true
			r, _ := n.find(at)
			checkAddress(t, sets, *r, at.addr())
		}
		if c, ok := n.pools[0].choose(); ok {
			t.Errorf("%s: %s was handed out beyond the capacity of %d", text, c.number.addr(), n.pools[0].capacity)
		}
	}
}

func TestPoolPrefersNeverUsedThenLongestReleased(t *testing.T) {
	pool := newPool(t, "10.0.0.0/29") // .2 to .6
	var order uint64
	var got []string
	take := func() number {
		n := mustTake(t, pool)
		got = append(got, n.addr().String())
		return n
	}
	release := func(n number) {
		order++
		releaseTo(pool, n, order)
	}
	two, three := take(), take()
	release(three)
	release(two)
	release(take()) // .4: never used
	take()          // .5
	take()          // .6
	take()          // .3: rested longest
	take()          // .2
	take()          // .4
	want := []string{"10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.3", "10.0.0.2", "10.0.0.4"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// In a set that is too large for every released address to rest, the one that
// was just released still comes last of all that rest, and the walk goes on.
func TestPoolForgetsTheLongestReleased(t *testing.T) {
	pool := newPool(t, "fd00::/64")
	pool.maxResting = 2
	for i := range uint64(5) {
		releaseTo(pool, mustTake(t, pool), i+1)
	}
	want := []rested{{numberOf(netip.MustParseAddr("fd00::5")), 4}, {numberOf(netip.MustParseAddr("fd00::6")), 5}}
	if diff := cmp.Diff(want, pool.resting.oldest(9), cmp.AllowUnexported(rested{}, number{})); diff != "" {
		t.Errorf("resting (-want +got)\n%s", diff)
	}
	if got, want := mustTake(t, pool).addr(), netip.MustParseAddr("fd00::7"); got != want {
		t.Errorf("got %s, want %s: the walk goes on", got, want)
	}
	if len(pool.busy) != 1 {
		t.Errorf("%d chunks for three busy addresses", len(pool.busy))
	}
}

// Chunks that are empty again are given back: what a pool needs follows what is
// in use.
func TestPoolGivesMemoryBack(t *testing.T) {
	pool := newPool(t, "fd00::/32")
	pool.maxResting = 0
	var taken []choice
	for i := range uint64(1000) { // far apart, each in a chunk of its own
		c, ok := pool.chooseWanted(number{0xfd00_0000_0000_0000 + i<<20, 7})
		if !ok {
			t.Fatalf("wanted address %d is not free", i)
		}
		pool.take(c)
		taken = append(taken, c)
	}
	for i, c := range taken {
		releaseTo(pool, c.number, uint64(i+1))
		for _, r := range pool.crowded(0) {
			pool.wake(r.number)
		}
	}
	if len(pool.busy) != 0 || pool.leased != 0 || pool.resting.len() != 0 || len(pool.resting.queue) != 0 {
		t.Errorf("%d chunks, %d leased, %d resting (%d queued) are left of nothing",
			len(pool.busy), pool.leased, pool.resting.len(), len(pool.resting.queue))
	}
}

// The queue stays as long as what it holds, whatever is taken out of its middle.
func TestRestingCompacts(t *testing.T) {
	var q resting
	q.push(rested{number{0, 1}, 1}) // keeps the front in place
	for i := uint64(2); i < 10000; i++ {
		q.push(rested{number{0, i}, i})
		q.remove(number{0, i})
		if len(q.queue) > 128 {
			t.Fatalf("%d entries for one address", len(q.queue))
		}
	}
	if diff := cmp.Diff([]rested{{number{0, 1}, 1}}, q.oldest(5), cmp.AllowUnexported(rested{}, number{})); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// model is the plainest thing that keeps what addressSet promises: a list of
// all addresses in the order of the walk.
type model struct {
	all        []netip.Addr
	leased     map[netip.Addr]bool
	resting    []netip.Addr
	last       int
	maxResting int
}

func newModel(pool *addressSet) *model {
	m := &model{leased: make(map[netip.Addr]bool), last: -1, maxResting: pool.maxResting}
	for _, s := range pool.spans {
		for a := s.first.addr(); ; a = a.Next() {
			m.all = append(m.all, a)
			if a == s.last.addr() {
				break
			}
		}
	}
	return m
}

// choose returns the zero address if all are leased.
func (m *model) choose() netip.Addr {
	for i := range m.all {
		at := (m.last + 1 + i) % len(m.all)
		if a := m.all[at]; !m.leased[a] && !slices.Contains(m.resting, a) {
			m.last = at
			return a
		}
	}
	if len(m.resting) > 0 {
		return m.resting[0]
	}
	return netip.Addr{}
}

func (m *model) take(a netip.Addr) {
	m.leased[a] = true
	m.resting = slices.DeleteFunc(m.resting, func(r netip.Addr) bool { return r == a })
}

func (m *model) release(a netip.Addr) {
	delete(m.leased, a)
	m.resting = append(m.resting, a)
	if len(m.resting) > m.maxResting {
		m.resting = m.resting[1:]
	}
}

func TestPoolAgainstModel(t *testing.T) {
	for _, text := range []string{
		"10.0.0.0/28", "10.0.0.0/24 10.0.0.250, 10.0.7.0/29", "10.0.15.0/24 10.0.15.240 10.0.15.255, 10.0.16.0/24 - 10.0.16.9",
		"fd00::/124", "fd00::/64 fd00::ff0 fd00::1010 fd00::1000", "192.0.2.2/31",
	} {
		for _, maxResting := range []int{1, 4, 1000} {
			pool := newPool(t, text)
			pool.maxResting = maxResting
			m := newModel(pool)
			random := rand.New(rand.NewPCG(1, uint64(maxResting)))
			held := []netip.Addr{}
			for order := uint64(1); order < 5000; order++ {
				// Filling up and draining alternate.
				switch fill := order/200%2 == 0; {
				case random.IntN(8) == 0: // a wanted address
					a := m.all[random.IntN(len(m.all))]
					c, ok := pool.chooseWanted(numberOf(a))
					if ok == m.leased[a] {
						t.Fatalf("%s, step %d: wanted %s, got %t, leased is %t", text, order, a, ok, m.leased[a])
					}
					if ok {
						pool.take(c)
						m.take(a)
						held = append(held, a)
					}
				case random.IntN(4) != 0 == fill:
					want := m.choose()
					c, ok := pool.choose()
					if ok != want.IsValid() || ok && c.number.addr() != want {
						t.Fatalf("%s, step %d: got %s, want %s", text, order, c.number.addr(), want)
					}
					if ok {
						pool.take(c)
						m.take(want)
						held = append(held, want)
					}
				case len(held) > 0:
					i := random.IntN(len(held))
					releaseTo(pool, numberOf(held[i]), order)
					m.release(held[i])
					held = slices.Delete(held, i, i+1)
				}
				if pool.leased != uint64(len(held)) || pool.resting.len() != len(m.resting) {
					t.Fatalf("%s, step %d: %d leased, %d resting, want %d, %d", text, order,
						pool.leased, pool.resting.len(), len(held), len(m.resting))
				}
			}
		}
	}
}
