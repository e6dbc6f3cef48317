// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// States of sockets (include/net/tcp_states.h) as bits of a request.
const (
	stateEstablished = 1 << 1
	stateSynSent     = 1 << 2
	stateClose       = 1 << 7 // of UDP: bound and not connected
	stateCloseWait   = 1 << 8
	stateListen      = 1 << 10
)

// Layout of struct inet_diag_req_v2 and struct inet_diag_msg
// (include/uapi/linux/inet_diag.h), in bytes.
const (
	diagStates      = 4  // of a request
	diagID          = 8  // of a request: struct inet_diag_sockid
	diagRequestSize = 56 // of a request
	diagMessageID   = 4  // of a message
	diagInode       = 68 // of a message
	diagMessageSize = 72
	diagIDSize      = 48
)

var families4and6 = []uint8{unix.AF_INET, unix.AF_INET6}

// diag is a socket of NETLINK_SOCK_DIAG; the zero value is one of a kernel that has
// no such family.
type diag struct{ socket *nl.NetlinkSocket }

// openDiag opens the socket in a namespace, or in the caller's if that is none.
func openDiag(at netns.NsHandle) (diag, error) {
	socket, err := nl.GetNetlinkSocketAt(at, netns.None(), unix.NETLINK_INET_DIAG)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return diag{}, nil
	}
	if err != nil {
		return diag{}, fmt.Errorf("open sock_diag socket: %w", err)
	}
	for _, set := range []func(*unix.Timeval) error{socket.SetSendTimeout, socket.SetReceiveTimeout} {
		if err := set(&nl.SocketTimeoutTv); err != nil {
			socket.Close()
			return diag{}, fmt.Errorf("set up sock_diag socket: %w", err)
		}
	}
	return diag{socket}, nil
}

func (d diag) close() {
	if d.socket != nil {
		d.socket.Close()
	}
}

// diagSocket is one socket as the kernel tells of it.
type diagSocket struct {
	family        uint8
	id            [diagIDSize]byte // struct inet_diag_sockid
	local, remote netip.AddrPort
	v6Only        bool
	inode         uint32
	cgroup        uint64
}

// request does what kind says: SOCK_DIAG_BY_FAMILY or SOCK_DESTROY.
func (d diag) request(kind, flags int, body [diagRequestSize]byte, each func([]byte) bool) error {
	if d.socket == nil {
		return errors.ErrUnsupported
	}
	req := nl.NewNetlinkRequest(kind, flags)
	req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_INET_DIAG: {Socket: d.socket, Seq: req.Seq}}
	req.AddRawData(body[:])
	return req.ExecuteIter(unix.NETLINK_INET_DIAG, 0, each)
}

// list returns the sockets of both families in one of the states.
func (d diag) list(protocol uint8, states uint32) ([]diagSocket, error) {
	var sockets []diagSocket
	for _, family := range families4and6 {
		var body [diagRequestSize]byte
		body[0], body[1] = family, protocol
		binary.NativeEndian.PutUint32(body[diagStates:], states)
		err := d.request(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP, body, func(message []byte) bool {
			if one, ok := parseDiag(message); ok {
				sockets = append(sockets, one)
			}
			return true
		})
		switch {
		case errors.Is(err, unix.ENOENT): // no handler (CONFIG_INET_TCP_DIAG, CONFIG_INET_UDP_DIAG)
			return nil, fmt.Errorf("list sockets of protocol %d: %w: %w", protocol, errors.ErrUnsupported, err)
		case err != nil && !errors.Is(err, netlink.ErrDumpInterrupted):
			return nil, fmt.Errorf("list sockets of protocol %d: %w", protocol, err)
		}
	}
	return sockets, nil
}

// parseDiag reads a struct inet_diag_msg and the attributes behind it.
func parseDiag(message []byte) (diagSocket, bool) {
	if len(message) < diagMessageSize {
		return diagSocket{}, false
	}
	one := diagSocket{family: message[0], inode: binary.NativeEndian.Uint32(message[diagInode:])}
	copy(one.id[:], message[diagMessageID:])
	one.local = diagAddr(one.family, one.id[4:20], one.id[0:2])
	one.remote = diagAddr(one.family, one.id[20:36], one.id[2:4])
	for rest := message[diagMessageSize:]; len(rest) >= unix.SizeofRtAttr; {
		length := int(binary.NativeEndian.Uint16(rest))
		if length < unix.SizeofRtAttr || length > len(rest) {
			break // cut short: the kernel sends none such
		}
		value := rest[unix.SizeofRtAttr:length]
		switch kind := binary.NativeEndian.Uint16(rest[2:]); {
		case kind == netlink.INET_DIAG_SKV6ONLY && len(value) >= 1:
			one.v6Only = value[0] != 0
		case kind == netlink.INET_DIAG_CGROUP_ID && len(value) >= 8: // Linux 5.8
			one.cgroup = binary.NativeEndian.Uint64(value)
		}
		rest = rest[min((length+3)&^3, len(rest)):] // RTA_ALIGN
	}
	return one, one.local.IsValid()
}

// diagAddr reads an end of a socket. An IPv6 socket has IPv4 addresses as mapped ones.
func diagAddr(family uint8, address, port []byte) netip.AddrPort {
	var a netip.Addr
	switch family {
	case unix.AF_INET:
		a = netip.AddrFrom4([4]byte(address))
	case unix.AF_INET6:
		a = netip.AddrFrom16([16]byte(address)).Unmap()
	}
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(port))
}

// destroy ends a connection.
func (d diag) destroy(protocol uint8, one diagSocket) error {
	var body [diagRequestSize]byte
	body[0], body[1] = one.family, protocol
	copy(body[diagID:], one.id[:]) // with its cookie: this socket and no other
	err := d.request(nl.SOCK_DESTROY, unix.NLM_F_ACK, body, func([]byte) bool { return true })
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil // gone by itself
	case errors.Is(err, unix.EOPNOTSUPP): // no CONFIG_INET_DIAG_DESTROY
		return fmt.Errorf("%w: %w", errors.ErrUnsupported, err)
	}
	return err
}

// Bound implements Sockets.
func (h *Host) Bound(protocol uint8) ([]BoundSocket, error) {
	state := uint32(stateListen)
	if protocol == unix.IPPROTO_UDP {
		state = stateClose
	}
	list, err := h.diag.list(protocol, state)
	if err != nil {
		return nil, err
	}
	var bound []BoundSocket
	for _, one := range list {
		bound = append(bound, BoundSocket{Addr: one.local, V6Only: one.v6Only, Inode: one.inode, Cgroup: one.cgroup})
	}
	return bound, nil
}

// Disconnect implements Sockets.
func (h *Host) Disconnect(protocol uint8, remotes map[netip.AddrPort]bool) (int, error) {
	states := uint32(stateEstablished)
	if protocol == unix.IPPROTO_TCP {
		states |= stateSynSent | stateCloseWait
	}
	list, err := h.diag.list(protocol, states)
	if err != nil {
		return 0, err
	}
	ended := 0
	var errs []error
	for _, one := range list {
		if !remotes[one.remote] {
			continue
		}
		switch err := h.diag.destroy(protocol, one); {
		case errors.Is(err, errors.ErrUnsupported):
			return ended, err // and so are the others
		case err != nil:
			errs = append(errs, fmt.Errorf("disconnect %s from %s: %w", one.local, one.remote, err))
		default:
			ended++
		}
	}
	return ended, errors.Join(errs...)
}
