/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Values that no symbol shows, measured at the start: where pages are mapped, and where the
 * registers of user space are on a task's stack.
 *
 * Python sends one page of known bytes by sendfile(2) over a loopback interface. The page's frame
 * number is in /proc/self/pagemap, its struct page is in the skb: this gives the address of the
 * first struct page. The direct map starts at a multiple of 1 GiB below skb->head: at the right
 * one, the known bytes can be read back. The number of the same system call shows the position of
 * the registers on the stack. A UDP packet from the same process leads to the kernel's table of UDP
 * sockets.
 */

/*
 * The process that sends the marker: then the program sets its number, which Python does not know in
 * a PID namespace.
 */
#define UNKNOWN_SELF (~0ULL)

struct measurement {
	/* Inputs, from Python. */
	u64 tgid;	    /* process whose packets are measured; 0: none; UNKNOWN_SELF */
	u64 frame_number;   /* of the page that is sent */
	u64 candidate;	    /* how many GiB below skb->head the search starts */
	u64 syscall_number; /* of sendfile */
	u8 marker[32];	    /* the bytes that are sent */
	/* Results. */
	u64 packets;	  /* paged packets seen from tgid */
	u64 page_base;	  /* address of the struct page of frame 0 */
	u64 address_base; /* address of frame 0; 0: not among the candidates tried */
	u64 stack_size;	  /* 0: not found */
	u64 entry_regs;	  /* offset of the system call number in the stack; 0: not found */
	u64 udp_table;	  /* address of the struct udp_table of all namespaces; 0: none */
};
BPF_ARRAY(measurements, struct measurement, 1);

#define THREAD_SIZE_MIN 16384ULL /* more with KASAN, or with pages of 64 KiB */
#define THREAD_SIZES	3

/*
 * Words above the registers of user space that are tried: two with CONFIG_X86_FRED
 * (TOP_OF_KERNEL_STACK_PADDING in arch/x86/include/asm/thread_info.h), none without.
 */
#define PADDINGS 3

static inline void measure_stack(void *ctx, struct measurement *m)
{
#ifndef NO_PROOF /* else softirqs would pass as process context: see context_of */
	u64 task = bpf_get_current_task(), stack = 0;

	READ(&stack, sizeof(stack), task + TASK_STACK);
	for (u32 i = 0; i < THREAD_SIZES * PADDINGS; i++) {
		u64 size = THREAD_SIZE_MIN << i / PADDINGS;
		u64 at = size - i % PADDINGS * sizeof(u64) - REGS_SIZE + REGS_SYSCALL;
		SYSCALL_NUMBER_TYPE number = -1;

		if (!is_on_stack(ctx, stack, size) || READ(&number, sizeof(number), stack + at) ||
		    number != m->syscall_number)
			continue;
		m->stack_size = size;
		m->entry_regs = at;
		break;
	}
#endif
}

/* The table of UDP sockets, from a packet of one of our own sockets. */
static inline void measure_udp_table(u64 sk, struct measurement *m)
{
	u64 protocol = 0;

	if (!sk || socket_protocol(sk) != IPPROTO_UDP)
		return;
	READ(&protocol, sizeof(protocol), sk + SOCK_PROT);
	READ(&m->udp_table, sizeof(m->udp_table), protocol + PROT_TABLE);
}

/* Whether the linear part of a packet ends with the marker, which nobody else knows. */
static inline int ends_with_marker(struct skb *skb, struct measurement *m)
{
	u64 read[4] = {}, *marker = (u64 *)m->marker;

	READ(read, sizeof(read),
	     SKB(skb, u64, DATA) + SKB(skb, u32, LEN) - SKB(skb, u32, DATA_LEN) - sizeof(read));
	return read[0] == marker[0] && read[1] == marker[1] && read[2] == marker[2] && read[3] == marker[3];
}

static inline void measure(void *ctx, void *address)
{
	u32 zero = 0;
	struct measurement *m = measurements.lookup(&zero);
	struct skb whole, *skb = &whole;
	struct shared info, *shared = &info;
	u8 piece[FRAGMENT_SIZE] __attribute__((aligned(8)));
	u64 tgid = bpf_get_current_pid_tgid() >> 32;

	if (!m || (m->tgid != tgid && m->tgid != UNKNOWN_SELF))
		return;
	if (READ(skb, sizeof(*skb), address))
		return;
	if (m->tgid == UNKNOWN_SELF) {
		if (ends_with_marker(skb, m))
			m->tgid = tgid;
		return;
	}
	measure_udp_table(SKB(skb, u64, SK), m);
	if (!SKB(skb, u32, DATA_LEN))
		return;
	u64 at = SKB(skb, u64, HEAD) + SKB(skb, u32, END);
	if (READ(shared, sizeof(*shared), at) || SHARED(shared, u8, NR_FRAGS) != 1 ||
	    READ(piece, sizeof(piece), at + SHARED_FRAGS))
		return;
	m->packets++;
	measure_stack(ctx, m);
	m->page_base = *(u64 *)(piece + FRAGMENT_PAGE) - m->frame_number * PAGE_STRUCT_SIZE;
	for (u32 i = 0; i < CANDIDATES; i++) {
		u64 base = (SKB(skb, u64, HEAD) >> 30) - m->candidate - i << 30;
		u64 read[4] = {};
		u64 *marker = (u64 *)m->marker;

		if (READ(read, sizeof(read),
			 base + m->frame_number * PAGE_BYTES + *(u32 *)(piece + FRAGMENT_OFFSET)))
			continue;
		if (read[0] == marker[0] && read[1] == marker[1] && read[2] == marker[2] &&
		    read[3] == marker[3]) {
			m->address_base = base;
			break;
		}
	}
}
