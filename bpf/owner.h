/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The users of sockets, and the sender of a packet. A wrong name is worse than none.
 *
 * `current` uses a socket only while the kernel works for it: in a softirq it is an unrelated
 * process. So users are recorded in process context only, at each use of a socket, and kept after
 * it is closed.
 */

#define PF_EXITING     0x00000004
#define PF_IO_WORKER   0x00000010
#define PF_USER_WORKER 0x00004000
#define PF_KTHREAD     0x00200000

#define SOFTIRQ_OFFSET (1 << 8)

/*
 * `current`, whose fields can be read in place: the verifier knows its type. It is a call: so each program calls it
 * once, and passes the result on.
 */
static inline u8 *current_task(void)
{
	u8 *task = (u8 *)bpf_get_current_task_btf();

	IN_KERNEL(task);
	return task;
}
#define TASK(task, type, field) (*(type *)((task) + TASK_##field))

/* The files of a task, whose address is taken as a number: device_of says why. */
static inline u8 *files_of(u8 *task)
{
#ifdef RDONLY_CAST
	return memory_at(LOAD(u64, (u64)task + TASK_FILES), FILES_TYPE);
#else
	return TASK(task, u8 *, FILES);
#endif
}

/*
 * Whether the program's context is on the stack [bottom, bottom + size). The verifier allows to
 * compare a context pointer but not to compute with it: the end is hidden from the compiler, which
 * would make one subtraction of both comparisons.
 */
static inline int is_on_stack(void *ctx, u64 bottom, u64 size)
{
	u64 end = bottom + size;

	barrier_var(end);
	return (u64)ctx >= bottom && (u64)ctx < end;
}

/*
 * Whether the program runs in process context, in a system call of `current`.
 *
 * The program's context is on the stack of the traced function. Softirqs run on the stack of the
 * CPU (or of ksoftirqd), so this is the stack of current only in process context, or in a softirq
 * after an interrupt in user mode; then the saved registers of user space have no system call. The
 * position of these registers is measured at the start (struct measurement); without it, process
 * context is never proven. It is not measured where softirqs run on the stacks of tasks (abi.Softirqs).
 *
 * With PREEMPT_RT they run on the stacks of tasks, too, but the task then counts this: SOFTIRQ_OFFSET
 * in task_struct.softirq_disable_cnt is in_serving_softirq() there (include/linux/preempt.h). It is
 * set before __do_softirq, by __local_bh_enable_ip and ksoftirqd_run_begin (kernel/softirq.c).
 */
static inline enum via context_of(void *ctx, u8 *task, struct control *control)
{
	u64 stack = TASK(task, u64, STACK);

	if (!control->entry_regs || !is_on_stack(ctx, stack, control->stack_size))
		return VIA_UNKNOWN;
#ifdef TASK_SOFTIRQS
	if (TASK(task, u32, SOFTIRQS) & SOFTIRQ_OFFSET)
		return VIA_UNKNOWN;
#endif
	if (TASK(task, u32, FLAGS) & PF_KTHREAD)
		return VIA_KERNEL;
	return LOAD(SYSCALL_NUMBER_TYPE, stack + control->entry_regs) >= 0 ? VIA_CURRENT : VIA_UNKNOWN;
}

/* The address of the number of the current system call; its arguments are around it. */
static inline u64 syscall_of(u8 *task, struct control *control)
{
	return TASK(task, u64, STACK) + control->entry_regs;
}

/* Whether a descriptor of `current` refers to a file. */
static inline int is_descriptor_of(u8 *task, u64 file, u32 descriptor)
{
	u8 *files = files_of(task), *table = FIELD(u8 *, files, FILES_TABLE);

	return descriptor < FIELD(u32, table, TABLE_SIZE) &&
	       LOAD(u64, FIELD(u64, table, TABLE_FILES) + descriptor * 8ULL) == file;
}

/*
 * Whether any of the first DESCRIPTORS_MAX descriptors of `current` refers to a file. `scratch` is
 * overwritten.
 */
static inline int has_descriptor_of(u8 *task, u64 file, struct owner *scratch)
{
	u8 *files = files_of(task), *table = FIELD(u8 *, files, FILES_TABLE);
	u64 *slots = (u64 *)scratch, at = FIELD(u64, table, TABLE_FILES);
	u32 size = FIELD(u32, table, TABLE_SIZE);

	/* The size of a table is a multiple of 64. */
	for (u32 i = 0; i < DESCRIPTORS_MAX && i < size; i += 8) {
		if (READ(slots, 64, at + i * 8ULL))
			return 0;
		if (slots[0] == file || slots[1] == file || slots[2] == file || slots[3] == file ||
		    slots[4] == file || slots[5] == file || slots[6] == file || slots[7] == file)
			return 1;
	}
	return 0;
}

#define SOCK_STREAM 1

/* Whether a socket is a connection or a listener of TCP, not one that only makes such packets (SOCK_RAW, AF_PACKET). */
static inline int is_tcp_socket(u64 sk)
{
	return socket_protocol(sk) == IPPROTO_TCP && LOAD(u16, sk + SOCK_TYPE) == SOCK_STREAM;
}

/*
 * Whether the kernel takes packets of a process's UDP socket for itself (UDP_ENCAP: IPsec, L2TP; GTP, OpenVPN):
 * what is in them can be for any process. Sockets of the kernel (VXLAN, WireGuard) have no process anyway.
 */
static inline int is_encapsulating(u64 sk)
{
	return any(LOAD(u64, sk + SOCK_ENCAP)) & (LOAD(u8, sk + SOCK_REFCNT_BYTE) >> SOCK_REFCNT_SHIFT & 1);
}

