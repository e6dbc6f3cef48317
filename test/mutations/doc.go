// SPDX-License-Identifier: Apache-2.0

// Mutations puts faults into the programs of bpf/, one at a time, and sees that
// the packet tests of pkg/datapath catch each. It takes clang, root and a
// minute for four faults:
//
//	go run ./test/mutations [-run REGEXP]
//
// The tree is left as it is: sources are changed in a temporary folder, and the
// compiled programs reach the tests by go's -overlay. The list is in list.go. A
// fault whose text is not found exactly once has to follow the programs; one
// that survives needs a test.
package main
