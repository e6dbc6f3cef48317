// SPDX-License-Identifier: Apache-2.0

package wiring

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// noNamespace is NETNSA_NSID_NOT_ASSIGNED of linux/net_namespace.h.
const noNamespace = -1

// number is what the namespace calls another one in rtnetlink (RTM_NEWNSID). One without a
// number is given one, which goes with either of the two. The error is ErrNotNamespace for
// a file of something else.
func (n *Namespace) number(of *os.File) (int, error) {
	const fixed = unix.NLMSG_ALIGNTO // struct rtgenmsg is one byte, and padded
	body := func() []byte { return attribute32(make([]byte, fixed), unix.NETNSA_FD, uint32(of.Fd())) }
	var free int32 = noNamespace // has the kernel choose
	what := "number network namespace " + of.Name()
	answers, err := n.exchange([]message{{
		kind: unix.RTM_NEWNSID, body: attribute32(body(), unix.NETNSA_NSID, uint32(free)),
		what: what, tolerate: []unix.Errno{unix.EEXIST},
	}, {kind: unix.RTM_GETNSID, body: body(), what: what, asks: true}})
	switch {
	case errors.Is(err, unix.EINVAL):
		return 0, fmt.Errorf("%s: %w", what, ErrNotNamespace)
	case err != nil:
		return 0, err
	case len(answers[1]) < fixed:
		return 0, fmt.Errorf("%s: answer is cut short", what)
	}
	value := attributes(answers[1][fixed:])[unix.NETNSA_NSID]
	if len(value) != 4 {
		return 0, fmt.Errorf("%s: answer has no number", what)
	}
	number := int(int32(binary.NativeEndian.Uint32(value)))
	if number == noNamespace {
		return 0, fmt.Errorf("%s: the kernel gives none", what)
	}
	return number, nil
}

// inodeOf is the number by which the kernel's programs know a network namespace.
func inodeOf(file *os.File) (uint64, error) {
	var stat unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &stat); err != nil {
		return 0, fmt.Errorf("identify network namespace: %w", err)
	}
	return stat.Ino, nil
}