/* How a system call uses sockets that are not its first argument. */
enum call {
	CALL_OTHER,
	CALL_SPLICES, /* sends on its third argument */
	CALL_CLOSES,
	CALL_SUBMITS, /* executes requests from memory: io_uring, Linux AIO */
};

/* By the number of the system call. */
static inline enum call kind_of_call(u32 number)
{
	if (number == SYSCALL_SPLICE)
		return CALL_SPLICES;
	if (number == SYSCALL_IO_URING_ENTER || number == SYSCALL_IO_SUBMIT)
		return CALL_SUBMITS;
	if (number == SYSCALL_CLOSE || number == SYSCALL_CLOSE_RANGE || number == SYSCALL_DUP2 ||
	    number == SYSCALL_DUP3 || number == SYSCALL_EXIT || number == SYSCALL_EXIT_GROUP)
		return CALL_CLOSES;
	return CALL_OTHER;
}

/* The same for a system call of a 32-bit program. */
static inline enum call kind_of_compat_call(u32 number)
{
	if (number == COMPAT_SPLICE)
		return CALL_SPLICES;
	if (number == COMPAT_IO_URING_ENTER || number == COMPAT_IO_SUBMIT)
		return CALL_SUBMITS;
	if (number == COMPAT_CLOSE || number == COMPAT_CLOSE_RANGE || number == COMPAT_DUP2 ||
	    number == COMPAT_DUP3 || number == COMPAT_EXIT || number == COMPAT_EXIT_GROUP)
		return CALL_CLOSES;
	return CALL_OTHER;
}

/*
 * Whether the current system call uses a socket: `file` is that of its struct socket, 0 for none.
 *
 * A packet that is sent in process context is not always sent by that process. A process that gives
 * verdicts on packets (NFQUEUE), writes to a tun device, adds a neighbor entry, empties a queue or
 * polls an interface also sends waiting packets of others, who can have locked their sockets on
 * another processor. So each system call has to prove it:
 * - one that names the socket by a descriptor, as first argument (send, write, recv, connect,
 *   shutdown, setsockopt, sendfile, ...) or third (splice): the descriptor refers to the socket's
 *   file;
 * - one that closes: there is no descriptor any more, the socket is being released (inet_release
 *   removes it from the struct socket before the protocol closes it), and its lock is held for the
 *   release;
 * - io_uring and Linux AIO name no socket, and their workers have no system call: the socket is
 *   known to belong to this process, or one of its descriptors refers to it. At a use (`is_use`:
 *   the socket layer was called) a socket without a known user is accepted, too, because sockets
 *   can be registered with io_uring alone.
 *
 * `scratch` is overwritten.
 */
static inline int is_at_work_on(u8 *task, u64 sk, u64 socket, u64 file, struct control *control,
				struct owner *scratch, const int is_use)
{
	u64 call = syscall_of(task, control);
	u32 flags = TASK(task, u32, FLAGS), kind = CALL_SUBMITS;

	if (!file)
		return 0;
	if (is_descriptor_of(task, file, LOAD(u64, call + CALL_ARGUMENT_0)))
		return 1;
	if (!(flags & (PF_IO_WORKER | PF_USER_WORKER))) {
		u32 number = LOAD(u32, call);

		if (TASK(task, u32, COMPAT) & COMPAT_BIT) {
			u64 argument = LOAD(u64, call + CALL_ARGUMENT_0_COMPAT);
			u32 descriptor = argument;

			/* Its arguments are in memory, at the address in the second one. */
			if (number == COMPAT_SOCKETCALL)
				read_user(&descriptor, 4,
					  (void *)(u64)LOAD(u32, call + CALL_ARGUMENT_1_COMPAT));
			if (is_descriptor_of(task, file, descriptor))
				return 1;
			kind = kind_of_compat_call(number);
		} else {
			kind = kind_of_call(number);
		}
		if (flags & PF_EXITING)
			kind = CALL_CLOSES;
	}
	if (kind == CALL_SPLICES)
		return is_descriptor_of(task, file, LOAD(u64, call + CALL_ARGUMENT_2));
	if (kind == CALL_CLOSES)
		return !LOAD(u64, socket + SOCKET_SK) && LOAD(u32, sk + SOCK_LOCKED);
	if (kind != CALL_SUBMITS)
		return 0;
	struct owner *known = owners.lookup(&sk);
	int is_known = known && known->inode == LOAD(u64, socket + SOCKET_INODE);

	if (is_known && known->user.tgid == TASK(task, u32, TGID))
		return 1;
	return has_descriptor_of(task, file, scratch) || (is_use && !is_known);
}

/*
 * Stores `current` as the user, with the name of its thread group leader, because threads can have
 * other names. A worker that the kernel runs for a process (io_uring, vhost) has a name from the
 * kernel: the name of its process is used.
 */
static inline void set_current_user(u8 *task, struct user *user)
{
	user->tgid = TASK(task, u32, TGID);
	user->tid = TASK(task, u32, TID);
	user->start = TASK(task, u64, START);
	user->comm[0] = TASK(task, u64, COMM);
	user->comm[1] = TASK(task, u64, COMM + 8);
	u32 is_worker = TASK(task, u32, FLAGS) & (PF_IO_WORKER | PF_USER_WORKER);

	task = TASK(task, u8 *, LEADER);
	user->process[0] = TASK(task, u64, COMM);
	user->process[1] = TASK(task, u64, COMM + 8);
	if (is_worker) {
		user->comm[0] = user->process[0];
		user->comm[1] = user->process[1];
	}
}

/* 0 if two users are the same. Without branches: the verifier follows each of them. */
static inline u64 users_differ(struct user *a, struct user *b)
{
	return (u64)(a->tid ^ b->tid) | (a->start ^ b->start) | (a->comm[0] ^ b->comm[0]) |
	       (a->comm[1] ^ b->comm[1]) | (a->process[0] ^ b->process[0]) | (a->process[1] ^ b->process[1]);
}

