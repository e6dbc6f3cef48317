// SPDX-License-Identifier: Apache-2.0

package maps

//go:generate go tool bpf2go -go-package maps -target bpfel -cc clang-19 -strip llvm-strip-19 -cflags "-O2 -g -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-function -I/usr/include/x86_64-linux-gnu -I/usr/include/aarch64-linux-gnu" -type address -type mac -type flow_key -type flow -type translation -type endpoint -type limit_key -type limit -type unshaped_key -type interface -type child_key -type child -type prefix_key -type port_key -type port -type socket_key -type socket_peer -type socket_link -type subject_key -type subject -type identity_key -type policy_key -type policy_range -type policy -type fragment_key -type fragment -type count -type allocation -type action -type flow_flag -type translation_state -type translation_flag -type endpoint_flag -type limit_direction -type child_flag -type subject_flag -type key_kind -type port_flag -type interface_role -type interface_flag -type journey -type counter kernel ../../bpf/maps.c
