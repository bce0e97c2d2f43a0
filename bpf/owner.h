/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Whose socket is it? What is learned of each socket's users, and who sent a packet. A wrong name is worse than none.
 *
 * `current` is at work on a socket only while the kernel works for it: in a softirq it is an innocent bystander. So
 * users are learned in process context only, at each use of a socket, and remembered past its close.
 */

#define PF_IO_WORKER   0x00000010
#define PF_USER_WORKER 0x00004000
#define PF_KTHREAD     0x00200000

/* `current`, whose fields can be read in place: the verifier knows its type. */
static inline u8 *current_task(void)
{
	u8 *task = (u8 *)bpf_get_current_task_btf();

	asm volatile("" : "+r"(task)); /* or bcc would make a helper's call of each read */
	return task;
}
#define TASK(type, field) (*(type *)(task + TASK_##field))

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
	u8 *task = current_task();
	u64 stack = TASK(u64, STACK);

	if (!control->entry_regs || !is_on_stack(ctx, stack, control->stack_size))
		return VIA_UNKNOWN;
	if (TASK(u32, FLAGS) & PF_KTHREAD)
		return VIA_KERNEL;
	return LOAD(SYSCALL_NUMBER_TYPE, stack + control->entry_regs) >= 0 ? VIA_CURRENT : VIA_UNKNOWN;
}

/* Whether the system call that is going on has a descriptor of this socket for its first argument. */
static inline int is_first_argument(u8 *sk, struct control *control)
{
	u8 *task = current_task(), *socket = FIELD(u8 *, sk, SOCK_SOCKET);

	if (!socket)
		return 0;
	/* The first argument stands before the number: di and orig_ax on x86-64, orig_x0 and syscallno on arm64. */
	u64 descriptor = LOAD(u64, TASK(u64, STACK) + control->entry_regs - 8);
	u8 *files = TASK(u8 *, FILES), *table = FIELD(u8 *, files, FILES_TABLE);

	u64 file = LOAD(u64, FIELD(u64, table, TABLE_FILES) + (u32)descriptor * 8ULL);

	return file && file == FIELD(u64, socket, SOCKET_FILE);
}

/*
 * Whether the system call that is going on can be at work on this socket.
 *
 * Not every packet that leaves in process context is sent by the process: one that writes to a tun device runs the whole
 * receive path, and answers leave on other processes' sockets; one that makes a neighbour known, or empties a queue, sends
 * what others have left there. A system call that sends on a socket with connections holds its lock, which the receive path
 * never does (sk_lock.owned in include/net/sock.h). Without connections there is no lock: the system call has to name the
 * socket - or be io_uring's or splice(2), which do not name it first, and are believed.
 */
static inline int is_at_work_on(u8 *sk, struct control *control)
{
	u16 type = FIELD(u16, sk, SOCK_TYPE);
	u8 *task = current_task();

	if (type == SOCK_STREAM || type == SOCK_SEQPACKET || type == SOCK_DCCP)
		return FIELD(u32, sk, SOCK_LOCKED) != 0;
	if (is_first_argument(sk, control) || TASK(u32, FLAGS) & (PF_IO_WORKER | PF_USER_WORKER))
		return 1;
	SYSCALL_NUMBER_TYPE number = LOAD(SYSCALL_NUMBER_TYPE, TASK(u64, STACK) + control->entry_regs);

	return number == SYSCALL_IO_URING_ENTER || number == SYSCALL_SPLICE;
}

/* Takes `current` for the user, with the name of its thread group's leader: threads may have names of their own. A worker
   that the kernel runs for a process (io_uring, vhost) has a name of the kernel's making: its process's is taken. */
static inline void use_current(struct user *user)
{
	u8 *task = current_task();

	user->tgid = TASK(u32, TGID);
	user->tid = TASK(u32, TID);
	user->start = TASK(u64, START);
	user->comm[0] = TASK(u64, COMM);
	user->comm[1] = TASK(u64, COMM + 8);
	u32 is_worker = TASK(u32, FLAGS) & (PF_IO_WORKER | PF_USER_WORKER);

	task = TASK(u8 *, LEADER);
	user->process[0] = TASK(u64, COMM);
	user->process[1] = TASK(u64, COMM + 8);
	if (is_worker) {
		user->comm[0] = user->process[0];
		user->comm[1] = user->process[1];
	}
}

