// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
)

// What follows reads bbolt's file format, version 2 (bbolt internal/common:
// page.go, meta.go, bucket.go). All numbers are in the machine's byte native. bbolt's own Tx.Check cannot be used on a file that
// may be damaged: it follows page numbers into a mapping that ends earlier, and
// no recover catches that fault in its goroutine. The tests hold checkPages to
// Tx.Check.
const (
	pageHeaderSize = 16 // id u64, flags u16, count u16, overflow u32
	elementSize    = 16 // of branch and leaf pages
	metaSize       = 64
	bucketSize     = 16 // root u64, sequence u64

	branchPage   = 0x01
	leafPage     = 0x02
	freelistPage = 0x10
	bucketFlag   = 0x01

	metaMagic   = 0xED0CDAED
	metaVersion = 2
	noFreelist  = 1<<64 - 1
	// Page sizes that bbolt looks for.
	minPageSize = 1 << 10
	maxPageSize = 1 << 24
	// minPages is the size of a file as it is created.
	minPages = 4
	// maxDepth bounds the recursion: no file of a sane size is this deep.
	maxDepth = 64
)

// errUnborn: the file's creation was interrupted before any transaction.
var errUnborn = errors.New("interrupted while it was created")

var native = binary.NativeEndian

// meta is one of the two pages by which a file is entered.
type meta struct {
	pageSize             int64
	root, freelist, high uint64 // page numbers; high is the first beyond the end
	transaction          uint64
}

// readMeta reads the meta page at an offset, or returns false if there is none
// that bbolt would use.
func readMeta(r io.ReaderAt, offset int64) (meta, bool) {
	var b [metaSize]byte
	if _, err := r.ReadAt(b[:], offset+pageHeaderSize); err != nil {
		return meta{}, false
	}
	sum := fnv.New64a()
	sum.Write(b[:metaSize-8])
	m := meta{
		pageSize:    int64(native.Uint32(b[8:])),
		root:        native.Uint64(b[16:]), // the root bucket's sequence follows
		freelist:    native.Uint64(b[32:]),
		high:        native.Uint64(b[40:]),
		transaction: native.Uint64(b[48:]),
	}
	ok := native.Uint32(b[0:]) == metaMagic && native.Uint32(b[4:]) == metaVersion &&
		native.Uint64(b[56:]) == sum.Sum64()
	return m, ok
}

// findMeta returns the meta page that bbolt would use: the newer of the two, or
// the one that is whole.
func findMeta(r io.ReaderAt, size int64) (meta, error) {
	m0, ok0 := readMeta(r, 0)
	if ok0 {
		if m0.pageSize < minPageSize || m0.pageSize > maxPageSize || m0.pageSize&(m0.pageSize-1) != 0 {
			return meta{}, fmt.Errorf("its pages have %d bytes", m0.pageSize)
		}
		m1, ok1 := readMeta(r, m0.pageSize)
		if ok1 && m1.pageSize != m0.pageSize {
			return meta{}, errors.New("its two meta pages contradict each other")
		}
		if ok1 && m1.transaction > m0.transaction {
			return m1, nil
		}
		return m0, nil
	}
	for pageSize := int64(minPageSize); pageSize <= maxPageSize && pageSize < size; pageSize *= 2 {
		if m1, ok := readMeta(r, pageSize); ok && m1.pageSize == pageSize {
			return m1, nil
		}
	}
	return meta{}, errors.New("neither of its two meta pages is whole")
}

// checkPages verifies the structure of a bbolt file of size bytes, as far as
// bbolt relies on it: every page that can be reached is in the file, is what
// it is used as, holds what it says it holds in ascending order, and is used
// once; all others are free. Errors wrap ErrCorrupt, but for errUnborn.
func checkPages(r io.ReaderAt, size int64) error {
	m, err := findMeta(r, size)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	// The first commit is transaction 2, and it writes meta page 0.
	if m0, ok := readMeta(r, 0); ok && m0.transaction == 0 && size < minPages*m.pageSize {
		return errUnborn
	}
	if m.high < minPages || m.high > uint64(size/m.pageSize) {
		return fmt.Errorf("%w: cut short: it has %d bytes of %d", ErrCorrupt, size, m.high*uint64(m.pageSize))
	}
	t := tree{r: r, meta: m, used: make([]bool, m.high)}
	t.used[0], t.used[1] = true, true
	if err := t.checkAll(); err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return nil
}

