/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Space in the shared segments: reserve, then commit.
 *
 * One cursor orders all packets of all CPUs. A reservation is never in two segments: one that does
 * not fit seals the segment and starts the next. Reserved space is always committed, whatever its
 * content.
 */

struct reservation {
	u64 number; /* of the segment, counting from the start of the capture */
	u32 at;	    /* offset of the block in it */
};

#define BPF_RB_FORCE_WAKEUP (1 << 1)

static inline void wake_reader(void)
{
	u64 nothing = 0;

	wakeups.ringbuf_output(&nothing, sizeof(nothing), BPF_RB_FORCE_WAKEUP);
}

/* Whether Python sleeps until such a packet, and this packet wakes it: only one does. */
static inline int ends_sleep(struct control *control, enum sleep until)
{
	return ONCE(control->sleeping) == until &&
	       __sync_val_compare_and_swap(&control->sleeping, until, SLEEP_NOT) == until;
}

/*
 * Reserves `size` bytes, at most SEGMENT_SIZE and a multiple of 4. Returns 0, or the counter with
 * the reason: LOST_FULL if the reader is a complete buffer behind, LOST_CONTENDED if other CPUs
 * moved the cursor RESERVE_TRIES times in a row.
 */
static inline int reserve(struct control *control, u32 size, struct reservation *reservation)
{
	for (int i = 0; i < RESERVE_TRIES; i++) {
		u64 old = ONCE(control->cursor);
		u64 number = old >> 32, offset = old & 0xffffffff, new;
		u64 tail = ONCE(control->tail);

		if (offset + size <= SEGMENT_SIZE) {
			new = old + size;
			reservation->at = offset;
		} else {
			number++;
			if (number >= tail + SEGMENT_COUNT)
				return LOST_FULL;
			new = number << 32 | size;
			reservation->at = 0;
		}
		if (__sync_val_compare_and_swap(&control->cursor, old, new) != old)
			continue;
		reservation->number = number;
		if (reservation->at == 0 && offset) {
			ONCE(control->segments[BOUND(old >> 32, SEGMENT_COUNT - 1)].used) = offset;
			if (number - tail >= ONCE(control->wake_backlog))
				wake_reader();
		}
		return 0;
	}
	return LOST_CONTENDED;
}

#define UPCALL_BURST 64 /* local blocks of a segment after which Python is woken */

/*
 * Stores the offset of a local block, so that Python need not walk the segment to find it. If there
 * are many, Python is woken at once: until there is a label, each packet of a fast sender is a
 * local block.
 */
static inline void list_upcall(struct control *control, struct segment *segment,
			       struct reservation *reservation)
{
	u64 listed = __sync_fetch_and_add(
		&control->segments[BOUND(reservation->number, SEGMENT_COUNT - 1)].upcalls, 1);

	if (listed < UPCALLS_LISTED)
		ONCE(segment->upcall_at[BOUND(listed, UPCALLS_LISTED - 1)]) =
			reservation->number << 32 | reservation->at;
	if (listed % UPCALL_BURST == UPCALL_BURST - 1 || ends_sleep(control, SLEEP_UNTIL_UPCALL))
		wake_reader();
}

/*
 * Commits the block. The fetch makes the addition a full barrier, also on arm64: a reader that sees
 * the sum also sees the block.
 */
static inline void commit(struct control *control, struct reservation *reservation, u32 size)
{
	u64 before = __sync_fetch_and_add(
		&control->segments[BOUND(reservation->number, SEGMENT_COUNT - 1)].committed, size);

	asm volatile("" : : "r"(before));
	if (ends_sleep(control, SLEEP_UNTIL_PACKET))
		wake_reader();
}