static inline int is_same_user(struct user *a, struct user *b)
{
	return !users_differ(a, b);
}

/* Whether a socket had no ports yet when its user was recorded: a kprobe is before the send. */
static inline int was_unbound(struct owner *owner)
{
	return !owner->identity;
}

/*
 * Whether a record belongs to this socket: for an open socket by its inode; after it was closed by
 * its ports and the hash of its addresses, which stay until the socket is freed, except for the
 * local port, which is mostly released at the close.
 *
 * A datagram can wait (for a verdict, a neighbor) until its socket is closed, and the user was
 * recorded when the socket was still unbound. Then the record belongs to this socket: each use of a later
 * one at this address replaces the record, or deletes it (forget_unbound). A connected one has other uses,
 * which are not seen (splice, before Linux 6.5).
 */
static inline int is_owner_of(struct owner *owner, struct sock_head *sock, u64 inode)
{
	u64 differs = owner->identity ^ SOCK_IDENTITY(sock);

	if (inode)
		return owner->inode == inode;
	if (!SOCK(sock, u16, NUM))
		differs &= ~IDENTITY_LOCAL_PORT;
	return !differs ||
	       (was_unbound(owner) && !SOCK(sock, u16, DPORT) && socket_protocol(owner->sk) == IPPROTO_UDP);
}

/* A socket is used, but not certainly by `current`: deletes the record of an earlier one at its address. */
static inline void forget_unbound(u64 sk)
{
	struct owner *known = owners.lookup(&sk);

	if (known && was_unbound(known) && known->inode != socket_inode(sk))
		owners.delete(&sk);
}

/*
 * The version of the record of a socket, if the user is recorded already; otherwise 0. The inode is not
 * compared, because that takes longer than everything else: if a later socket at this address is equal in
 * all other values, its packets in softirqs are looked up.
 */
static inline u64 is_known_user(u64 sk, u64 identity, struct user *user)
{
	struct owner *known = owners.lookup(&sk);

	return known && is_same_user(&known->user, user) && known->identity == identity ? known->binding : 0;
}

/* Another socket replaces one whose user is recorded: Python may still look up the old one. */
static inline void keep_by_inode(struct owner *known, u64 inode)
{
	if (known && known->inode && known->inode != inode)
		holders.update(&known->inode, &known->user);
}

/*
 * Whether other processes than `current`, whose system call uses a socket, may have it open: there
 * are other descriptors, or other running calls. The call itself counts if the process has several
 * threads (fdget).
 */
static inline u64 has_others(u8 *task, u64 sk)
{
	u8 *files = files_of(task);

	return references_of(sk) > 1 + (FIELD(u32, files, FILES_COUNT) > 1);
}

/* From now on, it is recorded when a process forks: the child then has its sockets open, too. */
static inline void watch_forks(u32 tgid)
{
	u64 never = 0;

	if (!forks.lookup(&tgid))
		forks.update(&tgid, &never);
}

/* Whether a process may have forked since a time. */
static inline int may_have_forked(u32 tgid, u64 since)
{
	u64 *last = forks.lookup(&tgid);

	return !last || *last > since;
}

/* Whether a process has certainly forked since a time. */
static inline int has_forked(u32 tgid, u64 since)
{
	u64 *last = tgid ? forks.lookup(&tgid) : NULL;

	return last && *last > since;
}

/*
 * Whether other processes than its last user may have a socket open: they had it open when it was
 * used, or were forked since. The other reference is mostly a call that waits for the socket (poll,
 * recv).
 */
static inline int is_shared(u64 sk, struct owner *owner)
{
	return references_of(sk) > 1 &&
	       (owner->time == SHARED_AT_USE || may_have_forked(owner->user.tgid, owner->time));
}

/*
 * The child of a descendant is one, too, whatever becomes of its parent. Each new process passes
 * here, so an entry never belongs to an earlier process with the same id.
 */
static inline void record_descent(u32 parent, u32 tgid, u8 *child)
{
	struct descendant *known = descendants.lookup(&parent);

	if (known) {
		struct descendant born = {.start = FIELD(u64, child, TASK_START), .root = known->root};

		descendants.update(&tgid, &born);
	} else {
		descendants.delete(&tgid);
	}
}

/* `current` has forked, or created a thread. */
static inline void record_fork(u8 *child)
{
	u8 *task = current_task();
	u32 tgid = TASK(task, u32, TGID), forked = FIELD(u32, child, TASK_TGID);
	u64 now = bpf_ktime_get_ns();

	if (forked == tgid)
		return;
	if (forks.lookup(&tgid))
		forks.update(&tgid, &now);
	record_descent(tgid, forked, child);
}

/*
 * The record of a flow, or of a socket. A lookup can miss an entry that another processor replaces
 * at that moment: htab_lru_map_update_elem (kernel/bpf/hashtab.c) adds the new one at the head of
 * the chain, after the lookup has started, and removes the old one. The next lookup finds it. Can
 * be removed when all supported kernels replace an entry of an LRU map in place.
 */
static inline struct owner *lookup_flow(struct flow *flow)
{
	struct owner *owner = flows.lookup(flow);

	return owner ? owner : flows.lookup(flow);
}

static inline struct owner *lookup_owner(u64 *sk)
{
	struct owner *owner = owners.lookup(sk);

	return owner ? owner : owners.lookup(sk);
}

/*
 * Copies the user of a record whose socket is `sk`. Returns whether it is still the record of that
 * socket, otherwise sets zeros: an entry of an LRU map that is evicted or deleted is used again at once, also
 * while another processor reads it (prealloc_lru_pop in kernel/bpf/hashtab.c). Can be removed when such a map
 * frees its entries by RCU.
 */