static inline int is_same_user(struct user *a, struct user *b)
{
	return a->tid == b->tid && a->start == b->start && a->comm[0] == b->comm[0] &&
	       a->comm[1] == b->comm[1] && a->process[0] == b->process[0] && a->process[1] == b->process[1];
}

/*
 * Whether a record is still this socket's: an open one by its inode, one that its users have closed by its ports and
 * the hash of its addresses, which stay until it is gone - but for the local port, which most give back when they are closed.
 */
static inline int is_owner_of(struct owner *owner, struct sock_head *sock, u64 inode)
{
	u64 differs = owner->identity ^ SOCK_IDENTITY(sock);

	if (!SOCK(u16, NUM))
		differs &= ~(0xffffULL << 48);
	return inode ? owner->inode == inode : !differs;
}

/* Whether the user of a socket is remembered already. The inode is not compared, as that takes longer than all the rest:
   should a later socket at this address have all else in common, its packets in softirq are asked about. */
static inline int is_known_user(u64 sk, u64 identity, struct user *user)
{
	struct owner *known = owners.lookup(&sk);

	return known && is_same_user(&known->user, user) && known->identity == identity;
}

/* Another socket takes the place of one whose user is remembered: Python may still be about to ask for that one. */
static inline void keep_by_inode(struct owner *known, u64 inode)
{
	if (known && known->inode && known->inode != inode)
		holders.update(&known->inode, &known->user);
}

/*
 * Remembers `user` as the last user of the socket whose head is in `work`; of a TCP socket that listens (or is about to:
 * `listens`) or has its remote end, by its flow, too.
 */
static inline void learn_owner(u64 sk, struct user *user, struct workspace *work, int listens)
{
	struct sock_head *sock = &work->sock;
	struct owner *known = owners.lookup(&sk), *owner = &work->owner;
	u64 inode = socket_inode(sk);

	if (inode)
		keep_by_inode(known, inode);
	owner->user = *user;
	/* A socket that is being closed keeps the inode it was known by. */
	owner->inode = inode ? inode : known ? known->inode : 0;
	owner->identity = SOCK_IDENTITY(sock);
	owner->sk = sk;
	owner->time = 0;
	owners.update(&sk, owner);
	if (!SOCK(u16, NUM) || (!SOCK(u16, DPORT) && SOCK(u8, STATE) != TCP_LISTEN && !listens) ||
	    socket_protocol(sk) != IPPROTO_TCP)
		return;
	flow_of_socket(sock, IPPROTO_TCP, &work->flow);
	flows.update(&work->flow, owner);
}

/* `current` uses a socket: sends, receives, connects, accepts. Counts only in process context. `sock` is the head of the
   socket, in place or copied. One that begins to listen is entered as a flow, also where its user is known. */
static inline void learn_use(void *ctx, u64 sk, struct sock_head *sock, struct workspace *work, int listens)
{
	u32 zero = 0;
	struct control *control = controls.lookup(&zero);
	struct user user;

	if (!control || (SOCK(u16, FAMILY) != AF_INET && SOCK(u16, FAMILY) != AF_INET6))
		return;
	if (context_of(ctx, control) != VIA_CURRENT)
		return;
	use_current(&user);
	if ((listens || !is_known_user(sk, SOCK_IDENTITY(sock), &user)) &&
	    !READ(&work->sock, sizeof(work->sock), sk))
		learn_owner(sk, &user, work, listens);
}

/* The same where the socket cannot be looked at in place. */
static inline void learn_use_at(void *ctx, u64 sk, struct workspace *work, int listens)
{
	if (!READ(&work->sock, SOCK_SHORT, sk))
		learn_use(ctx, sk, &work->sock, work, listens);
}

/*
 * A send learns the socket's user twice: with its packet, and when it is over. The packet notes that for the end of the
 * same system call: on this processor, by the same thread, which has not been away since. It counts once.
 */
