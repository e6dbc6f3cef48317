// SPDX-License-Identifier: Apache-2.0

package wiring

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// message is one rtnetlink request.
type message struct {
	kind  uint16 // RTM_*
	flags uint16 // besides NLM_F_REQUEST and NLM_F_ACK
	body  []byte // the fixed part and the attributes
	// what is done, for the error: "add address 10.10.0.5/32 to eth0".
	what string
	// tolerate lists the errors that are none here.
	tolerate []unix.Errno
	// tolerated, where it is set, hears that one of them came.
	tolerated *bool
	// asks says that the answer is data, not only an acknowledgement.
	asks bool
}

// header is the fixed part of a message: an unix.IfInfomsg, RtMsg and so on,
// in the host's byte order.
func header(fixed any) []byte {
	body, err := binary.Append(make([]byte, 0, 256), binary.NativeEndian, fixed)
	if err != nil {
		panic(err) // a struct without a fixed size: every test of the caller finds it
	}
	return body
}

// attribute appends one attribute, padded to 4 bytes.
func attribute(body []byte, kind uint16, value []byte) []byte {
	body = binary.NativeEndian.AppendUint16(body, uint16(unix.SizeofRtAttr+len(value)))
	body = binary.NativeEndian.AppendUint16(body, kind)
	return pad(append(body, value...))
}

func attribute16(body []byte, kind uint16, value uint16) []byte {
	return attribute(body, kind, binary.NativeEndian.AppendUint16(nil, value))
}

func attribute32(body []byte, kind uint16, value uint32) []byte {
	return attribute(body, kind, binary.NativeEndian.AppendUint32(nil, value))
}

func attributeString(body []byte, kind uint16, value string) []byte {
	return attribute(body, kind, append([]byte(value), 0))
}

func attributeAddr(body []byte, kind uint16, value netip.Addr) []byte {
	return attribute(body, kind, value.AsSlice())
}

func pad(b []byte) []byte {
	for len(b)%unix.NLMSG_ALIGNTO != 0 {
		b = append(b, 0)
	}
	return b
}

// attributes are what follows the fixed part of a message, by kind; of several of one kind the last.
func attributes(b []byte) map[uint16][]byte { return maps.Collect(eachAttribute(b)) }

// eachAttribute splits what follows the fixed part of a message. Attributes that
// the kernel cut short are left out.
func eachAttribute(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(kind uint16, value []byte) bool) {
		for rest := b; len(rest) >= unix.SizeofRtAttr; {
			size := int(binary.NativeEndian.Uint16(rest))
			kind := binary.NativeEndian.Uint16(rest[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
			if size < unix.SizeofRtAttr || size > len(rest) || !yield(kind, rest[unix.SizeofRtAttr:size]) {
				return
			}
			rest = rest[min(len(rest), (size+3)&^3):]
		}
	}
}

// areWhole tells whether eachAttribute leaves nothing out.
func areWhole(b []byte) bool {
	read := 0
	for _, value := range eachAttribute(b) {
		read += (unix.SizeofRtAttr + len(value) + 3) &^ 3
	}
	return read >= len(b)
}

func family(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// socket is an rtnetlink socket. It belongs to the namespace of the thread
// that dialled it, whoever uses it.
type socket struct {
	fd  int
	seq uint32
}

func dial() (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	// Both are courtesies: the kernel's own words in errors, and errors that
	// do not repeat the request. Kernels that lack them (before 4.12) do
	// without.
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1)
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	return &socket{fd: fd}, nil
}

func (s *socket) close() error { return unix.Close(s.fd) }

// exchange sends all messages at once, waits for the answer to the last, and
// returns what was answered to each that asks. Only the last wants an
// acknowledgement; the kernel works in order and else speaks up only for what
// failed, so a change costs one send and one receive. It carries on after a
// failed message, as the kernel does, and returns the first error that is not
// tolerated.
func (s *socket) exchange(messages []message) ([][]byte, error) {
	r := replies{messages: messages, first: s.seq + 1, answers: make([][]byte, len(messages))}
	var out []byte
	for i, m := range messages {
		s.seq++
		flags := m.flags | unix.NLM_F_REQUEST
		if i == len(messages)-1 && !m.asks {
			flags |= unix.NLM_F_ACK
		}
		out = append(out, header(unix.NlMsghdr{
			Len: uint32(unix.SizeofNlMsghdr + len(m.body)), Type: m.kind, Flags: flags, Seq: s.seq,
		})...)
		out = pad(append(out, m.body...))
	}
	if err := unix.Sendto(s.fd, out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("send netlink messages: %w", err)
	}
	in := make([]byte, 64<<10) // of a link with all its statistics 4 KiB are used
	for {
		size, _, err := unix.Recvfrom(s.fd, in, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("receive netlink messages: %w", err)
		}
		done, err := r.read(in[:size])
		if err != nil {
			return nil, err
		}
		if done {
			return r.answers, r.failed
		}
	}
}

// replies are what was answered to messages with the numbers from first on.
type replies struct {
	messages []message
	first    uint32
	answers  [][]byte
	// failed is the first error that is not tolerated.
	failed error
}

// read reads what one receive has brought, and tells whether it was the answer to the last message.
func (r *replies) read(b []byte) (done bool, err error) {
	for len(b) >= unix.SizeofNlMsghdr {
		length := int(binary.NativeEndian.Uint32(b))
		if length < unix.SizeofNlMsghdr || length > len(b) {
			return false, errors.New("receive netlink messages: answer is cut short")
		}
		kind, flags := binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint16(b[6:])
		at := int(int32(binary.NativeEndian.Uint32(b[8:]) - r.first))
		body := b[unix.SizeofNlMsghdr:length]
		b = b[min(len(b), (length+3)&^3):]
		if at < 0 || at >= len(r.messages) {
			continue // left over from an exchange that ended early
		}
		if kind == unix.NLMSG_ERROR {
			if err := r.messages[at].verdict(flags, body); err != nil && r.failed == nil {
				r.failed = err
			}
		} else {
			r.answers[at] = slices.Clone(body)
		}
		if at == len(r.messages)-1 {
			return true, nil
		}
	}
	return false, nil
}

// verdict reads an NLMSG_ERROR: a negative errno, the request's header, and
// attributes with the kernel's words (NLMSGERR_ATTR_MSG).
func (m *message) verdict(flags uint16, body []byte) error {
	const (
		textFollows = 0x200 // NLM_F_ACK_TLVS
		text        = 1     // NLMSGERR_ATTR_MSG
	)
	if len(body) < 4 {
		return fmt.Errorf("%s: answer is cut short", m.what)
	}
	errno := unix.Errno(-int32(binary.NativeEndian.Uint32(body)))
	if errno == 0 {
		return nil
	}
	if slices.Contains(m.tolerate, errno) {
		if m.tolerated != nil {
			*m.tolerated = true
		}
		return nil
	}
	if flags&textFollows != 0 && len(body) > 4+unix.SizeofNlMsghdr {
		if said := bytes.TrimRight(attributes(body[4+unix.SizeofNlMsghdr:])[text], "\x00"); len(said) != 0 {
			return fmt.Errorf("%s: %w (%s)", m.what, errno, said)
		}
	}
	return fmt.Errorf("%s: %w", m.what, errno)
}
