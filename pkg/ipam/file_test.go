// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"bytes"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"
)

// goodFile makes a file with some of everything: leases in several leaves below
// a branch, free pages, released addresses, a bucket in place and one that is
// not, a value larger than a page. It returns the path and the content.
func goodFile(tb testing.TB, leases int) (path string, image []byte) {
	tb.Helper()
	path = filepath.Join(tb.TempDir(), "state.db")
	s := mustOpen(tb, path)
	s.db.NoSync = true
	for i := range leases {
		mustAllocate(tb, s, from(tb, "pods", "10.0.0.0/24; fd00::/64", container(i)))
	}
	for i := range leases / 2 {
		mustRelease(tb, s, "pods", container(2*i))
	}
	if err := s.db.Update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucket([]byte("endpoints"))
		return errors.Join(err, b.Put([]byte("large"), bytes.Repeat([]byte("x"), 5000)))
	}); err != nil {
		tb.Fatal(err)
	}
	mustClose(tb, s)
	return path, mustRead(tb, path)
}

func mustRead(tb testing.TB, path string) []byte {
	tb.Helper()
	image, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	return image
}

func mustWrite(tb testing.TB, path string, image []byte) {
	tb.Helper()
	if err := os.WriteFile(path, image, 0o600); err != nil {
		tb.Fatal(err)
	}
}

// refuseFile fails unless OpenFile refuses the image as corrupt and leaves it
// alone.
func refuseFile(tb testing.TB, path string, image []byte, reason string) {
	tb.Helper()
	mustWrite(tb, path, image)
	db, err := OpenFile(path, FileOptions{})
	if err == nil {
		_ = db.Close()
	}
	if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), reason) || !strings.HasPrefix(err.Error(), "open "+path+": ") {
		tb.Errorf("got error %v, want ErrCorrupt with the path and %q", err, reason)
	}
	if !bytes.Equal(mustRead(tb, path), image) {
		tb.Error("the file has changed")
	}
}

func TestOpenFileCreates(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := mustOpen(t, path)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != 0o600 {
		t.Errorf("created with mode %o, want 600", got)
	}
	mustAllocate(t, s, from(t, "pods", "10.0.0.0/24", container(1)))
}

// A kill while the file is created leaves the beginning of a file without any
// transaction. That is no loss, so it is no error.
func TestOpenFileAfterInterruptedCreation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	db, err := OpenFile(path, FileOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	image := mustRead(t, path)
	pageSize := os.Getpagesize()
	if len(image) != minPages*pageSize {
		t.Fatalf("a new file has %d bytes, want %d", len(image), minPages*pageSize)
	}
	for pages := range minPages + 1 { // whole pages: a write is not cut within one
		mustWrite(t, path, image[:pages*pageSize])
		s := mustOpen(t, path)
		mustAllocate(t, s, from(t, "pods", "10.0.0.0/24", container(1)))
		mustClose(t, s)
	}
}

// However much of a file is missing, the error says so, or nothing that is in
// use was lost.
func TestOpenFileCutShort(t *testing.T) {
	path, image := goodFile(t, 100)
	m, err := findMeta(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	need := int(m.high) * int(m.pageSize)
	refuseFile(t, path, image[:len(image)/2], "cut short: it has ")
	for size := need - 1; size > 0; size -= 1021 {
		reason := "cut short: it has "
		if size < pageHeaderSize+metaSize {
			reason = "neither of its two meta pages is whole"
		}
		refuseFile(t, path, image[:size], reason)
	}
	mustWrite(t, path, image[:need]) // only the slack is missing
	mustOpen(t, path)
}

func TestOpenFileOfSomethingElse(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state.db")
	refuseFile(t, path, []byte("{}"), "neither of its two meta pages is whole")
	refuseFile(t, path, bytes.Repeat([]byte{0}, 1<<16), "neither of its two meta pages is whole")
	refuseFile(t, path, bytes.Repeat([]byte{0xff}, 1<<16), "neither of its two meta pages is whole")

	if _, err := OpenFile(dir, FileOptions{}); err == nil || errors.Is(err, ErrCorrupt) || strings.Count(err.Error(), dir) != 1 {
		t.Errorf("a directory: got error %v, want what the file system says, with the path once", err)
	}
	missing := filepath.Join(dir, "missing", "state.db")
	if _, err := OpenFile(missing, FileOptions{}); !errors.Is(err, os.ErrNotExist) || strings.Count(err.Error(), missing) != 1 {
		t.Errorf("no directory: got error %v, want ErrNotExist with the path once", err)
	}
}

func TestOpenFileInUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := mustOpen(t, path)
	for _, timeout := range []time.Duration{0, 30 * time.Millisecond} {
		if _, err := OpenFile(path, FileOptions{LockTimeout: timeout}); !errors.Is(err, ErrInUse) {
			t.Errorf("timeout %s: got error %v, want ErrInUse", timeout, err)
		}
	}
	if want := mustAllocate(t, s, from(t, "pods", "10.0.0.0/24", container(1))); want == nil {
		t.Error("the first user was disturbed")
	}

	// Whoever waits gets the file when it is free, with all that is in it.
	opened := make(chan error)
	go func() {
		db, err := OpenFile(path, FileOptions{LockTimeout: time.Minute})
		if err == nil {
			err = db.Close()
		}
		opened <- err
	}()
	mustClose(t, s)
	if err := <-opened; err != nil {
		t.Error(err)
	}
}

