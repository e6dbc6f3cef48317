// SPDX-License-Identifier: Apache-2.0

package datapath

import "fmt"

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
	// Want and Got, or "" where only presence counts.
	Want, Got string
}

func (e *MismatchError) Error() string {
	if e.Want == "" && e.Got == "" {
		return e.What + " is missing"
	}
	return fmt.Sprintf("%s is %s, not %s", e.What, e.Got, e.Want)
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