// tree is a file while it is verified.
type tree struct {
	meta
	r io.ReaderAt
	// used are the pages that were reached.
	used []bool
}

func (t *tree) checkAll() error {
	if err := t.checkTree(t.root, nil, nil, 0); err != nil {
		return err
	}
	if t.freelist == noFreelist {
		return nil
	}
	if err := t.checkFreelist(); err != nil {
		return err
	}
	for id, used := range t.used {
		if !used {
			return fmt.Errorf("page %d is neither used nor free", id)
		}
	}
	return nil
}

// page is a page in memory, with those that follow it as its overflow.
type page struct {
	flags uint16
	count int
	data  []byte // header included
}

// read reads a page that was not reached before.
func (t *tree) read(id uint64) (page, error) {
	if id < 2 || id >= t.high {
		return page{}, fmt.Errorf("page %d does not exist: there are %d", id, t.high)
	}
	var header [pageHeaderSize]byte
	if _, err := t.r.ReadAt(header[:], int64(id)*t.pageSize); err != nil {
		return page{}, fmt.Errorf("page %d: %w", id, err)
	}
	overflow := uint64(native.Uint32(header[12:]))
	if got := native.Uint64(header[:]); got != id {
		return page{}, fmt.Errorf("page %d says that it is page %d", id, got)
	}
	if id+overflow >= t.high {
		return page{}, fmt.Errorf("page %d goes on for %d pages, beyond the end", id, overflow)
	}
	for i := id; i <= id+overflow; i++ {
		if t.used[i] {
			return page{}, fmt.Errorf("page %d is used twice", i)
		}
		t.used[i] = true
	}
	p := page{flags: native.Uint16(header[8:]), count: int(native.Uint16(header[10:]))}
	p.data = make([]byte, int64(1+overflow)*t.pageSize)
	if _, err := t.r.ReadAt(p.data, int64(id)*t.pageSize); err != nil {
		return page{}, fmt.Errorf("page %d: %w", id, err)
	}
	return p, nil
}

// checkTree verifies a page of a bucket and all below it. The keys begin with
// from and end before to, where these are given.
func (t *tree) checkTree(id uint64, from, to []byte, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("page %d is more than %d levels deep", id, maxDepth)
	}
	p, err := t.read(id)
	if err != nil {
		return err
	}
	switch p.flags {
	case branchPage:
		err = t.checkBranch(p, from, to, depth)
	case leafPage:
		err = t.checkLeaf(p, from, to, depth)
	default:
		err = fmt.Errorf("it is of type %#x", p.flags)
	}
	if err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	return nil
}

