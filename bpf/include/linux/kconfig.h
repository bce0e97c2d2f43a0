/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * bcc includes this file first, and chooses its helpers by the kernel version. This is the oldest
 * kernel that skbcapd supports, so bcc uses nothing newer.
 */
#define CONFIG_BPF_SYSCALL	1
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + ((c) > 255 ? 255 : (c)))
#define LINUX_VERSION_CODE	KERNEL_VERSION(5, 15, 0)
#define __inline		inline
