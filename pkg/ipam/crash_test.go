// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"
)

// crashFile names the file on which the test binary works, instead of testing,
// until it is killed.
const crashFile = "TENDRIL_TEST_IPAM_CRASH_FILE"

func TestMain(m *testing.M) {
	if path := os.Getenv(crashFile); path != "" {
		fmt.Fprintln(os.Stderr, workUntilKilled(path, os.Stdout))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// The work of the victim is a sequence of steps, each one transaction. Step k is
// of container k mod crashContainers: an Allocate if it holds nothing, else a
// Release. The caller's bucket has what the agent would have there: the holders,
// and the number of steps that were taken.
const crashContainers = 41

var (
	holdersKey = []byte("holders")
	stepsKey   = []byte("steps")
)

func workUntilKilled(path string, acknowledge io.Writer) error {
	db, err := OpenFile(path, FileOptions{})
	if err != nil {
		return err
	}
	s, err := Open(db)
	if err != nil {
		return err
	}
	steps, err := stepsIn(db)
	if err != nil {
		return err
	}
	for ; ; steps++ {
		if err := crashStep(s, steps); err != nil {
			return err
		}
		if _, err := fmt.Fprintln(acknowledge, steps+1); err != nil {
			return err
		}
	}
}

func crashStep(s *Store, step uint64) error {
	owner := container(int(step % crashContainers))
	record := func(tx *bbolt.Tx, change func(*bbolt.Bucket) error) error {
		b, err := tx.CreateBucketIfNotExists(holdersKey)
		if err != nil {
			return err
		}
		return errors.Join(change(b), b.Put(stepsKey, binary.BigEndian.AppendUint64(nil, step+1)))
	}
	if len(s.Lookup("pods", owner)) > 0 {
		return s.Release("pods", owner, func(tx *bbolt.Tx) error {
			return record(tx, func(b *bbolt.Bucket) error { return b.Delete([]byte(owner.ContainerID)) })
		})
	}
	_, err := s.Allocate(Request{Network: "pods", Owner: owner, Ranges: []RangeSet{
		{{Subnet: netip.MustParsePrefix("10.0.0.0/26")}}, {{Subnet: netip.MustParsePrefix("fd00::/64")}},
	}}, func(tx *bbolt.Tx, got []Address) error {
		return record(tx, func(b *bbolt.Bucket) error { return b.Put([]byte(owner.ContainerID), []byte(fmt.Sprint(got))) })
	})
	return err
}

func stepsIn(db *bbolt.DB) (steps uint64, err error) {
	err = db.View(func(tx *bbolt.Tx) error {
		if b := tx.Bucket(holdersKey); b != nil {
			steps = binary.BigEndian.Uint64(b.Get(stepsKey))
		}
		return nil
	})
	return steps, err
}

// checkAfterCrash opens the file and fails if the leases are not those after
// exactly as many steps as the caller's own record says.
func checkAfterCrash(tb testing.TB, path string) (steps uint64) {
	tb.Helper()
	s := mustOpen(tb, path)
	defer mustClose(tb, s)
	steps, err := stepsIn(s.db)
	if err != nil {
		tb.Fatal(err)
	}
	want := make(map[string]bool)
	for c := range uint64(crashContainers) {
		// Its steps are c, c+41, c+82...: an odd number of them leaves it holding.
		if taken := (steps + crashContainers - 1 - c) / crashContainers; taken%2 == 1 {
			want[container(int(c)).ContainerID] = true
		}
	}
	got, recorded := make(map[string]bool), make(map[string]string)
	for owner, leases := range s.Leases("pods") {
		got[owner.ContainerID] = true
		recorded[owner.ContainerID] = fmt.Sprint(leases)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		tb.Errorf("owners after %d steps (-want +got)\n%s", steps, diff)
	}
	holders := make(map[string]string)
	for _, line := range dumpFile(tb, s.db) {
		if key, value, _ := strings.Cut(line, "="); strings.HasPrefix(key, "holders/c") {
			holders[strings.TrimPrefix(key, "holders/")] = value
		}
	}
	if diff := cmp.Diff(holders, recorded); diff != "" {
		tb.Errorf("the caller's records and the leases after %d steps (-caller +leases)\n%s", steps, diff)
	}
	return steps
}

// A process that is killed with SIGKILL at a random instant, again and again:
// every step that was acknowledged is in the file, at most one more is, and the
// caller's records agree with the leases.
func TestKill(t *testing.T) {
	dir, err := os.MkdirTemp("/dev/shm", "tendril-ipam") //nolint:usetesting // tmpfs, as in life
	if err != nil {
		dir = t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "state.db")
	random := rand.New(rand.NewPCG(8, 9))
	var total uint64
	for round := range 30 {
		acknowledged := killOnce(t, path, round, random)
		steps := checkAfterCrash(t, path)
		if acknowledged > 0 && steps != acknowledged && steps != acknowledged+1 {
			t.Fatalf("round %d: %d steps were acknowledged, the file has %d", round, acknowledged, steps)
		}
		if steps < total {
			t.Fatalf("round %d: %d steps are in the file, after %d in the round before", round, steps, total)
		}
		total = steps
	}
	if total < 500 {
		t.Errorf("only %d steps in all rounds", total)
	}
}

// killOnce runs the victim for some steps and returns the last that it
// acknowledged; 0 if none. The first rounds kill it at its start.
func killOnce(t *testing.T, path string, round int, random *rand.Rand) (acknowledged uint64) {
	t.Helper()
	victim := exec.Command(os.Args[0])
	victim.Env = append(os.Environ(), crashFile+"="+path)
	var stderr bytes.Buffer
	victim.Stderr = &stderr
	stdout, err := victim.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	kill := func() { _ = victim.Process.Kill() }
	lines := bufio.NewScanner(stdout)
	if round < 8 {
		// Anywhere between exec and the first steps.
		timer := time.AfterFunc(time.Duration(round)*3*time.Millisecond, kill)
		defer timer.Stop()
	} else {
		for range 1 + random.IntN(200) {
			if !lines.Scan() {
				break
			}
			_, err = fmt.Sscan(lines.Text(), &acknowledged)
		}
		// Anywhere in a step, which takes some 50 us.
		timer := time.AfterFunc(time.Duration(random.IntN(200))*time.Microsecond, kill)
		defer timer.Stop()
	}
	for lines.Scan() {
		_, err = fmt.Sscan(lines.Text(), &acknowledged)
	}
	if err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := victim.Wait(); !errors.As(err, &exit) || exit.Exited() {
		t.Fatalf("the victim ended by itself: %v\n%s", err, stderr.String())
	}
	return acknowledged
}

// The same without chance: a commit writes its pages in some order, and the meta
// page last. Whatever part of the pages is in the file, without the meta page it
// is the state before, and with it the state after. A torn meta page is none.
func TestCommitCutAnywhere(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state.db")
	s := mustOpen(t, path)
	s.db.NoSync = true
	random := rand.New(rand.NewPCG(10, 11))
	const pageSize = 4096 // smaller than or equal to bbolt's, so pages may be cut too
	crashed := filepath.Join(dir, "crashed.db")
	for step := range uint64(3 * crashContainers) {
		before, stateBefore := mustRead(t, path), contentOf(&s.state)
		if err := crashStep(s, step); err != nil {
			t.Fatal(err)
		}
		after, stateAfter := mustRead(t, path), contentOf(&s.state)
		if step%5 != 0 {
			continue
		}
		var changed []int
		metaAt := -1
		grown := append(bytes.Clone(before), make([]byte, len(after)-len(before))...)
		for at := 0; at < len(after); at += pageSize {
			switch {
			case bytes.Equal(grown[at:at+pageSize], after[at:at+pageSize]):
			case at < 2*os.Getpagesize():
				metaAt = at
			default:
				changed = append(changed, at)
			}
		}
		if metaAt < 0 || len(changed) == 0 {
			t.Fatalf("step %d changed pages %v and meta page %d", step, changed, metaAt)
		}
		random.Shuffle(len(changed), func(i, j int) { changed[i], changed[j] = changed[j], changed[i] })
		expect := func(image []byte, want content, what string) {
			t.Helper()
			mustWrite(t, crashed, image)
			db, err := OpenFile(crashed, FileOptions{})
			if err != nil {
				t.Fatalf("step %d, %s: %v", step, what, err)
			}
			if diff := cmp.Diff(want, inFile(t, db), netips); diff != "" {
				t.Errorf("step %d, %s (-want +got)\n%s", step, what, diff)
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
		}
		expect(before, stateBefore, "none")
		image := grown
		expect(image, stateBefore, "grown")
		for i, at := range changed {
			copy(image[at:at+pageSize], after[at:])
			expect(image, stateBefore, fmt.Sprintf("%d of %d pages", i+1, len(changed)))
		}
		torn := bytes.Clone(image)
		copy(torn[metaAt:metaAt+pageHeaderSize+metaSize-8], after[metaAt:])
		expect(torn, stateBefore, "torn meta page")
		expect(after, stateAfter, "all")
	}
}