// One example for each thing that the verification looks at.
func TestOpenFileDamaged(t *testing.T) {
	path, image := goodFile(t, 100)
	m, err := findMeta(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	page := func(image []byte, id uint64) []byte { return image[int64(id)*m.pageSize:][:m.pageSize] }
	used := tree{r: bytes.NewReader(image), meta: m, used: make([]bool, m.high)}
	if err := used.checkTree(m.root, nil, nil, 0); err != nil {
		t.Fatal(err)
	}
	// Some page of each kind that is in use.
	branch, leaf, free := uint64(0), uint64(0), uint64(0)
	for id := m.high - 1; id >= 2; id-- {
		switch flags := native.Uint16(page(image, id)[8:]); {
		case id == m.freelist:
		case !used.used[id]:
			free = id
		case flags == branchPage:
			branch = id
		case flags == leafPage && native.Uint32(page(image, id)[12:]) == 0 && native.Uint16(page(image, id)[10:]) > 2:
			leaf = id
		}
	}
	if branch == 0 || leaf == 0 || free == 0 {
		t.Fatalf("the file has branch %d, leaf %d, free page %d", branch, leaf, free)
	}
	put64 := native.PutUint64
	put32 := native.PutUint32
	put16 := native.PutUint16
	for _, test := range []struct {
		name   string
		damage func(b []byte)
		reason string
	}{
		{"pages of no size", func(b []byte) { putMeta(b, 8, 0) }, "its pages have 0 bytes"},
		{"pages of an odd size", func(b []byte) { putMeta(b, 8, 4097) }, "its pages have 4097 bytes"},
		{"zeros instead of the second half", func(b []byte) { clear(b[len(b)/2:]) }, "says that it is page 0"},
		{"another page's number", func(b []byte) { put64(page(b, leaf), 1) }, "says that it is page 1"},
		{"unknown type", func(b []byte) { put16(page(b, leaf)[8:], 3) }, "of type 0x3"},
		{"a meta page among the others", func(b []byte) { put16(page(b, leaf)[8:], 4) }, "of type 0x4"},
		{"overflow beyond the end", func(b []byte) { put32(page(b, leaf)[12:], 1<<32-1) }, "beyond the end"},
		{"overflow into others", func(b []byte) { put32(page(b, leaf)[12:], 1) }, ""},
		{"more elements than fit", func(b []byte) { put16(page(b, leaf)[10:], 0xffff) }, ""},
		{"a branch without children", func(b []byte) { put16(page(b, branch)[10:], 0) }, "without children"},
		{"a child beyond the end", func(b []byte) { put64(page(b, branch)[16+8:], m.high) }, "does not exist"},
		{"a child that is its parent", func(b []byte) { put64(page(b, branch)[16+8:], branch) }, "used twice"},
		{"a child that is a meta page", func(b []byte) { put64(page(b, branch)[16+8:], 1) }, "does not exist"},
		{"two children that are one", func(b []byte) { copy(page(b, branch)[16+16+8:][:8], page(b, branch)[16+8:]) }, "used twice"},
		{"a key beyond the page", func(b []byte) { put32(page(b, leaf)[16+4:], 1<<31) }, "outside of the page"},
		{"a key as long as memory", func(b []byte) { put32(page(b, leaf)[16+8:], 1<<32-1) }, "outside of the page"},
		{"a value as long as memory", func(b []byte) { put32(page(b, leaf)[16+12:], 1<<32-1) }, "outside of the page"},
		{"an empty key", func(b []byte) { put32(page(b, leaf)[16+16+8:], 0) }, "key 1 is empty"},
		{"keys out of order", func(b []byte) {
			at := 16 + 16 + native.Uint32(page(b, leaf)[16+16+4:])
			page(b, leaf)[at] = 0
		}, "not greater than the one before"},
		{"keys that belong elsewhere", func(b []byte) { page(b, branch)[16+16+native.Uint32(page(b, branch)[16+16:])] = 0xff }, ""},
		// bbolt finds a child in its parent by the child's first key, and
		// writes a second entry for it if that is not there.
		{
			"a child's first key that is not its parent's", func(b []byte) { page(b, branch)[16+native.Uint32(page(b, branch)[16:])]-- },
			"the first key is not the one that its parent has for it",
		},
		{"a value that says it is a bucket", func(b []byte) { put32(page(b, leaf)[16:], 1) }, "bucket "},
		{"unknown element flags", func(b []byte) { put32(page(b, leaf)[16:], 6) }, "flags 0x6"},
		{"a used page that is listed as free", func(b []byte) { put64(page(b, m.freelist)[16:], leaf) }, "used and free"},
		{"a free page beyond the end", func(b []byte) { put64(page(b, m.freelist)[16:], m.high) }, "does not exist"},
		{"a free page that is not listed", func(b []byte) {
			count := page(b, m.freelist)[10:]
			put16(count, native.Uint16(count)-1)
		}, "neither used nor free"},
		{"more free pages than fit", func(b []byte) { put16(page(b, m.freelist)[10:], 0xfffe) }, "has no room"},
		{"very many more free pages than fit", func(b []byte) {
			put16(page(b, m.freelist)[10:], 0xffff)
			put64(page(b, m.freelist)[16:], 1<<63)
		}, "has no room"},
		{"a list of free pages that is none", func(b []byte) { put16(page(b, m.freelist)[8:], leafPage) }, "not a list of free pages"},
	} {
		t.Run(test.name, func(t *testing.T) {
			bad := bytes.Clone(image)
			test.damage(bad)
			refuseFile(t, path, bad, test.reason)
		})
	}
}

// putMeta changes a number of meta page 0 and makes the checksum right.
func putMeta(image []byte, at int, value uint32) {
	m := image[pageHeaderSize:][:metaSize]
	native.PutUint32(m[at:], value)
	sumMeta(m)
}

func sumMeta(m []byte) {
	h := fnv.New64a()
	h.Write(m[:metaSize-8])
	native.PutUint64(m[metaSize-8:], h.Sum64())
}

// checkDamaged opens a file whose good image was changed. The answer is
// ErrCorrupt and an unchanged file, or a file that bbolt's own check finds
// nothing wrong with and that is safe to use.
func checkDamaged(tb testing.TB, path string, image []byte) {
	tb.Helper()
	if err := checkPages(bytes.NewReader(image), int64(len(image))); err != nil && !errors.Is(err, errUnborn) {
		if !errors.Is(err, ErrCorrupt) {
			tb.Fatal(err)
		}
		return // TestOpenFileDamaged has what OpenFile does then
	}
	mustWrite(tb, path, image)
	db, err := OpenFile(path, FileOptions{})
	if err != nil {
		tb.Fatalf("checkPages found nothing, but: %v", err)
	}
	db.NoSync = true
	defer func() { _ = db.Close() }()
	if err := db.View(func(tx *bbolt.Tx) error {
		var all []error
		for err := range tx.Check() {
			all = append(all, err)
		}
		return errors.Join(all...)
	}); err != nil {
		tb.Fatalf("checkPages found nothing, bbolt: %v", err)
	}
	s, err := Open(db)
	var wrong *RecordError
	if errors.As(err, &wrong) {
		return
	}
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := s.Allocate(from(tb, "pods", "10.0.0.0/24; fd00::/64", Owner{"new", "eth0"}), nil); err != nil {
		tb.Fatal(err)
	}
	if err := s.Release("pods", container(1), nil); err != nil {
		tb.Fatal(err)
	}
	sameAsFile(tb, s)
}

// damage changes up to eight bytes, cuts the end off and makes the checksums of
// the meta pages right again if asked to. It leaves the page headers of the meta
// pages alone: bbolt reads them in Tx.Check and nowhere else.
func damage(image []byte, at, change uint64, size uint32, sum bool) []byte {
	out := bytes.Clone(image)
	start := at % uint64(len(out))
	for i := range min(8, uint64(len(out))-start) {
		out[start+i] ^= byte(change >> (8 * i))
	}
	for _, page := range []int{0, os.Getpagesize()} {
		copy(out[page:page+pageHeaderSize], image[page:])
		if sum {
			sumMeta(out[page+pageHeaderSize:][:metaSize])
		}
	}
	return out[:min(len(out), int(size))]
}

// Random damage, concentrated on the headers of pages, where it matters.
func TestOpenFileRandomDamage(t *testing.T) {
	path, image := goodFile(t, 40)
	random := rand.New(rand.NewPCG(4, 5))
	accepted := 0
	for range 4000 {
		at := random.Uint64N(uint64(len(image)))
		if random.IntN(4) != 0 {
			at = at&^4095 + random.Uint64N(200)
		}
		change := uint64(1) << random.IntN(64)
		if random.IntN(2) == 0 {
			change = random.Uint64() >> random.IntN(64)
		}
		bad := damage(image, at, change, 1<<30, random.IntN(2) == 0)
		if checkPages(bytes.NewReader(bad), int64(len(bad))) == nil {
			if accepted++; accepted > 150 {
				continue // enough files were really opened
			}
		}
		checkDamaged(t, path, bad)
	}
	if accepted < 100 {
		t.Errorf("only %d files were accepted: the damage is not varied enough", accepted)
	}
}

func FuzzOpenFile(f *testing.F) {
	path, image := goodFile(f, 40)
	f.Add(uint64(0), uint64(0), uint32(1<<30), false)
	f.Add(uint64(0), uint64(0), uint32(len(image)/2), false)
	f.Add(uint64(16+16), uint64(3), uint32(1<<30), true)      // the root page in a meta page
	f.Add(uint64(16+8), uint64(0x3000), uint32(1<<30), true)  // the page size
	f.Add(uint64(16+40), uint64(0xff), uint32(1<<30), true)   // the number of pages
	f.Add(uint64(3*4096+8), uint64(3), uint32(1<<30), false)  // a type
	f.Add(uint64(5*4096+12), uint64(1), uint32(1<<30), false) // an overflow
	f.Fuzz(func(t *testing.T, at, change uint64, size uint32, sum bool) {
		checkDamaged(t, path, damage(image, at, change, size, sum))
	})
}

// checkPages agrees with bbolt on files that are good.
func TestCheckPagesAcceptsGoodFiles(t *testing.T) {
	for _, leases := range []int{0, 1, 40, 250} {
		_, image := goodFile(t, leases)
		if err := checkPages(bytes.NewReader(image), int64(len(image))); err != nil {
			t.Errorf("%d leases: %v", leases, err)
		}
	}
	// Without a list of free pages in the file, and with another page size, as
	// bbolt can be told.
	path := filepath.Join(t.TempDir(), "state.db")
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoFreelistSync: true, PageSize: 8192})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(db); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, path)
}

