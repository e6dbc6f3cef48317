// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"fmt"
	"math"
	"testing"

	"github.com/cilium/ebpf/asm"
	gocmp "github.com/google/go-cmp/cmp"
)

// TestInsertBefore: what jumps over what is added jumps as far as before and over that, what jumps to where it is
// added jumps to that, and what cannot be moved is refused.
func TestInsertBefore(t *testing.T) {
	var (
		call  = asm.FnRedirect.Call()
		more  = asm.StoreImm(asm.R0, 0, 1, asm.Word)
		wide  = asm.LoadImm(asm.R3, math.MaxInt64, asm.DWord) // of 16 bytes
		other = asm.Mov.Imm(asm.R0, 7)
		exit  = asm.Return()
		jump  = func(op asm.JumpOp, offset int16) asm.Instruction {
			return asm.Instruction{OpCode: asm.OpCode(asm.JumpClass).SetJumpOp(op).SetSource(asm.ImmSource), Dst: asm.R1, Offset: offset}
		}
		inner = asm.Instruction{OpCode: asm.OpCode(asm.JumpClass).SetJumpOp(asm.Call), Src: asm.PseudoCall, Constant: -1}.WithReference("inner")
		long  = asm.Instruction{OpCode: asm.OpCode(asm.Jump32Class).SetJumpOp(asm.Ja), Constant: 1}
	)
	many := make(asm.Instructions, math.MaxInt16-1)
	for i := range many {
		many[i] = other
	}
	far := append(append(asm.Instructions{jump(asm.JEq, math.MaxInt16)}, call), append(many, exit)...)
	for name, c := range map[string]struct {
		in, want asm.Instructions
		err      string
	}{
		"nothing to add":      {asm.Instructions{jump(asm.JEq, 1), other, exit}, asm.Instructions{jump(asm.JEq, 1), other, exit}, ""},
		"forward, over":       {asm.Instructions{jump(asm.JEq, 2), call, other, exit}, asm.Instructions{jump(asm.JEq, 3), more, call, other, exit}, ""},
		"forward, to it":      {asm.Instructions{jump(asm.JEq, 1), other, call, exit}, asm.Instructions{jump(asm.JEq, 1), other, more, call, exit}, ""},
		"forward, past two":   {asm.Instructions{jump(asm.Ja, 3), call, wide, exit, call, exit}, asm.Instructions{jump(asm.Ja, 4), more, call, wide, exit, more, call, exit}, ""},
		"backward, over":      {asm.Instructions{other, call, jump(asm.JNE, -3), exit}, asm.Instructions{other, more, call, jump(asm.JNE, -4), exit}, ""},
		"backward, to it":     {asm.Instructions{call, wide, jump(asm.JNE, -4), exit}, asm.Instructions{more, call, wide, jump(asm.JNE, -5), exit}, ""},
		"backward, behind it": {asm.Instructions{call, other, jump(asm.JNE, -2), exit}, asm.Instructions{more, call, other, jump(asm.JNE, -2), exit}, ""},
		"calls stay":          {asm.Instructions{inner, call, exit, other.WithSymbol("inner"), exit}, asm.Instructions{inner, more, call, exit, other.WithSymbol("inner"), exit}, ""},
		"a function begins":   {asm.Instructions{call.WithSymbol("inner"), exit}, nil, "function inner begins with a redirect"},
		"into an instruction": {asm.Instructions{jump(asm.JEq, 1), wide, exit}, nil, "JEqImm dst: r1 off: 1 imm: 0 leads to no instruction"},
		"out of the program":  {asm.Instructions{jump(asm.JEq, 5), exit}, nil, "JEqImm dst: r1 off: 5 imm: 0 leads to no instruction"},
		"a long jump":         {asm.Instructions{long, call, exit}, nil, "cannot move the jump Ja32 imm: 1"},
		"a jump to a symbol":  {asm.Instructions{jump(asm.JEq, 0).WithReference("end"), exit.WithSymbol("end")}, nil, "cannot move the jump JEqImm dst: r1 off: 0 imm: 0 <end>"},
		"too far":             {far, nil, "JEqImm dst: r1 off: 32767 imm: 0 is too far away now"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := insertBefore(c.in, func(ins asm.Instruction) asm.Instructions {
				if !ins.IsBuiltinCall() {
					return nil
				}
				return asm.Instructions{more}
			})
			said := ""
			if err != nil {
				said = err.Error()
			}
			if diff := gocmp.Diff(c.err, said); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
			if diff := gocmp.Diff(listing(c.want), listing(got)); diff != "" {
				t.Errorf("instructions (-want +got):\n%s", diff)
			}
		})
	}
}

func listing(all asm.Instructions) (lines []string) {
	for _, ins := range all {
		lines = append(lines, fmt.Sprintf("%s: %v", ins.Symbol(), ins))
	}
	return lines
}