static inline int copy_user(struct user *user, struct owner *owner, u64 sk)
{
	*user = owner->user;
	barrier();
	if (ONCE(owner->sk) == sk)
		return 1;
	__builtin_memset(user, 0, sizeof(*user));
	return 0;
}

#define OF_TWO	   (~0ULL)	/* an identity */
#define OF_SEVERAL (1ULL << 63) /* in the binding of a socket's record: several processes have used it */
#define OF_REQUEST 1 /* the record of a connection is that of its listener: there is no socket for it yet */

/* Whether a record is of two connections (enter_connection). */
static inline int is_of_two(struct owner *owner)
{
	return !owner->sk && owner->identity == OF_TWO;
}

/*
 * Stores the record of a connection. Sockets that are bound to interfaces can have the same addresses
 * and ports at the same time; then the record names nobody, and stays.
 */
static inline void enter_connection(struct flow *flow, struct owner *owner, u32 bound_dev)
{
	struct owner *known = flow->remote_port ? lookup_flow(flow) : NULL;

	if (known && known->sk != owner->sk && !known->time &&
	    (bound_dev || is_of_two(known) || LOAD(u32, known->sk + SOCK_BOUND_DEV_IF)) &&
	    (is_of_two(known) || (known->sk && LOAD(u8, known->sk + SOCK_STATE) != TCP_LISTEN))) {
		__builtin_memset(owner, 0, sizeof(*owner));
		owner->identity = OF_TWO;
	}
	flows.update(flow, owner);
}

/*
 * Records `user` as the last user of the socket whose first bytes are in `work`; for a TCP socket
 * that listens (or is about to: `listens`) or has a remote address, also for its flow.
 */
static inline void record_owner(u8 *task, u64 sk, struct user *user, struct workspace *work, int listens)
{
	struct sock_head *sock = &work->sock;
	struct owner *known = owners.lookup(&sk), *owner = &work->owner;
	u64 inode = socket_inode(sk);

	if (inode)
		keep_by_inode(known, inode);
	owner->user = *user;
	/* A socket that is being closed keeps the inode that was recorded. */
	owner->inode = inode ? inode : known ? known->inode : 0;
	owner->identity = SOCK_IDENTITY(sock);
	owner->sk = sk;
	/* On the stack: up to Linux 6.1.99, a map takes no unset bytes from it. */
	owner->conntrack = 0;
	owner->binding = bpf_ktime_get_ns();
	owner->time = has_others(task, sk) ? SHARED_AT_USE : owner->binding;
	if (known && owner->inode && known->inode == owner->inode)
		owner->binding |=
			(known->binding & OF_SEVERAL) | any(known->user.tgid ^ user->tgid) * OF_SEVERAL;
	owners.update(&sk, owner);
	owner->time = owner->binding = 0;
	if (listens || socket_protocol(sk) == IPPROTO_UDP)
		watch_forks(user->tgid);
	/*
	 * A connecting socket gets its flow when its SYN is sent: until then, packets of the
	 * earlier connection can arrive.
	 */
	if (!SOCK(sock, u16, NUM) || !is_tcp_socket(sk))
		return;
	if (!listens && SOCK(sock, u8, STATE) != TCP_LISTEN &&
	    (!SOCK(sock, u16, DPORT) || SOCK(sock, u8, STATE) == TCP_CLOSE))
		return;
	flow_of_socket(sock, IPPROTO_TCP, &work->flow);
	enter_connection(&work->flow, owner, SOCK(sock, u32, BOUND_DEV_IF));
}

/*
 * `current` uses a socket: sends, receives, connects, accepts. This counts only in process context,
 * and if the system call uses this socket, or has just created it (`is_new`). `sock` is the
 * beginning of the socket, in place or copied. A socket that begins to listen is also stored as a
 * flow, even if its user is recorded.
 */
static inline void record_use(void *ctx, u64 sk, struct sock_head *sock, struct workspace *work,
			      const int listens, const int is_new)
{
	u32 zero = 0, family = SOCK(sock, u16, FAMILY);
	u64 identity = SOCK_IDENTITY(sock);
	struct control *control = controls.lookup(&zero);
	struct user user;

	if (!control || (family != AF_INET && family != AF_INET6))
		return;
	u8 *task = current_task();

	if (context_of(ctx, task, control) != VIA_CURRENT) {
		forget_unbound(sk);
		return;
	}
	set_current_user(task, &user);
	if (!listens && is_known_user(sk, identity, &user))
		return;
	u64 socket = LOAD(u64, sk + SOCK_SOCKET);

	if (!is_new && !is_at_work_on(task, sk, socket, socket ? LOAD(u64, socket + SOCKET_FILE) : 0, control,
				      &work->owner, 1)) {
		forget_unbound(sk);
		return;
	}
	if (!READ(&work->sock, sizeof(work->sock), sk))
		record_owner(task, sk, &user, work, listens);
}

/* The same if the socket cannot be read in place. */
static inline void record_use_at(void *ctx, u64 sk, struct workspace *work, const int listens,
				 const int is_new)
{
	if (!READ(&work->sock, SOCK_SHORT, sk))
		record_use(ctx, sk, &work->sock, work, listens, is_new);
}

/*
 * A packet without a socket is sent: it can be the question for a neighbor (ARP, ND) whose answer a datagram
 * waits for, which is then sent in a softirq. A kernel without kprobes shows a send when it is over, which
 * can be later. So the socket that is the first argument of the system call gets its user now.
 */
