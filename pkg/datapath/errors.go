// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"fmt"
	"net"
	"reflect"
	"strings"

	"github.com/tendril-net/tendril/pkg/maps"
)

// LockedError says that another agent uses the same bpf-root.
type LockedError struct {
	Root string
	// PID of the holder, 0 when it cannot be told.
	PID int
}

func (e *LockedError) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("bpf-root %s is in use by another agent", e.Root)
	}
	return fmt.Sprintf("bpf-root %s is in use by the agent with pid %d", e.Root, e.PID)
}

// KernelError names what the running kernel lacks.
type KernelError struct {
	// Feature in the kernel's words, Since the first version that has it.
	Feature string
	Since   string
	Err     error
}

func (e *KernelError) Error() string {
	return fmt.Sprintf("this kernel lacks %s, which Linux has since %s: %v", e.Feature, e.Since, e.Err)
}

func (e *KernelError) Unwrap() error { return e.Err }

// MismatchError says that the kernel holds something else than was attached.
type MismatchError struct {
	// What is wrong, such as "entry of 10.10.0.5 in map endpoints".
	What string
	// Difference is such as "has mtu 1400, not 1500", or "" where it is missing.
	Difference string
}

func (e *MismatchError) Error() string {
	if e.Difference == "" {
		return e.What + " is missing"
	}
	return e.What + " " + e.Difference
}

// difference names the fields of a map's value that are not as they should be, in the
// words of the programs. One that is no struct is compared whole.
func difference(got, want reflect.Value) string {
	if got.Kind() != reflect.Struct {
		return fmt.Sprintf("is %v, not %v", got, want)
	}
	var texts []string
	for i := range got.NumField() {
		field := got.Type().Field(i)
		if field.Name != "_" && !got.Field(i).Equal(want.Field(i)) {
			texts = append(texts, fmt.Sprintf("%s %s, not %s", strings.ToLower(field.Name), shown(got.Field(i)), shown(want.Field(i))))
		}
	}
	return "has " + strings.Join(texts, ", and ")
}

// shown is a field as people write it: addresses and MACs are no lists of numbers.
func shown(field reflect.Value) string {
	value := field.Interface()
	if address, ok := value.(maps.Address); ok {
		if a := maps.Addr(address); a.IsValid() {
			return a.String()
		}
		return "none"
	}
	if field.Type() == reflect.TypeOf(maps.NewMAC(make(net.HardwareAddr, 6))) {
		return net.HardwareAddr(field.FieldByName("Bytes").Bytes()).String()
	}
	return fmt.Sprint(value)
}

// FullError says that a map has no room for what is to be written.
type FullError struct {
	Map string
	// Entries are in the map, Max is how many it takes, Wanted how many are to be written.
	Entries, Max, Wanted int
}

func (e *FullError) Error() string {
	return fmt.Sprintf("map %s is full: %d of %d entries, and %d are wanted", e.Map, e.Entries, e.Max, e.Wanted)
}