static inline void note_use(struct packet *packet)
{
	u8 *task = current_task();

	packet->sent[0] = packet->sk;
	packet->sent[1] = (u64)task;
	packet->sent[2] = TASK(u64, SWITCHES) + TASK(u64, SWITCHES + 8);
}

static inline int was_use_noted(struct packet *packet, u64 sk)
{
	u8 *task = current_task();
	int is_noted = packet->sent[0] == sk && packet->sent[1] == (u64)task &&
		       packet->sent[2] == TASK(u64, SWITCHES) + TASK(u64, SWITCHES + 8);

	packet->sent[0] = 0;
	return is_noted;
}

/* What is known of a flow. A lookup may miss an entry that another processor replaces at that moment (htab_lru_map_update_elem
   puts the new one at the head of the chain, behind who has begun to walk it, and takes the old one out): the next finds it. */
static inline struct owner *lookup_flow(struct flow *flow)
{
	struct owner *owner = flows.lookup(flow);

	return owner ? owner : flows.lookup(flow);
}

/*
 * A TCP socket changes its state.
 *
 * A connection that came in is of nobody yet: its flow is entered without a user, who is known when the socket has been
 * accepted. A flow stays after its end, for the last packets; the mark tells it from the next one of the same ports.
 */
static inline void learn_state(void *ctx, u64 sk, u32 before, u32 after, struct workspace *work)
{
	struct sock_head *sock = &work->sock;
	struct owner *owner = &work->owner;

	if (after == TCP_LISTEN) { /* the tracepoint stands before the state is set: inet_sk_state_store */
		learn_use_at(ctx, sk, work, 1);
		return;
	}
	if (after != TCP_CLOSE && !(before == TCP_SYN_RECV && after == TCP_ESTABLISHED))
		return;
	if (READ(sock, sizeof(*sock), sk) || socket_protocol(sk) != IPPROTO_TCP)
		return;
	flow_of_socket(sock, IPPROTO_TCP, &work->flow);
	if (after == TCP_CLOSE) {
		struct owner *known;
		u16 port = 0; /* skc_num is 0 by now unless the user chose it */

		READ(&port, sizeof(port), sk + SOCK_SPORT);
		work->flow.local_port = __builtin_bswap16(port);
		known = lookup_flow(&work->flow);
		if (known && (known->sk == sk || !known->sk)) /* Python knows no addresses of sockets */
			known->time = bpf_ktime_get_ns();
	} else {
		/* What is remembered is an older socket's at this address: it may have all but the inode in common. */
		keep_by_inode(owners.lookup(&sk), 0);
		owners.delete(&sk);
		__builtin_memset(owner, 0, sizeof(*owner));
		owner->identity = SOCK_IDENTITY(sock);
		owner->sk = sk;
		flows.update(&work->flow, owner);
	}
}

/* How long a flow that has ended still names its packets: TIME_WAIT, which lasts one minute, twice. */
#define FLOW_REMAINS_NS (120 * 1000000000ULL)

/* The user of a flow; NULL where none is remembered, or the flow ended long ago. */
static inline struct owner *find_flow(struct flow *flow)
{
	struct owner *owner = lookup_flow(flow);

	if (owner && owner->time && bpf_ktime_get_ns() - owner->time > FLOW_REMAINS_NS)
		return NULL;
	return owner;
}

/*
 * The last resort for a socket whose use nobody has seen: what Python has found out about its inode, or the wish that
 * Python may find out. A connection without an inode is not accepted yet: by the time Python asks, it mostly is.
 * Returns how the user was found; UNRESOLVED asks Python.
 */
static inline enum via find_holder(struct control *control, struct packet *packet)
{
	struct user *holder = holders.lookup(&packet->inode);

	if (packet->inode && holder) {
		packet->user = *holder;
		return holder->tgid ? VIA_INODE : VIA_UNKNOWN;
	}
	/* Bounded: a flood of strange sockets must not become a flood of upcalls. */
	if ((s64)ONCE(control->questions) <= 0)
		return VIA_UNKNOWN;
	__sync_fetch_and_add(&control->questions, -1ULL);
	return VIA_UNRESOLVED;
}

