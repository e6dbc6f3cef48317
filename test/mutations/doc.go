// SPDX-License-Identifier: Apache-2.0

// Mutations puts faults into the programs of bpf/, one at a time, and sees that
// the packet tests of pkg/datapath catch each. It takes clang, root and a
// minute for thirty faults:
//
//	go run ./test/mutations [-run REGEXP] [-update]
//
// The tree is left as it is: sources are changed in a temporary folder, and the tests
// load the programs compiled from them. The faults are in list.go. One whose text is not
// found exactly once has to follow the programs; one that survives needs a test.
//
// What caught each fault is in caught.json: first only the program named there is compiled
// and only the test named there is run. When that catches nothing, as after a change of the
// tests, all programs are compiled and all tests are run, which takes ten times as long;
// -update writes down what they found.
package main