static inline void record_asker(void *ctx, struct control *control, struct workspace *work)
{
	u8 *task = current_task(), *files = files_of(task), *table = FIELD(u8 *, files, FILES_TABLE);

	/* A worker has the arguments of an earlier call, a 32-bit program has them elsewhere (is_at_work_on). */
	if (context_of(ctx, task, control) != VIA_CURRENT || TASK(task, u32, COMPAT) & COMPAT_BIT ||
	    TASK(task, u32, FLAGS) & (PF_IO_WORKER | PF_USER_WORKER))
		return;
	u32 descriptor = LOAD(u64, syscall_of(task, control) + CALL_ARGUMENT_0);

	if (descriptor >= FIELD(u32, table, TABLE_SIZE))
		return;
	u64 file = LOAD(u64, FIELD(u64, table, TABLE_FILES) + descriptor * 8ULL);
	u64 socket = LOAD(u64, file + FILE_PRIVATE), sk = LOAD(u64, socket + SOCKET_SK);

	/* The user of a connection is recorded by connect(2) (record_state). */
	if (file && LOAD(u64, socket + SOCKET_FILE) == file && LOAD(u64, sk + SOCK_SOCKET) == socket &&
	    socket_protocol(sk) != IPPROTO_TCP)
		record_use_at(ctx, sk, work, 0, 0);
}

/*
 * A send would record the socket's user twice: with its packet, and when it is over. The packet
 * stores this for the end of the same system call, on this processor, by the same thread without a
 * switch in between. So it counts once.
 */
static inline void note_use(struct packet *packet, u8 *task)
{
	packet->sent[0] = packet->sk;
	packet->sent[1] = (u64)task;
	packet->sent[2] = TASK(task, u64, SWITCHES) + TASK(task, u64, SWITCHES + 8);
}

static inline int was_use_noted(struct packet *packet, u64 sk)
{
	u8 *task = current_task();
	int is_noted = packet->sent[0] == sk && packet->sent[1] == (u64)task &&
		       packet->sent[2] == TASK(task, u64, SWITCHES) + TASK(task, u64, SWITCHES + 8);

	packet->sent[0] = 0;
	return is_noted;
}

/*
 * Another socket that listens on the port of one that is being closed (SO_REUSEPORT) becomes the
 * record of the port; its user is looked up when a packet arrives. Returns whether there is one.
 */
static inline int has_sibling(u64 sk, struct owner *owner)
{
	u64 sharing = LOAD(u64, sk + SOCK_REUSEPORT), sibling;

	if (!sharing || LOAD(u16, sharing + REUSEPORT_SOCKETS) < 2)
		return 0;
	sibling = LOAD(u64, sharing + REUSEPORT_LIST);
	if (sibling == sk)
		sibling = LOAD(u64, sharing + REUSEPORT_LIST + 8);
	__builtin_memset(owner, 0, sizeof(*owner));
	owner->sk = sibling;
	owner->inode = socket_inode(sibling);
	owner->identity = socket_identity(sibling);
	return 1;
}

/*
 * A TCP socket changes its state.
 *
 * A connecting socket belongs to the process that connects it. A received connection has no user
 * yet: its flow is stored without a user, who is known when the socket has been accepted. A flow
 * stays after its end, for the last packets; a mark distinguishes it from the next one with the
 * same ports.
 */
static inline void record_state(void *ctx, u64 sk, u32 before, u32 after, struct workspace *work)
{
	struct sock_head *sock = &work->sock;
	struct owner *owner = &work->owner;

	/* The tracepoint is before the change of state: inet_sk_state_store. */
	if (after == TCP_LISTEN) {
		record_use_at(ctx, sk, work, 1, 0);
		return;
	}
	/*
	 * connect(2): its SYN may have to wait, and be sent in the context of another process. Or there is no
	 * SYN: CRIU makes a connection of before again (TCP_REPAIR).
	 */
	if (after == TCP_SYN_SENT || (before == TCP_SYN_SENT && after == TCP_ESTABLISHED)) {
		record_use_at(ctx, sk, work, 0, 0);
		return;
	}
	if (after != TCP_CLOSE && !(before == TCP_SYN_RECV && after == TCP_ESTABLISHED))
		return;
	if (READ(sock, sizeof(*sock), sk) || socket_protocol(sk) != IPPROTO_TCP)
		return;
	flow_of_socket(sock, IPPROTO_TCP, &work->flow);
	if (after == TCP_CLOSE) {
		struct owner *known;
		u16 port = 0; /* skc_num is already 0 unless the user chose it */

		READ(&port, sizeof(port), sk + SOCK_SPORT);
		work->flow.local_port = __builtin_bswap16(port);
		known = lookup_flow(&work->flow);
		/* Entries from Python have no address of a socket. */
		if (!known || (known->sk != sk && known->sk) || is_of_two(known))
			return;
		if (before == TCP_LISTEN && has_sibling(sk, owner))
			flows.update(&work->flow, owner);
		else
			known->time = bpf_ktime_get_ns();
	} else if (!socket_inode(sk)) {
		/*
		 * With an inode it was accepted before (TCP fast open), or it is a simultaneous
		 * open. Now the record is of an older socket at this address: it can be equal in all values
		 * but the inode.
		 */
		keep_by_inode(owners.lookup(&sk), 0);
		owners.delete(&sk);
		__builtin_memset(owner, 0, sizeof(*owner));
		owner->identity = SOCK_IDENTITY(sock);
		owner->sk = sk;
		enter_connection(&work->flow, owner, SOCK(sock, u32, BOUND_DEV_IF));
	}
}

/*
 * How long a flow that has ended still names the process of its packets: twice TIME_WAIT, which is
 * one minute.
 */
#define FLOW_REMAINS_NS (120 * 1000000000ULL)

