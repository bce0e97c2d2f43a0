/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What makes compiler and verifier agree.
 *
 * The compiler may remove a check that it can prove, or turn arithmetic into branches. The verifier
 * of the kernel then misses a bound, or checks the code behind each branch once more. Each of these
 * says what would make it unnecessary.
 */

/* The compiler knows nothing of the variable's value behind this (as barrier_var of libbpf). */
#define barrier_var(variable) asm volatile("" : "+r"(variable))

/* Memory is written before this, and read again behind it (as barrier() of the kernel). */
#define barrier() asm volatile("" : : : "memory")

/*
 * A pointer to an object of the kernel, whose fields are read in place. bcc replaces each read
 * through a pointer that it knows to be of the kernel by a call of bpf_probe_read_kernel; it does
 * not know this one any more. Not needed with a compiler that does not rewrite (libbpf).
 */
#define IN_KERNEL(pointer) barrier_var(pointer)

/*
 * A value below a power of two, `mask` + 1. The compiler leaves out a mask where it knows the bound
 * from code before, which the verifier may not know: so the value is hidden first. Seen with LLVM
 * 14 to 19; no kernel makes it unnecessary.
 */
#define BOUND(value, mask)              \
	({                              \
		u64 _bounded = (value); \
		barrier_var(_bounded);  \
		_bounded &(mask);       \
	})

/*
 * Adds `nothing`, a zero that the verifier does not know to be one (control->nothing). The variable
 * has no known value behind this, so all paths to the end of a loop's body lead to one state, and
 * the next turn is verified once. bpf_for (Linux 6.4) widens such variables itself from Linux 6.7
 * on: not needed once the oldest kernel is that.
 */
#define FORGET(value, nothing) ((value) += (nothing))

/*
 * Shared words are read or written exactly once, and here (as READ_ONCE and WRITE_ONCE of the
 * kernel).
 */
#define ONCE(word) (*(volatile typeof(word) *)&(word))

/*
 * 1 for any number but 0. Without a branch, and hidden from the compiler, which would make one of
 * it.
 */
static inline u64 any(u64 value)
{
	u64 sign = value | -value;

	barrier_var(sign);
	return sign >> 63;
}

/*
 * The smaller of two numbers below 2^63. Without a branch: each one in a loop doubles what the
 * verifier checks.
 */
static inline u64 least(u64 a, u64 b)
{
	s64 difference = a - b;

	return b + (difference & difference >> 63);
}
