/* SPDX-License-Identifier: GPL-2.0-only */
/* bcc includes this first of all, and then looks at the kernel version to choose among its own helpers:
   it is told the oldest kernel that skbcapd promises, so that it uses nothing newer. */
#define CONFIG_BPF_SYSCALL	1
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + ((c) > 255 ? 255 : (c)))
#define LINUX_VERSION_CODE	KERNEL_VERSION(5, 15, 0)
#define __inline		inline