/* The user of a flow; NULL if none is recorded, or if the flow ended long ago. */
static inline struct owner *find_flow(struct flow *flow)
{
	struct owner *owner = lookup_flow(flow);

	if (owner && owner->time && bpf_ktime_get_ns() - owner->time > FLOW_REMAINS_NS)
		return NULL;
	return owner;
}

/*
 * For a socket whose use was not seen: the process that Python has found by the inode, or a request
 * that Python looks it up. A connection without an inode is not accepted yet: when Python looks it
 * up, it mostly is. Returns how the user was found; UNRESOLVED requests a lookup.
 */
static inline enum via find_holder(struct control *control, struct packet *packet)
{
	struct user *holder = holders.lookup(&packet->inode);

	if (packet->inode && holder) {
		packet->user = *holder;
		if (!holder->tid && holder->start)
			return VIA_GROUP;
		return holder->tgid ? VIA_INODE : VIA_UNKNOWN;
	}
	/* Limited: many unknown sockets must not cause many upcalls. */
	if ((s64)ONCE(control->questions) <= 0)
		return VIA_UNKNOWN;
	__sync_fetch_and_add(&control->questions, -1ULL);
	return VIA_UNRESOLVED;
}

/*
 * The common values of the candidates in the group with a number: Python has stored them, or looks
 * them up. It looks them up again if there are more references to the sockets than before, or if
 * the only process has forked: then its child may have them open.
 */
static inline enum via find_members(struct control *control, struct packet *packet, u64 number,
				    u64 references)
{
	struct group *known;
	struct user *holder;
	enum via via;

	packet->inode = GROUP_NUMBER(number);
	known = groups.lookup(&packet->inode);
	holder = holders.lookup(&packet->inode);
	if (holder && (!known || known->references < references || has_forked(holder->tgid, known->time))) {
		holders.delete(&packet->inode);
		known = NULL;
	}
	via = find_holder(control, packet);
	/*
	 * Python stores its answer unless the program has asked again since. So while nothing has changed, the first
	 * question stays: packets that arrive faster than /proc is searched would always ask again.
	 */
	if (via == VIA_UNRESOLVED && (!known || known->references != references)) {
		packet->group.references = references;
		packet->group.time = packet->time;
		groups.update(&packet->inode, &packet->group);
	}
	return via;
}

/*
 * The candidates for a packet to packet->sk, a socket that several processes may have open. `owner`
 * is its last user, or NULL. If the last user is the only candidate, returns `found`.
 */
static inline enum via find_sharers(struct control *control, struct packet *packet, struct owner *owner,
				    enum via found)
{
	struct group *group = &packet->group;
	enum via via;

	group->count = 1;
	group->sks[0] = packet->sk;
	group->inodes[0] = packet->inode | OPEN_IN_SEVERAL;
	via = find_members(control, packet, hash_inode(packet->inode), references_of(packet->sk));
	if (via == VIA_UNRESOLVED || !owner || !packet->user.tgid || packet->user.tgid != owner->user.tgid)
		return via;
	return copy_user(&packet->user, owner, packet->sk) ? found : VIA_UNKNOWN;
}

/*
 * The user of packet->sk, whose first bytes are in `work`: its last user (returns `found`), unless
 * several processes can receive its packets. Processes use a connection one after the other; from a
 * listener or a datagram socket, each of them can receive.
 */
static inline enum via find_user(struct control *control, struct packet *packet, enum via found)
{
	struct sock_head *sock = &packet->work.sock;
	struct owner *owner = lookup_owner(&packet->sk);
	u32 listens = SOCK(sock, u8, STATE) == TCP_LISTEN;

	if (owner && !is_owner_of(owner, sock, packet->inode))
		owner = NULL;
	if (owner ? (listens || socket_protocol(packet->sk) == IPPROTO_UDP) && is_shared(packet->sk, owner)
		  : listens && references_of(packet->sk) > 1)
		return find_sharers(control, packet, owner, found);
	if (!owner)
		return find_holder(control, packet);
	return copy_user(&packet->user, owner, packet->sk) ? found : VIA_UNKNOWN;
}

/*
 * Stores the socket of a listener that Python has found at the start: Python knows addresses and
 * ports, not sockets.
 */
static inline void record_listener(u64 sk, struct sock_head *sock)
{
	struct flow flow;
	struct owner *known;

	flow_of_socket(sock, IPPROTO_TCP, &flow);
	known = flows.lookup(&flow);
	if (known && !known->sk && known->user.tgid) {
		known->sk = sk;
		known->identity = SOCK_IDENTITY(sock);
	}
}

/*
 * How long the answer is unknown after two senders of equal requests: as long as an ended flow is
 * kept.
 */
#define AMBIGUOUS_NS FLOW_REMAINS_NS

/*
 * Whether a sent packet of the socket can be a request for a connection or an echo: TCP until it
 * has an answer, and all but UDP.
 */
static inline int may_ask(u32 protocol, u32 state)
{
	if (protocol == IPPROTO_TCP)
		return state == TCP_SYN_SENT || state == TCP_CLOSE;
	return protocol != IPPROTO_UDP;
}

/* Whether a sent packet with a flow is a request: a SYN, or an echo request. */
static inline int is_syn_or_echo(struct flow *flow, struct headers *headers)
{
	if (flow->protocol == IPPROTO_TCP)
		return is_syn(headers);
	if (flow->protocol == IPPROTO_ICMP)
		return flow->remote_port == ICMP_ECHO;
	return flow->protocol == IPPROTO_ICMPV6 && flow->remote_port == ICMPV6_ECHO_REQUEST;
}

/*
 * Whether a SYN sent on `sk` is forged (AF_PACKET, SOCK_RAW), and its flow `known` is of a connection, whose
 * user it does not change: one that is not accepted yet has no inode, one that Python has found has no
 * address of a socket.
 */
