// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tendril-net/tendril/internal/nodetest"
	"github.com/tendril-net/tendril/internal/nstest"
	"github.com/tendril-net/tendril/internal/socktest"
)

// patience bounds every wait for the other machine. It may be a slow one that has
// another kernel's programs to verify. One that fails hangs up.
const patience = nodetest.Patience

// peerPort is where node a waits for node b.
const peerPort = 7

// peer is the other machine, through a connection from node to node.
type peer struct {
	ns *nstest.NS
	// listener is nil on node b.
	listener *net.TCPListener
	conn     net.Conn
	from     *json.Decoder
	// stage counts the stages of the test. Both machines go through the same, and
	// one that fails in a stage goes on with the next.
	stage int
	// ahead is what the peer has said in a stage that is still to come.
	ahead *message
}

// message is what one machine tells the other.
type message struct {
	Stage int
	Step  string
	Value json.RawMessage
}

// listen has node a wait for node b. It does so before the card is up, so that no
// SYN of the other is ever refused.
func listen(t *testing.T, ns *nstest.NS, role string) *peer {
	t.Helper()
	p := &peer{ns: ns}
	if role == "a" {
		at := &net.TCPAddr{IP: net.IPv4zero, Port: peerPort}
		p.listener = socktest.In(t, ns, func() (*net.TCPListener, error) { return net.ListenTCP("tcp4", at) })
		socktest.CloseAtEnd(t, p.listener)
	}
	return p
}

// meet waits for the peer, which has an address.
func (p *peer) meet(t *testing.T, address netip.Addr) {
	t.Helper()
	var err error
	if p.listener != nil {
		_ = p.listener.SetDeadline(time.Now().Add(patience))
		p.conn, err = p.listener.Accept()
	} else {
		p.conn, err = p.dial(t, address)
	}
	if err != nil {
		t.Fatalf("meet the other machine: %v", err)
	}
	socktest.CloseAtEnd(t, p.conn)
	p.from = json.NewDecoder(p.conn)
	var mine unix.Utsname
	if err := unix.Uname(&mine); err != nil {
		t.Fatal(err)
	}
	var theirs string
	p.swap(t, "hello", unix.ByteSliceToString(mine.Release[:]), &theirs)
	t.Logf("the other machine runs Linux %s", theirs)
}

// dial connects to node a. While that has not booted, the kernel gives up after
// seconds, as nobody answers for the address.
func (p *peer) dial(t *testing.T, address netip.Addr) (conn net.Conn, err error) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		p.ns.Do(t, func() {
			conn, err = (&net.Dialer{}).DialContext(ctx, "tcp4", netip.AddrPortFrom(address, peerPort).String())
		})
		if !errors.Is(err, syscall.EHOSTUNREACH) {
			return conn, err
		}
	}
}

// enter begins the next stage.
func (p *peer) enter() { p.stage++ }

// swap tells the peer a value and reads the peer's into theirs, a pointer, unless
// that is nil. It returns when the peer has come to the same step of the same stage.
func (p *peer) swap(t *testing.T, step string, mine, theirs any) {
	t.Helper()
	value, err := json.Marshal(mine)
	if err != nil {
		t.Fatal(err)
	}
	_ = p.conn.SetDeadline(time.Now().Add(patience))
	if err := json.NewEncoder(p.conn).Encode(message{p.stage, step, value}); err != nil {
		t.Fatalf("tell the other machine %q: %v", step, err)
	}
	m := p.read(t, step)
	if m.Step != step {
		t.Fatalf("the other machine is at %q, not at %q", m.Step, step)
	}
	if theirs == nil {
		return
	}
	if err := json.Unmarshal(m.Value, theirs); err != nil {
		t.Fatalf("read %q of the other machine: %v", step, err)
	}
}

// read returns what the peer says in this stage.
func (p *peer) read(t *testing.T, step string) message {
	t.Helper()
	for {
		m := p.ahead
		if p.ahead = nil; m == nil {
			m = &message{}
			if err := p.from.Decode(m); err != nil {
				t.Fatalf("hear %q from the other machine, which may have failed: %v", step, err)
			}
		}
		switch {
		case m.Stage == p.stage:
			return *m
		case m.Stage > p.stage:
			p.ahead = m
			t.Fatalf("the other machine has left this stage before %q: it has failed", step)
		}
		// Here it was this machine that had left the stage.
	}
}
