// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/features"
)

// errNoDevice says that the device to attach to does not exist.
var errNoDevice = errors.New("no such device")

// attachment is one program on one device.
type attachment struct {
	ifindex int
	program string
}

// ingress says on which side of the device the program sits.
func (a attachment) ingress() bool { return a.program == fromContainer || a.program == fromUplink }

// hooks is where programs meet packets: tcx links on kernels that have them,
// else clsact filters. Nothing else in the package knows the difference.
type hooks interface {
	kind() string
	// attach puts the program there, in place of an older one if there is one.
	attach(attachment, *ebpf.Program) error
	// detach takes it away; one that is not there is no error.
	detach(attachment) error
	// has asks the kernel whether our program is attached there.
	has(attachment) (bool, error)
	// list asks what is attached.
	list() ([]attachment, error)
}

func newHooks(kind, dir string) (hooks, error) {
	switch kind {
	case "":
		if features.HaveProgramType(ebpf.SchedCLS) == nil && haveTCX() {
			return &tcx{dir: dir}, nil
		}
		return &clsact{}, nil
	case "tcx":
		return &tcx{dir: dir}, nil
	case "clsact":
		return &clsact{}, nil
	default:
		return nil, fmt.Errorf("attach %q is neither tcx nor clsact", kind)
	}
}
