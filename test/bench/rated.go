// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"runtime"
	"slices"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Traffic that meets a limit.
const (
	streams   traffic = "streams"   // bytes of TCP streams at a time
	datagrams traffic = "datagrams" // bytes of UDP packets sent at a given rate, that arrive
	trips     traffic = "trips"     // round-trip times of one byte each way over one TCP connection
)

// datagramSize is the payload of a UDP packet in bytes.
const datagramSize = 1400

// counter counts bytes that several threads receive, within a window.
type counter struct{ bytes atomic.Int64 }

// outcome is what was received in the window of a job, which begins after its warm-up.
func (c *counter) outcome(j job) outcome {
	time.Sleep(j.Warmup) //nolint:forbidigo // what is measured is time
	began, before := time.Now(), c.bytes.Load()
	time.Sleep(j.Window) //nolint:forbidigo // as above
	return outcome{Count: c.bytes.Load() - before, Elapsed: time.Since(began)}
}

// receiveStreams counts what comes by all streams, from the moment when all are there.
func receiveStreams(out io.Writer, j job) (outcome, error) {
	listener, err := listen(unix.SOCK_STREAM, j.At)
	if err != nil {
		return outcome{}, err
	}
	fmt.Fprint(out, ready)
	var received counter
	for range j.Streams {
		conn, err := accept(listener)
		if err != nil {
			return outcome{}, err
		}
		go func() {
			runtime.LockOSThread()
			buffer := make([]byte, streamBuffer)
			for {
				n, err := recv(conn, buffer)
				if err != nil || n == 0 {
					return // the window shows it
				}
				received.bytes.Add(int64(n))
			}
		}()
	}
	return received.outcome(j), nil
}

// sendStreams sends by CUBIC, as most hosts do. A namespace may not have it as its choice
// where the machine's is another; a socket of root's may.
func sendStreams(j job) error {
	ended := make(chan error, j.Streams)
	for range j.Streams {
		conn, err := dial(unix.SOCK_STREAM, netip.Addr{}, j.At)
		if err != nil {
			return err
		}
		if err := unix.SetsockoptString(conn, unix.IPPROTO_TCP, unix.TCP_CONGESTION, "cubic"); err != nil {
			return fmt.Errorf("choose CUBIC: %w", err)
		}
		go func() {
			runtime.LockOSThread()
			ended <- fill(conn)
		}()
	}
	var errs []error
	for range j.Streams {
		errs = append(errs, <-ended)
	}
	return errors.Join(errs...)
}

// receiveDatagrams counts from the first packet on.
func receiveDatagrams(out io.Writer, j job) (outcome, error) {
	socket, err := listenPackets(j.At)
	if err != nil {
		return outcome{}, err
	}
	fmt.Fprint(out, ready)
	buffer := make([]byte, 2*datagramSize)
	if _, err := recv(socket, buffer); err != nil {
		return outcome{}, err
	}
	var received counter
	go func() {
		runtime.LockOSThread()
		for {
			n, err := recv(socket, buffer)
			if err != nil {
				return // the window shows it
			}
			received.bytes.Add(int64(n))
		}
	}()
	return received.outcome(j), nil
}

// sendDatagrams sends j.Rate bytes of payload per second until nobody takes them any more.
func sendDatagrams(j job) error {
	socket, err := dial(unix.SOCK_DGRAM, netip.Addr{}, j.At)
	if err != nil {
		return err
	}
	packet := make([]byte, datagramSize)
	tick := unix.Timespec{Nsec: int64(time.Millisecond)}
	began := time.Now()
	for sent := int64(0); time.Since(began) < j.Warmup+j.Window+time.Second; {
		for due := int64(float64(j.Rate) * time.Since(began).Seconds()); sent < due; sent += datagramSize {
			_, err := send(socket, packet)
			if errors.Is(err, unix.ECONNREFUSED) {
				return nil // the receiver has seen enough
			}
			// A full queue of a device is a loss, as what the limit drops.
			if err != nil && !errors.Is(err, unix.ENOBUFS) {
				return err
			}
		}
		pause := tick
		if _, err := call(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&pause)), 0, 0, 0, 0); err != nil {
			return err
		}
	}
	return nil
}

// tripPause is between two round trips: they shall find the queue of others.
const tripPause = 2 * time.Millisecond

// measureTrips returns the 99th percentile of round-trip times.
func measureTrips(j job) (outcome, error) {
	conn, err := dial(unix.SOCK_STREAM, netip.Addr{}, j.At)
	if err != nil {
		return outcome{}, err
	}
	buffer := make([]byte, 1)
	var took []time.Duration
	began := time.Now()
	for time.Since(began) < j.Warmup+j.Window {
		sent := time.Now()
		if _, err := send(conn, buffer); err != nil {
			return outcome{}, err
		}
		if n, err := recv(conn, buffer); err != nil || n == 0 {
			return outcome{}, fmt.Errorf("no answer: %w", err)
		}
		if sent.Sub(began) > j.Warmup {
			took = append(took, time.Since(sent))
		}
		time.Sleep(tripPause) //nolint:forbidigo // a pause, not a wait
	}
	if len(took) == 0 {
		return outcome{}, errors.New("no round trip within the window")
	}
	slices.Sort(took)
	return outcome{Count: int64(len(took)), Elapsed: time.Since(began), P99: took[len(took)*99/100]}, nil
}