func (t *tree) checkBranch(p page, from, to []byte, depth int) error {
	if p.count == 0 {
		return errors.New("a branch without children")
	}
	keys := make([][]byte, p.count, p.count+1)
	children := make([]uint64, p.count)
	for i := range keys {
		e, err := p.element(i) // pos u32, key size u32, page u64
		if err != nil {
			return err
		}
		if keys[i], err = p.bytes(i, uint64(native.Uint32(e)), uint64(native.Uint32(e[4:]))); err != nil {
			return err
		}
		children[i] = native.Uint64(e[8:])
	}
	if err := checkKeys(keys, from, to); err != nil {
		return err
	}
	keys = append(keys, to)
	for i, child := range children {
		if err := t.checkTree(child, keys[i], keys[i+1], depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (t *tree) checkLeaf(p page, from, to []byte, depth int) error {
	keys := make([][]byte, p.count)
	for i := range keys {
		e, err := p.element(i) // flags u32, pos u32, key size u32, value size u32
		if err != nil {
			return err
		}
		at, keySize, valueSize := uint64(native.Uint32(e[4:])), uint64(native.Uint32(e[8:])), uint64(native.Uint32(e[12:]))
		if keys[i], err = p.bytes(i, at, keySize); err != nil {
			return err
		}
		value, err := p.bytes(i, at+keySize, valueSize)
		if err != nil {
			return err
		}
		switch flags := native.Uint32(e); flags {
		case 0:
		case bucketFlag:
			if err := t.checkBucket(value, depth); err != nil {
				return fmt.Errorf("bucket %q: %w", keys[i], err)
			}
		default:
			return fmt.Errorf("element %d has flags %#x", i, flags)
		}
	}
	return checkKeys(keys, from, to)
}

// checkBucket verifies a bucket: a root page, or one small leaf in place.
func (t *tree) checkBucket(value []byte, depth int) error {
	if len(value) < bucketSize {
		return fmt.Errorf("its header has %d bytes", len(value))
	}
	if root := native.Uint64(value); root != 0 {
		return t.checkTree(root, nil, nil, depth+1)
	}
	data := value[bucketSize:]
	if len(data) < pageHeaderSize {
		return fmt.Errorf("its page in place has %d bytes", len(data))
	}
	p := page{flags: native.Uint16(data[8:]), count: int(native.Uint16(data[10:])), data: data}
	if p.flags != leafPage || native.Uint64(data) != 0 || native.Uint32(data[12:]) != 0 {
		return errors.New("its page in place is not a leaf")
	}
	if depth >= maxDepth {
		return fmt.Errorf("it is more than %d levels deep", maxDepth)
	}
	return t.checkLeaf(p, nil, nil, depth+1)
}

// checkFreelist verifies the list of free pages.
func (t *tree) checkFreelist() error {
	p, err := t.read(t.freelist)
	if err != nil {
		return err
	}
	if p.flags != freelistPage {
		return fmt.Errorf("page %d is of type %#x, not a list of free pages", t.freelist, p.flags)
	}
	list, count := p.data[pageHeaderSize:], uint64(p.count)
	if p.count == 0xffff { // then the count is a number of its own
		count, list = native.Uint64(list), list[8:]
	}
	if count > uint64(len(list)/8) {
		return fmt.Errorf("page %d lists %d free pages and has no room for them", t.freelist, count)
	}
	for i := range count {
		id := native.Uint64(list[8*i:])
		if id < 2 || id >= t.high {
			return fmt.Errorf("free page %d does not exist: there are %d", id, t.high)
		}
		if t.used[id] {
			return fmt.Errorf("page %d is used and free, or free twice", id)
		}
		t.used[id] = true
	}
	return nil
}

// element is the i-th element's fixed part.
func (p page) element(i int) ([]byte, error) {
	at := pageHeaderSize + i*elementSize
	if at+elementSize > len(p.data) {
		return nil, fmt.Errorf("%d elements do not fit", p.count)
	}
	return p.data[at : at+elementSize], nil
}

// bytes are what an element points to; at counts from the element itself.
func (p page) bytes(i int, at, size uint64) ([]byte, error) {
	from := uint64(pageHeaderSize+i*elementSize) + at
	if from+size > uint64(len(p.data)) {
		return nil, fmt.Errorf("element %d is outside of the page", i)
	}
	return p.data[from : from+size], nil
}

// checkKeys verifies that keys ascend within [from, to). The first is from
// itself, where that is given.
func checkKeys(keys [][]byte, from, to []byte) error {
	if from != nil && (len(keys) == 0 || !bytes.Equal(keys[0], from)) {
		return errors.New("the first key is not the one that its parent has for it")
	}
	for i, key := range keys {
		switch {
		case len(key) == 0:
			return fmt.Errorf("key %d is empty", i)
		case i > 0 && bytes.Compare(keys[i-1], key) >= 0:
			return fmt.Errorf("key %d is not greater than the one before", i)
		case to != nil && bytes.Compare(key, to) >= 0:
			return fmt.Errorf("key %d is not where it belongs", i)
		}
	}
	return nil
}
