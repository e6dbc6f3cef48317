// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"runtime"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"
)

// traffic is what goes over a connection, and what is counted.
type traffic string

const (
	throughput      traffic = "throughput"       // bytes of a TCP stream
	packets         traffic = "packets"          // small UDP packets that arrive
	requestResponse traffic = "request-response" // one byte each way over one TCP connection
	connections     traffic = "connect"          // TCP connect, one byte each way, close
)

func trafficNames() []string {
	return []string{string(throughput), string(packets), string(requestResponse), string(connections)}
}

// isAnswered says that the server only answers, and the client counts.
func (t traffic) isAnswered() bool { return t.takesTurns() || t == trips }

// takesTurns says that the ends never run at a time.
func (t traffic) takesTurns() bool { return t == requestResponse || t == connections }

// job is what one worker process does.
type job struct {
	Traffic traffic
	// Serve makes it the end that waits to be spoken to.
	Serve bool
	// At is the server's address with its first port.
	At netip.AddrPort
	// Ports is how many of them it has; the client takes them in turn.
	Ports int
	// Streams is how many streams there are at a time.
	Streams int
	// Rate is what datagrams are sent at, in bytes of payload per second.
	Rate int64
	// Sources are the client's addresses, taken in turn; with none the kernel chooses.
	Sources []netip.Addr
	Warmup  time.Duration
	Window  time.Duration
}

// outcome is what a worker says when it is done.
type outcome struct {
	// Count of bytes, packets or transactions in the window.
	Count   int64
	Elapsed time.Duration
	// Sent is the number of packets that the sender of packets has sent, or of bytes that the
	// sender of datagrams has, within SentIn.
	Sent   int64
	SentIn time.Duration
	// Stalls counts transactions that took 100 ms or more: something was lost.
	Stalls int64
	// P99 is the 99th percentile of round-trip times.
	P99 time.Duration
}

// rate is the count per second.
func (o outcome) rate() float64 { return float64(o.Count) / o.Elapsed.Seconds() }

// ready is what a server prints once it can be spoken to.
const ready = "ready\n"

// work is one worker: a process with one end of a connection. It makes system
// calls that block without telling the Go scheduler, which would otherwise wake
// further threads on the CPU that is measured; so there is no collector, and a
// thread more than there are loops.
func work(out io.Writer, args []string) error {
	debug.SetGCPercent(-1)
	var j job
	if err := json.Unmarshal([]byte(args[0]), &j); err != nil {
		return fmt.Errorf("read job: %w", err)
	}
	runtime.GOMAXPROCS(j.loops() + 1)
	runtime.LockOSThread()
	var (
		o   outcome
		err error
	)
	switch {
	case j.Serve && j.Traffic == throughput:
		o, err = receiveStream(out, j)
	case j.Serve && j.Traffic == packets:
		o, err = receivePackets(out, j)
	case j.Serve && j.Traffic == streams:
		o, err = receiveStreams(out, j)
	case j.Serve && j.Traffic == datagrams:
		o, err = receiveDatagrams(out, j)
	case j.Serve:
		return answer(out, j)
	case j.Traffic == throughput:
		err = sendStream(j)
	case j.Traffic == packets:
		o, err = sendPackets(j)
	case j.Traffic == streams:
		err = sendStreams(j)
	case j.Traffic == datagrams:
		o, err = sendDatagrams(j)
	case j.Traffic == trips:
		o, err = measureTrips(j)
	default:
		o, err = ask(j)
	}
	if err != nil {
		return fmt.Errorf("%s at %s: %w", j.Traffic, j.At, err)
	}
	return json.NewEncoder(out).Encode(o)
}

// meter counts within a window that begins after a warm-up.
type meter struct {
	outcome
	begin, end time.Time
}

func newMeter(j job) *meter {
	begin := time.Now().Add(j.Warmup)
	return &meter{begin: begin, end: begin.Add(j.Window)}
}

// count adds n, and says whether the window is still open.
func (m *meter) count(n int64) bool {
	now := time.Now()
	if now.Before(m.begin) {
		return true
	}
	if m.Elapsed == 0 {
		// What arrived until now is not counted, and the warm-up may have taken
		// longer than was meant.
		m.begin, m.end = now, now.Add(m.end.Sub(m.begin))
		m.Elapsed = 1
		return true
	}
	m.Count += n
	m.Elapsed = now.Sub(m.begin)
	return now.Before(m.end)
}

const streamBuffer = 128 << 10

