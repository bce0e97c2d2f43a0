/* SPDX-License-Identifier: GPL-2.0-only */
/* bcc wants the name. skbcapd finds a kprobe's argument by its BTF offset (ARGUMENT_1), on any architecture. */
struct pt_regs;
