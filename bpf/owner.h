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

/* Fills in the process part of the key and its comm; leaves zeros where it is not known. */
static inline void find_owner(void *ctx, struct control *control, struct key *key, u8 *comm)
{
	enum via via = context_of(ctx, control);

	key->kind |= via << 8;
	if (via == VIA_CURRENT) {
		u64 ids = bpf_get_current_pid_tgid();

		key->tgid = ids >> 32;
		key->tid = ids;
		bpf_get_current_comm(comm, 16);
	}
}