func receiveStream(out io.Writer, j job) (outcome, error) {
	listener, err := listen(unix.SOCK_STREAM, j.At)
	if err != nil {
		return outcome{}, err
	}
	fmt.Fprint(out, ready)
	conn, err := accept(listener)
	if err != nil {
		return outcome{}, err
	}
	buffer := make([]byte, streamBuffer)
	m := newMeter(j)
	for {
		n, err := recv(conn, buffer)
		if err != nil {
			return outcome{}, err
		}
		if n == 0 {
			return outcome{}, errors.New("connection ended early")
		}
		if !m.count(int64(n)) {
			return m.outcome, nil
		}
	}
}

func sendStream(j job) error {
	conn, err := dial(unix.SOCK_STREAM, netip.Addr{}, j.At)
	if err != nil {
		return err
	}
	return fill(conn)
}

// fill sends as much as goes.
func fill(conn int) error {
	buffer := make([]byte, streamBuffer)
	for {
		_, err := send(conn, buffer)
		if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
			return nil // the receiver has seen enough
		}
		if err != nil {
			return err
		}
	}
}

func receivePackets(out io.Writer, j job) (outcome, error) {
	socket, err := listenPackets(j.At)
	if err != nil {
		return outcome{}, err
	}
	fmt.Fprint(out, ready)
	batch := newBatch()
	if _, err := batch.receive(socket); err != nil {
		return outcome{}, err
	}
	m := newMeter(j)
	for {
		n, err := batch.receive(socket)
		if err != nil {
			return outcome{}, err
		}
		if !m.count(int64(n)) {
			return m.outcome, nil
		}
	}
}

func sendPackets(j job) (outcome, error) {
	socket, err := dial(unix.SOCK_DGRAM, netip.Addr{}, j.At)
	if err != nil {
		return outcome{}, err
	}
	batch := newBatch()
	m := newMeter(j)
	// The receiver must not be left waiting.
	m.end = m.end.Add(200 * time.Millisecond)
	for {
		n, err := batch.send(socket)
		m.Sent += int64(n)
		if errors.Is(err, unix.ECONNREFUSED) {
			return m.outcome, nil // the receiver has seen enough
		}
		if err != nil {
			return outcome{}, err
		}
		if !m.count(int64(n)) {
			return m.outcome, nil
		}
	}
}

// answer serves request-response and connect, one loop for each port, until the
// process is killed.
func answer(out io.Writer, j job) error {
	failed := make(chan error)
	for i := range j.Ports {
		listener, err := listen(unix.SOCK_STREAM, j.port(i))
		if err != nil {
			return err
		}
		go func() {
			runtime.LockOSThread()
			buffer := make([]byte, 64)
			for {
				if err := serve(listener, buffer); err != nil {
					failed <- err
				}
			}
		}()
	}
	fmt.Fprint(out, ready)
	return <-failed
}

// serve echoes bytes over one connection until the other end closes it.
func serve(listener int, buffer []byte) error {
	conn, err := accept(listener)
	if err != nil {
		return err
	}
	for {
		n, err := recv(conn, buffer)
		if err != nil {
			return err
		}
		if n == 0 {
			return closeSocket(conn)
		}
		if _, err := send(conn, buffer[:n]); err != nil {
			return err
		}
	}
}

func ask(j job) (outcome, error) {
	buffer := make([]byte, 1)
	conn, err := -1, error(nil)
	m := newMeter(j)
	for i := 0; ; i++ {
		began := time.Now()
		if conn < 0 {
			if conn, err = dial(unix.SOCK_STREAM, j.source(i), j.port(i)); err != nil {
				return outcome{}, err
			}
		}
		if _, err := send(conn, buffer); err != nil {
			return outcome{}, err
		}
		if n, err := recv(conn, buffer); err != nil || n == 0 {
			return outcome{}, fmt.Errorf("no answer: %w", err)
		}
		if j.Traffic == connections {
			if err := closeSocket(conn); err != nil {
				return outcome{}, err
			}
			conn = -1
		}
		if time.Since(began) >= 100*time.Millisecond {
			m.Stalls++
		}
		if !m.count(1) {
			return m.outcome, nil
		}
	}
}

// loops is how many there are at a time.
func (j job) loops() int {
	if j.Traffic == trips && !j.Serve {
		return 2 // one that sends, one that receives
	}
	return max(1, j.Ports, j.Streams)
}

// port is the server's whose turn it is.
func (j job) port(i int) netip.AddrPort {
	return netip.AddrPortFrom(j.At.Addr(), j.At.Port()+uint16(i%j.Ports))
}

// source is the client's address whose turn it is; the zero value is any.
func (j job) source(i int) netip.Addr {
	if len(j.Sources) == 0 {
		return netip.Addr{}
	}
	return j.Sources[i%len(j.Sources)]
}