static inline int is_forged(struct owner *known, struct flow *flow, u64 sk)
{
	return known && known->sk != sk && flow->protocol == IPPROTO_TCP && !is_tcp_socket(sk) &&
	       !known->time &&
	       (!known->sk || (is_tcp_socket(known->sk) && socket_identity(known->sk) == known->identity));
}

/*
 * An echo request is sent on `sk`, with the flow `known` of another socket. If both are open and of two
 * processes, or were within AMBIGUOUS_NS, makes `owner` an entry of two senders; see renew_flow.
 */
static inline void note_ambiguous(struct packet *packet, struct owner *known, struct owner *owner, u64 sk)
{
	u64 was_ambiguous = !known->sk && packet->time - known->time < AMBIGUOUS_NS;
	u64 alternates = known->sk ? known->inode && known->inode == socket_inode(known->sk) &&
					     known->user.tgid != packet->user.tgid
				   : was_ambiguous && known->identity != sk;

	if (was_ambiguous || alternates) {
		__builtin_memset(&owner->user, 0, sizeof(owner->user));
		owner->time = alternates ? packet->time : known->time;
		owner->sk = owner->inode = 0;
		owner->identity = sk;
	}
}

/*
 * A request (SYN, echo request) is sent, on a socket with may_ask: the answer has the flow of the
 * packet as it is on the wire, and belongs to packet->user, however it was found. An unknown user,
 * or a group (`is_group`), replaces the earlier one, too: then the answer looks up the user of the
 * socket again.
 *
 * If two open sockets of two processes send the same request (pings with one identifier), the
 * answers are unknown until only one of them has sent requests for AMBIGUOUS_NS. Such an entry has
 * no socket; `identity` is that of the last sender, `time` is when they alternated.
 */
static inline void renew_flow(struct packet *packet, struct skb *skb, int is_group)
{
	struct workspace *work = &packet->work;
	struct flow *flow = &work->flow;
	struct headers headers;
	u64 sk = packet->sk;

	flow_of_sent(packet, skb, &headers);
	if (!headers.transport || !is_syn_or_echo(flow, &headers))
		return;
	struct owner *known = lookup_flow(flow), *owner = &work->owner;

	if (known && known->sk == sk && !known->time && is_same_user(&known->user, &packet->user))
		return;
	if (is_forged(known, flow, sk))
		return;
	owner->user = packet->user;
	if (is_group)
		__builtin_memset(&owner->user, 0, sizeof(owner->user));
	owner->sk = sk;
	owner->inode = socket_inode(sk);
	owner->identity = socket_identity(sk);
	owner->time = owner->binding = 0;
	if (known && known->sk != sk && flow->protocol != IPPROTO_TCP)
		note_ambiguous(packet, known, owner, sk);
	if (flow->protocol == IPPROTO_TCP)
		enter_connection(flow, owner, LOAD(u32, sk + SOCK_BOUND_DEV_IF));
	else
		flows.update(flow, owner);
	/*
	 * On an interface of another namespace (below a macvlan interface) the answer is also
	 * looked up in the namespace of the socket.
	 */
	u64 own = LOAD(u64, LOAD(u64, sk + SOCK_NET) + NET_COOKIE);

	if (own != flow->net) {
		flow->net = own;
		flows.update(flow, owner);
	}
}

/*
 * A packet of a socket that was closed and has released its ports (tcp_disconnect): its user by the
 * flow of this socket. Returns whether it is known.
 */
static inline int find_ended(struct packet *packet, struct skb *skb)
{
	struct headers headers;
	struct owner *owner;

	flow_of_sent(packet, skb, &headers);
	if (!headers.transport || packet->work.flow.protocol != IPPROTO_TCP)
		return 0;
	owner = find_flow(&packet->work.flow);
	return owner && owner->sk == packet->sk && owner->user.tgid &&
	       copy_user(&packet->user, owner, packet->sk);
}

/*
 * Whether the system call of `current` sends the packet, whose socket is `sock`; `whole` is the same
 * socket, beyond its first bytes. Sets the user of the packet, and records it, and the use.
 */
static inline int is_sent_by_current(void *ctx, struct control *control, struct packet *packet,
				     struct sock_head *sock, u8 *whole)
{
	struct workspace *work = &packet->work;

	if (!is_user_socket(sock) || SOCK(sock, u8, STATE) == TCP_NEW_SYN_RECV)
		return 0;
	u8 *task = current_task();

	if (context_of(ctx, task, control) != VIA_CURRENT)
		return 0;
	u8 *socket = FIELD(u8 *, whole, SOCK_SOCKET);

	if (!is_at_work_on(task, packet->sk, (u64)socket, socket ? FIELD(u64, socket, SOCKET_FILE) : 0,
			   control, &work->owner, 0))
		return 0;
	set_current_user(task, &packet->user);
	packet->version = is_known_user(packet->sk, SOCK_IDENTITY(sock), &packet->user);
	if (!packet->version && !READ(&work->sock, sizeof(work->sock), packet->sk))
		record_owner(task, packet->sk, &packet->user, work, 0);
	note_use(packet, task);
	return 1;
}

/*
 * The sender of a packet on a socket of the kernel itself: the user of its flow, for the last ACKs of
 * a TCP connection. Returns how it was found.
 */
