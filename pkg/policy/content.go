// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
)

// digest names a content. It is the same in every process, and nobody who
// writes policies can make two contents with the same one.
type digest [sha256.Size]byte

func (d digest) compare(other digest) int { return bytes.Compare(d[:], other[:]) }

// content collects what a digest is of. Each part is written so that no other
// sequence of parts has the same bytes.
type content struct{ data []byte }

func (c *content) number(n uint64) {
	if c.data == nil {
		c.data = make([]byte, 0, 128)
	}
	c.data = binary.AppendUvarint(c.data, n)
}

func (c *content) text(s string) {
	c.number(uint64(len(s)))
	c.data = append(c.data, s...)
}

func (c *content) flag(b bool) {
	if b {
		c.number(1)
	} else {
		c.number(0)
	}
}

func (c *content) digest(d digest) { c.data = append(c.data, d[:]...) }

func (c *content) sum() digest { return sha256.Sum256(c.data) }
