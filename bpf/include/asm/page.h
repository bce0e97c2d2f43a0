/* SPDX-License-Identifier: GPL-2.0-only */
/* bcc wants the name; what skbcapd reads of the page size comes from the running system. */
#define PAGE_SIZE 4096