/* An echo request leaves: the reply with the same identifier from there is its sender's. */
static inline void learn_echo(struct packet *packet, struct skb *skb)
{
	struct workspace *work = &packet->work;
	struct headers headers;
	u32 protocol = socket_protocol(packet->sk);

	if (protocol != IPPROTO_ICMP && protocol != IPPROTO_ICMPV6)
		return;
	flow_of_sent(packet, skb, &headers);
	if (!headers.transport || (work->flow.remote_port != 8 && work->flow.remote_port != 128))
		return;
	struct owner *known = flows.lookup(&work->flow), *owner = &work->owner;

	if (known && known->sk == packet->sk && is_same_user(&known->user, &packet->user))
		return;
	owner->user = packet->user;
	owner->sk = packet->sk;
	owner->inode = owner->identity = owner->time = 0;
	/* Two sockets ping the same host with the same identifier: whose the replies are cannot be told. */
	if (known && known->sk != packet->sk && known->user.tgid != packet->user.tgid)
		__builtin_memset(&owner->user, 0, sizeof(owner->user));
	flows.update(&work->flow, owner);
}

/*
 * Fills in who sent a packet; leaves zeros where it is not known. Returns how it was found.
 *
 * A packet without a socket is nobody's: forwarded, or the kernel's own (ARP, ND, IGMP). So is one of a socket that the
 * kernel made for itself (ICMP, RST), but for the last ACKs of a TCP connection whose user is remembered. In process
 * context the system call is at work on the packet's socket: its process is the sender - where the packet was handed over
 * (`is_first`), not where it is taken from a queue.
 */
static inline enum via find_sender(void *ctx, struct control *control, struct packet *packet, struct skb *skb,
				   int is_first)
{
	struct workspace *work = &packet->work;
	struct sock_head *sock = socket_of(packet, skb);
#ifndef IN_PLACE
	u8 *whole = (u8 *)packet->sk; /* `sock` is a copy of its head */
#else
	u8 *whole = (u8 *)sock;
#endif
	struct owner *owner;

	if (!sock)
		return SKB(u32, SKB_IIF) ? VIA_FORWARDED : VIA_KERNEL;
	if (is_first && SOCK_BIT(REFCNT) && SOCK(u8, STATE) != TCP_NEW_SYN_RECV &&
	    context_of(ctx, control) == VIA_CURRENT && is_at_work_on(whole, control)) {
		u16 remote_port = SOCK(u16, DPORT);

		use_current(&packet->user);
		if (!is_known_user(packet->sk, SOCK_IDENTITY(sock), &packet->user) &&
		    !READ(&work->sock, sizeof(work->sock), packet->sk))
			learn_owner(packet->sk, &packet->user, work, 0);
		if (!remote_port)
			learn_echo(packet, skb);
		note_use(packet);
		return VIA_CURRENT;
	}
	sock = &work->sock;
	READ(sock, sizeof(*sock), packet->sk);
	u32 is_request = SOCK(u8, STATE) == TCP_NEW_SYN_RECV;

	if (is_request) {
		flow_of_socket(sock, IPPROTO_TCP, &work->flow);
		packet->sk = SOCK(u64, LISTENER);
		READ(sock, sizeof(*sock), packet->sk);
	} else if (!SOCK_BIT(REFCNT)) {
		struct headers headers;

		flow_of_sent(packet, skb, &headers);
		if (!headers.transport || work->flow.protocol != IPPROTO_TCP)
			return VIA_KERNEL;
		owner = find_flow(&work->flow);
		if (!owner || !owner->user.tgid)
			return VIA_KERNEL;
		packet->user = owner->user;
		return VIA_FLOW;
	}
	packet->inode = socket_inode(packet->sk);
	owner = owners.lookup(&packet->sk);
	if (owner && is_owner_of(owner, sock, packet->inode)) {
		packet->user = owner->user;
		/* The ACK that answers a SYN-ACK finds no connection yet: until there is one, the listener's. */
		if (is_request)
			flows.update(&work->flow, owner);
		return VIA_SOCKET;
	}
	return find_holder(control, packet);
}
