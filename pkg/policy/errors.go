// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"strings"
)

// InvalidError says that an object, or an endpoint, is refused, and where it is
// wrong. Nothing of the source that holds it has been taken.
type InvalidError struct {
	// Source is what holds the object, such as a file; "" if nothing named it.
	Source string
	// Object is "namespace/name" of a policy, "namespace name", "endpoint 7",
	// or "document 2" when it could not be read so far; "" if it is the source.
	Object string
	// Field is the path, such as spec.ingress[0].from[1].ipBlock.cidr; "" if it
	// is the whole object.
	Field string
	// Value is what is there, shortened; "" if nothing is.
	Value string
	// Reason says what is wrong with it.
	Reason string
}

func (e *InvalidError) Error() string {
	var where []string
	if e.Source != "" {
		where = append(where, e.Source)
	}
	if e.Object != "" {
		where = append(where, e.Object)
	}
	if e.Field != "" {
		where = append(where, e.Field)
	}
	out := "use policy"
	if len(where) > 0 {
		out = "use " + strings.Join(where, ": ")
	}
	if e.Value != "" {
		return fmt.Sprintf("%s: %q %s", out, e.Value, e.Reason)
	}
	return out + ": " + e.Reason
}

// of fills in which object the error is of.
func (e *InvalidError) of(source, object string) *InvalidError {
	e.Source, e.Object = source, object
	return e
}

// TooBigError says that what was asked for is more than the maps, or the
// engine's own bounds, hold. Nothing was changed.
type TooBigError struct {
	// What there is too much of: "rules", "prefixes", "entries", "subjects",
	// "memberships" or "numbers".
	What string
	// Need is how many there would be, or the number at which counting was
	// given up. Limit is how many are allowed.
	Need, Limit int
}

func (e *TooBigError) Error() string {
	return fmt.Sprintf("compile policy: needs %d %s, and %d fit", e.Need, e.What, e.Limit)
}
