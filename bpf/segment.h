/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Space in the shared segments: reserve, then commit.
 *
 * One cursor orders all packets of all CPUs. A reservation is never in two segments: one that does
 * not fit seals the segment and starts the next. Reserved space is always committed, whatever its
 * content.
 *
 * The disk takes complete blocks of memory that are at complete blocks of the file. So a segment does
 * not begin at its first byte, but where its bytes have the same offset in a block as in the file.
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

static inline struct segment_state *state_of(struct control *control, u64 number)
{
	return &control->segments[BOUND(number, SEGMENT_COUNT - 1)];
}

/*
 * Where the segment after `number` begins, which ends at `offset`: its bytes are to be `placed` later
 * in a block of the disk than they are in the stream of all bytes. If the beginning of segment
 * `number` is not stored yet, the result is another place, which is correct, too, but copied.
 */
static inline u32 begin_of_next(struct control *control, u64 number, u64 offset, u64 placed)
{
	return (offset + placed - (ONCE(state_of(control, number)->begin) >> 32)) & (DISK_BLOCK - 4);
}

/*
 * Reserves `size` bytes, at most SEGMENT_SIZE - DISK_BLOCK and a multiple of 4. Returns 0, or the
 * counter with the reason: LOST_FULL if the reader is a complete buffer behind, LOST_CONTENDED if
 * other CPUs moved the cursor RESERVE_TRIES times in a row.
 */
static inline int reserve(struct control *control, u32 size, struct reservation *reservation)
{
	for (int i = 0; i < RESERVE_TRIES; i++) {
		u64 old = ONCE(control->cursor);
		u64 number = old >> 32, offset = old & 0xffffffff, at = offset, placed = 0;
		u64 tail = ONCE(control->tail);

		if (offset + size > SEGMENT_SIZE) {
			number++;
			if (number >= tail + SEGMENT_COUNT)
				return LOST_FULL;
			placed = ONCE(control->placed);
			at = begin_of_next(control, old >> 32, offset, placed);
		}
		if (__sync_val_compare_and_swap(&control->cursor, old, number << 32 | (at + size)) != old)
			continue;
		reservation->number = number;
		reservation->at = at;
		if (number != old >> 32) {
			ONCE(state_of(control, number)->begin) = placed << 32 | at;
			ONCE(state_of(control, old >> 32)->used) = offset;
			if (number >= ONCE(control->wake_at))
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
	u64 listed = __sync_fetch_and_add(&state_of(control, reservation->number)->upcalls, 1);

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
	u64 before = __sync_fetch_and_add(&state_of(control, reservation->number)->committed, size);

	asm volatile("" : : "r"(before));
	if (ends_sleep(control, SLEEP_UNTIL_PACKET))
		wake_reader();
}