// Trees of all shapes: large and small values, keys that come and go at the
// front, in the middle and at the end, buckets within buckets.
func TestCheckPagesAcceptsWhatBboltWrites(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	random := rand.New(rand.NewPCG(6, 7))
	for step := range 150 {
		if err := db.Update(func(tx *bbolt.Tx) error {
			b, err := tx.CreateBucketIfNotExists([]byte{byte('a' + random.IntN(3))})
			for err == nil && random.IntN(3) == 0 {
				b, err = b.CreateBucketIfNotExists([]byte{byte('a' + random.IntN(3))})
			}
			if err != nil {
				return err
			}
			first := random.IntN(900)
			for i := range random.IntN(200) {
				key := []byte(fmt.Sprintf("key %03d", first+i))
				if step/50%2 == 0 && random.IntN(9) != 0 {
					err = b.Put(key, bytes.Repeat([]byte("v"), 1<<random.IntN(13)))
				} else {
					err = b.Delete(key)
				}
				if err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		image := mustRead(t, path)
		if err := checkPages(bytes.NewReader(image), int64(len(image))); err != nil {
			t.Fatalf("step %d: %v", step, err)
		}
	}
}

// One meta page may be torn by a power cut: the other is a transaction older.
func TestOpenFileWithOneMetaPage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := mustOpen(t, path)
	var states []content
	for i := range 4 {
		mustAllocate(t, s, from(t, "pods", "10.0.0.0/24", container(i)))
		states = append(states, contentOf(&s.state))
	}
	mustClose(t, s)
	image := mustRead(t, path)
	m, err := findMeta(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	newest := m.transaction % 2
	for page, want := range map[uint64]content{newest: states[2], 1 - newest: states[3]} {
		torn := bytes.Clone(image)
		torn[int64(page)*m.pageSize+pageHeaderSize+50]++
		mustWrite(t, path, torn)
		db, err := OpenFile(path, FileOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, inFile(t, db), netips); diff != "" {
			t.Errorf("without meta page %d (-want +got)\n%s", page, diff)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
