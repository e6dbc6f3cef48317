// SPDX-License-Identifier: Apache-2.0

// Package selftest tests the machines of test/kernels from inside: that a test
// finds there the file systems, modules, tools and files that the tests of the
// other packages count on. It runs on the host like any other test, too.
package selftest
