// SPDX-License-Identifier: Apache-2.0

package datapath

//go:generate go tool bpf2go -go-package datapath -no-global-types -target bpfel -cc clang-19 -strip llvm-strip-19 -cflags "-O2 -g -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-function -I/usr/include/x86_64-linux-gnu -I/usr/include/aarch64-linux-gnu" fromContainer ../../bpf/from_container.c
//go:generate go tool bpf2go -go-package datapath -no-global-types -target bpfel -cc clang-19 -strip llvm-strip-19 -cflags "-O2 -g -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-function -I/usr/include/x86_64-linux-gnu -I/usr/include/aarch64-linux-gnu" toContainer ../../bpf/to_container.c
//go:generate go tool bpf2go -go-package datapath -no-global-types -target bpfel -cc clang-19 -strip llvm-strip-19 -cflags "-O2 -g -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-function -I/usr/include/x86_64-linux-gnu -I/usr/include/aarch64-linux-gnu" fromUplink ../../bpf/from_uplink.c
//go:generate go tool bpf2go -go-package datapath -no-global-types -target bpfel -cc clang-19 -strip llvm-strip-19 -cflags "-O2 -g -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-function -I/usr/include/x86_64-linux-gnu -I/usr/include/aarch64-linux-gnu" toUplink ../../bpf/to_uplink.c
//go:generate go tool bpf2go -go-package datapath -no-global-types -target bpfel -cc clang-19 -strip llvm-strip-19 -cflags "-O2 -g -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-function -I/usr/include/x86_64-linux-gnu -I/usr/include/aarch64-linux-gnu" fromParent ../../bpf/from_parent.c
//go:generate go tool bpf2go -go-package datapath -no-global-types -target bpfel -cc clang-19 -strip llvm-strip-19 -cflags "-O2 -g -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-function -I/usr/include/x86_64-linux-gnu -I/usr/include/aarch64-linux-gnu" toParent ../../bpf/to_parent.c
//go:generate go tool bpf2go -go-package datapath -no-global-types -target bpfel -cc clang-19 -strip llvm-strip-19 -cflags "-O2 -g -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-function -I/usr/include/x86_64-linux-gnu -I/usr/include/aarch64-linux-gnu" reclaim ../../bpf/reclaim.c
//go:generate go tool bpf2go -go-package datapath -no-global-types -target bpfel -cc clang-19 -strip llvm-strip-19 -cflags "-O2 -g -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-function -I/usr/include/x86_64-linux-gnu -I/usr/include/aarch64-linux-gnu" fromHost ../../bpf/from_host.c
