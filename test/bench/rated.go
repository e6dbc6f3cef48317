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
	trips     traffic = "trips"     // round-trip times of bytes that are sent at given times over one TCP connection
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

// receiveDatagrams counts from the first packet on. There may be none: a queue of 1,000 packets of 64 KiB,
// which HTB has, is full of a former stream for most of a minute at 10 Mbit/s.
func receiveDatagrams(out io.Writer, j job) (outcome, error) {
	socket, err := listenPackets(j.At)
	if err != nil {
		return outcome{}, err
	}
	patience := unix.NsecToTimeval(int64(j.Warmup + j.Window + time.Second))
	if err := unix.SetsockoptTimeval(socket, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience); err != nil {
		return outcome{}, fmt.Errorf("bound wait: %w", err)
	}
	fmt.Fprint(out, ready)
	buffer := make([]byte, 2*datagramSize)
	if _, err := recv(socket, buffer); errors.Is(err, unix.EAGAIN) {
		return outcome{Elapsed: j.Window}, nil
	} else if err != nil {
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
func sendDatagrams(j job) (o outcome, err error) {
	socket, err := dial(unix.SOCK_DGRAM, netip.Addr{}, j.At)
	if err != nil {
		return o, err
	}
	// A limit that holds back what is beyond must not hold back its sender instead.
	if err := unix.SetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, roomy); err != nil {
		return o, fmt.Errorf("set send buffer: %w", err)
	}
	// The kernel cuts what is sent at a time, up to a millisecond of it: one call for each would not do
	// for 2 Gbit/s.
	if err := unix.SetsockoptInt(socket, unix.SOL_UDP, unix.UDP_SEGMENT, datagramSize); err != nil {
		return o, fmt.Errorf("set size of segments: %w", err)
	}
	packet := make([]byte, min(max(1, j.Rate/1000/datagramSize), 8)*datagramSize)
	began := time.Now()
	for o.SentIn < j.Warmup+j.Window+time.Second {
		if o.SentIn = time.Since(began); o.Sent >= int64(float64(j.Rate)*o.SentIn.Seconds()) {
			if err := nap(time.Millisecond); err != nil {
				return o, err
			}
			continue
		}
		_, err := send(socket, packet)
		if errors.Is(err, unix.ECONNREFUSED) {
			return o, nil // the receiver has seen enough
		}
		// A full queue of a device is a loss, as what the limit drops.
		if err != nil && !errors.Is(err, unix.ENOBUFS) {
			return o, err
		}
		o.Sent += int64(len(packet))
	}
	return o, nil
}

// nap sleeps without telling the Go scheduler, as call does not.
func nap(d time.Duration) error {
	if d <= 0 {
		return nil
	}
	pause := unix.NsecToTimespec(int64(d))
	_, err := call(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&pause)), 0, 0, 0, 0)
	return err
}

// tripPause is between two bytes that are sent.
const tripPause = 2 * time.Millisecond

// measureTrips returns the 99th percentile of the times between when a byte is due to be sent and when
// it is back. One that is late or lost does not keep the next from being sent: what waits behind it
// counts, as it would for whoever has sent it.
func measureTrips(j job) (outcome, error) {
	conn, err := dial(unix.SOCK_STREAM, netip.Addr{}, j.At)
	if err != nil {
		return outcome{}, err
	}
	began, all := time.Now(), int((j.Warmup+j.Window)/tripPause)
	due := func(i int) time.Time { return began.Add(time.Duration(i) * tripPause) }
	sending := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := sendTrips(conn, all, due)
		if err != nil {
			err = errors.Join(err, unix.Shutdown(conn, unix.SHUT_RDWR)) // nothing more will come
		}
		sending <- err
	}()
	took, err := receiveTrips(conn, all, due)
	if err != nil {
		return outcome{}, errors.Join(err, unix.Shutdown(conn, unix.SHUT_RDWR), <-sending)
	}
	if err := <-sending; err != nil {
		return outcome{}, err
	}
	took = took[int(j.Warmup/tripPause):]
	if len(took) == 0 {
		return outcome{}, errors.New("no round trip within the window")
	}
	slices.Sort(took)
	return outcome{Count: int64(len(took)), Elapsed: time.Since(began), P99: took[len(took)*99/100]}, nil
}

func sendTrips(conn, all int, due func(int) time.Time) error {
	for i := range all {
		if err := nap(time.Until(due(i))); err != nil {
			return err
		}
		if _, err := send(conn, []byte{0}); err != nil {
			return err
		}
	}
	return nil
}

func receiveTrips(conn, all int, due func(int) time.Time) (took []time.Duration, err error) {
	buffer := make([]byte, 64)
	for len(took) < all {
		n, err := recv(conn, buffer)
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return nil, errors.New("connection ended early")
		}
		for range n {
			took = append(took, time.Since(due(len(took))))
		}
	}
	return took, nil
}
