/* SPDX-License-Identifier: GPL-2.0-only */
/* Empty: bcc includes it, skbcapd uses nothing of it. */
