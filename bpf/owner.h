/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Whose packet is it? A wrong name is worse than none.
 *
 * `current` is the sender only while the kernel works for it: in a softirq it is an innocent bystander.
 */

#define PF_KTHREAD 0x00200000

/* Whether the program's context lies on the stack [bottom, bottom + size). The verifier lets a context pointer be compared
   but not computed with: the end is hidden from the compiler, which would make one subtraction of both comparisons. */
static inline int is_on_stack(void *ctx, u64 bottom, u64 size)
{
	u64 end = bottom + size;

	asm volatile("" : "+r"(end));
	return (u64)ctx >= bottom && (u64)ctx < end;
}

/*
 * Whether the program runs in process context, on behalf of `current`'s own system call.
 *
 * The context the program was given lies on the stack that the traced function runs on. Softirqs run on the stack of
 * the CPU (or of ksoftirqd), so that stack is current's own only in process context - or in a softirq on the back
 * of an interrupt that came in user mode, and then the user's saved registers hold no system call.
 * Where those registers lie is measured at start (struct measurement); unmeasured is never proven.
 * Not valid on PREEMPT_RT, where softirqs run in tasks.
 */
static inline enum via context_of(void *ctx, struct control *control)
{
	u64 task = bpf_get_current_task(), stack = 0;
	u32 flags = 0;
	SYSCALL_NUMBER_TYPE number = -1;

	if (!control->entry_regs)
		return VIA_UNKNOWN;
	READ(&stack, sizeof(stack), task + TASK_STACK);
	if (!is_on_stack(ctx, stack, control->stack_size))
		return VIA_UNKNOWN;
	READ(&flags, sizeof(flags), task + TASK_FLAGS);
	if (flags & PF_KTHREAD)
		return VIA_KERNEL;
	READ(&number, sizeof(number), stack + control->entry_regs);
	return number >= 0 ? VIA_CURRENT : VIA_UNKNOWN;
}

/* The parts of a struct sock that tell whose it is, read at once: addresses, ports, hash, family, state, flags. */
struct sock_head {
	u8 bytes[SOCK_SPAN];
} __attribute__((aligned(8)));
#define SOCK(type, field) (*(type *)(sock->bytes + SOCK_##field))
#define TCP_TIME_WAIT	  6
#define TCP_NEW_SYN_RECV  12

/* The inode number of an open socket: it tells a socket from a later one at the same address. 0: closed by its users. */
static inline u64 socket_inode(u64 sk)
{
	u64 socket = 0, inode = 0;

	READ(&socket, sizeof(socket), sk + SOCK_SOCKET);
	if (socket)
		READ(&inode, sizeof(inode), socket + SOCKET_INODE);
	return inode;
}

/*
 * Whether a record is still this socket's: an open one by its inode, one that its users have closed by its ports and
 * the hash of its addresses, which stay until it is gone.
 */
static inline int is_owner_of(struct owner *owner, struct sock_head *sock, u64 inode)
{
	return inode ? owner->inode == inode : owner->identity == SOCK(u64, HASH);
}

/* Takes a record's process for the packet's. */
static inline void use_owner(struct owner *owner, struct key *key, u64 *comm)
{
	key->tgid = owner->tgid;
	key->tid = owner->tid;
	comm[0] = owner->comm[0];
	comm[1] = owner->comm[1];
}

/* Remembers `current` as the last user of the socket, unless it is remembered already. */
static inline void learn_owner(u64 sk, struct sock_head *sock, struct key *key, u64 *comm)
{
	struct owner *known = owners.lookup(&sk), owner;
	u64 inode = socket_inode(sk);

	if (known && known->tid == key->tid && known->comm[0] == comm[0] && known->comm[1] == comm[1] &&
	    known->inode == inode && known->identity == SOCK(u64, HASH))
		return;
	owner.tgid = key->tgid;
	owner.tid = key->tid;
	owner.comm[0] = comm[0];
	owner.comm[1] = comm[1];
	/* A socket that is being closed keeps the inode it was known by. */
	owner.inode = inode ? inode : known ? known->inode : 0;
	owner.identity = SOCK(u64, HASH);
	owners.update(&sk, &owner);
}

/*
 * Fills in the process part of the key and its comm; leaves zeros where it is not known.
 *
 * A packet without a socket is nobody's: forwarded, or the kernel's own (ARP, ND, IGMP). So is one of a socket that the
 * kernel made for itself (ICMP, RST). In process context the system call is at work on the packet's socket: its process
 * is the sender, and remembered as the socket's last user for packets that leave in softirq later.
 * skb->sk of a received packet may be the sender's, on this very machine: never its owner here.
 */
static inline void find_owner(void *ctx, struct control *control, struct skb *skb, u64 sk, struct key *key,
			      u64 *comm)
{
	struct sock_head head, *sock = &head;
	enum via via = VIA_UNKNOWN;

	if (key->direction == IN)
		goto out;
	if (!sk) {
		via = SKB(u32, SKB_IIF) ? VIA_FORWARDED : VIA_KERNEL;
		goto out;
	}
	READ(sock, sizeof(*sock), sk);
	if (SOCK(u8, STATE) == TCP_NEW_SYN_RECV) {
		READ(&sk, sizeof(sk), sk + SOCK_LISTENER);
		READ(sock, sizeof(*sock), sk);
	} else if (SOCK(u8, STATE) != TCP_TIME_WAIT && !(SOCK(u8, REFCNT_BYTE) >> SOCK_REFCNT_SHIFT & 1)) {
		via = VIA_KERNEL;
		goto out;
	} else {
		via = context_of(ctx, control);
	}
	if (via == VIA_CURRENT) {
		u64 ids = bpf_get_current_pid_tgid();

		key->tgid = ids >> 32;
		key->tid = ids;
		bpf_get_current_comm(comm, 16);
		learn_owner(sk, sock, key, comm);
	} else {
		struct owner *owner = owners.lookup(&sk);

		if (owner && is_owner_of(owner, sock, socket_inode(sk))) {
			use_owner(owner, key, comm);
			via = VIA_SOCKET;
		}
	}
out:
	key->via = via;
}