static inline enum via find_sender_by_flow(struct packet *packet, struct skb *skb)
{
	struct flow *flow = &packet->work.flow;
	struct headers headers;
	struct owner *owner;

	flow_of_sent(packet, skb, &headers);
	if (!headers.transport || flow->protocol != IPPROTO_TCP)
		return VIA_KERNEL;
	/* This answers a SYN without a listener, whatever process used the ports before. */
	if (is_reset(&headers))
		return VIA_KERNEL;
	owner = find_flow(flow);
	if (!owner || (!owner->user.tgid && !owner->sk))
		return VIA_KERNEL;
	if (!owner->user.tgid || !copy_user(&packet->user, owner, owner->sk)) {
		/* Of a connection that no known process has accepted, on a socket of the kernel. */
		packet->sk = 0;
		return VIA_UNKNOWN;
	}
	return VIA_FLOW;
}

/*
 * The user of packet->sk, the socket on which a packet is sent, or its listener (`is_request`). The
 * first bytes of the socket are in `work`. Returns how the user was found.
 */
static inline enum via find_sender_by_socket(struct control *control, struct packet *packet, struct skb *skb,
					     u32 is_request)
{
	struct sock_head *sock = &packet->work.sock;
	struct owner *owner = lookup_owner(&packet->sk);

	if (owner && !is_owner_of(owner, sock, packet->inode))
		owner = NULL;
	if (is_request && !owner)
		record_listener(packet->sk, sock);
	if (is_request && (owner ? is_shared(packet->sk, owner) : references_of(packet->sk) > 1))
		return find_sharers(control, packet, owner, VIA_SOCKET);
	if (owner) {
		packet->version = owner->binding;
		if (!copy_user(&packet->user, owner, packet->sk))
			return VIA_UNKNOWN;
		/* Recorded before it had its ports, and possibly looked up when it is closed. */
		if (owner->identity != SOCK_IDENTITY(sock))
			owner->identity = SOCK_IDENTITY(sock);
		return VIA_SOCKET;
	}
	if (is_request || packet->inode || !find_ended(packet, skb))
		return find_holder(control, packet);
	return VIA_FLOW;
}

/*
 * Stores the flow in `work` for the ACK that answers a SYN-ACK: there is no connection yet, so until
 * then it belongs to the listener, packet->sk with `inode`. `via` is how its user was found.
 */
static inline void enter_request(struct packet *packet, u64 inode, enum via via)
{
	struct workspace *work = &packet->work;
	struct sock_head *sock = &work->sock;
	struct owner *owner = &work->owner;

	owner->user = packet->user;
	if (via == VIA_GROUP) /* a group is no user: it is looked up for each packet */
		__builtin_memset(&owner->user, 0, sizeof(owner->user));
	owner->inode = inode;
	owner->identity = SOCK_IDENTITY(sock);
	owner->sk = packet->sk;
	owner->time = 0;
	owner->binding = OF_REQUEST;
	enter_connection(&work->flow, owner, SOCK(sock, u32, BOUND_DEV_IF));
}

/*
 * Whether a request (request_sock) adds a subflow to a connection of MPTCP: then the connection is found by a
 * token, and not by the listener, which can be another process's (subflow_token_join_request in
 * net/mptcp/subflow.c).
 */
static inline int is_joining(u64 request)
{
#ifdef REQUEST_IS_MPTCP
	return LOAD(u8, request + REQUEST_IS_MPTCP) &&
	       LOAD(u8, request + REQUEST_JOINS_BYTE) >> REQUEST_JOINS_SHIFT & 1;
#else
	return 0;
#endif
}

/*
 * Sets the sender of a packet; zeros if it is not known. Returns how it was found.
 *
 * A packet without a socket has no process: it is forwarded, or from the kernel itself (ARP, ND,
 * IGMP). The same is true for a socket of the kernel itself (ICMP, RST), except for the last ACKs
 * of a TCP connection whose user is recorded. Where the packet is passed on by its sender
 * (`is_first`), not where it is taken from a queue, the process whose system call uses its socket
 * is the sender. Otherwise it is the last user of the socket, in whatever context the packet is
 * sent.
 */
static inline enum via find_sender(void *ctx, struct control *control, struct packet *packet, struct skb *skb,
				   int is_first)
{
	struct workspace *work = &packet->work;
	struct sock_head *sock = socket_of(packet, skb);
#ifndef IN_PLACE
	u8 *whole = (u8 *)packet->sk; /* `sock` is a copy of its first bytes */
#else
	u8 *whole = (u8 *)sock;
#endif

	if (!sock) {
		if (SKB(skb, u32, SKB_IIF))
			return VIA_FORWARDED;
		record_asker(ctx, control, work);
		return VIA_KERNEL;
	}
	u32 asks = may_ask(FIELD(u16, whole, SOCK_PROTOCOL), SOCK(sock, u8, STATE));
	u64 via = VIA_CURRENT;

	FORGET(asks, control->nothing); /* renew_flow is verified once for all of its callers */
	if (!is_first || !is_sent_by_current(ctx, control, packet, sock, whole)) {
		sock = &work->sock;
		READ(sock, sizeof(*sock), packet->sk);
		u32 is_request = SOCK(sock, u8, STATE) == TCP_NEW_SYN_RECV;

		if (is_request && is_joining(packet->sk)) {
			packet->sk = 0;
			return VIA_UNKNOWN;
		}
		if (is_request) {
			flow_of_socket(sock, IPPROTO_TCP, &work->flow);
			packet->sk = SOCK(sock, u64, LISTENER);
			READ(sock, sizeof(*sock), packet->sk);
		} else if (!is_user_socket(sock)) {
			return find_sender_by_flow(packet, skb);
		}
		u64 inode = packet->inode = socket_inode(packet->sk);

		via = find_sender_by_socket(control, packet, skb, is_request);
		if (is_request) {
			enter_request(packet, inode, via);
			return via;
		}
	}
	FORGET(via, control->nothing);
	if (asks)
		renew_flow(packet, skb, via == VIA_GROUP);
	return via;
}
