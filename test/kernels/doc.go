// SPDX-License-Identifier: Apache-2.0

// Command kernels runs the test binaries of Go packages as root on the kernels
// that tendril supports: it boots each Debian kernel in a virtual machine, under
// emulation, with an initramfs that holds the test binaries, their testdata and a few
// tools, and runs the binaries there one after the other.
//
//	go run ./test/kernels [flags] package...
//
// A package finds itself where `go test` would have started it: in its folder
// of a module root, with its testdata folder and what -with names at their
// places in the tree. TENDRIL_TEST_PRIVILEGED is set.
//
// What a kernel lacks, a test skips, naming the feature and the version that
// has it. A skip that names no version is a failure here, and so is a test
// that skips on every kernel of the matrix. So what a kernel of the matrix was built
// without (nstest.NotBuilt) fails.
//
// What takes long is dealt to the kernels (nstest.Share, LeaveTo, Halve and Deal): a test to half of them, so that
// one has tcx and one has not, or to one where that sees all that a kernel may do in its own way; a table's
// families to two each, and each passage of a table to one of the two; of many like cases a quarter, or less. With
// -whole each kernel runs all of it. Such a skip has words of its own (nstest.LeftTo), with the
// kernels that the test is left to; one that is here and has not tried the test is a failure.
//
// With -wire two machines of different kernels run the same binary at a time, with a
// wire between their cards, for tests of two nodes: TENDRIL_TEST_WIRE is a in one of
// them and b in the other, and each has its own line and column in the report
// (5.10+7 is 5.10 where its peer is 7). The wire needs qemu 7.2.
//
// With -vagrant the machines are those of the Vagrantfile: they are booted with
// vagrant up, get the module as it is here with vagrant rsync, and run the binaries
// over ssh. They have what the tests need installed. CI does not run this.
//
// The exit code is 0 when every package passed on every kernel, else 1. The
// Makefile's targets test-kernels* are the callers; bin/kernels holds each run's output
// and kernel messages afterwards. The machines own nothing outside their
// memory; kernels are cached in the user's cache folder, under tendril-kernels.
package main
