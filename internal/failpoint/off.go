// SPDX-License-Identifier: Apache-2.0

//go:build !failpoint

package failpoint

// Hit does nothing: the binary was built without failpoints.
func Hit(Point) {}
