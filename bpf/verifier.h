/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Macros for compiler and verifier.
 *
 * The compiler can remove a check that it can prove, or turn arithmetic into branches. Then the
 * verifier of the kernel misses a limit, or checks the code after each branch once more. Each macro
 * says when it can be removed.
 */

/* The compiler does not know the variable's value after this (as barrier_var of libbpf). */
#define barrier_var(variable) asm volatile("" : "+r"(variable))

/* Memory is written before this, and read again after it (as barrier() of the kernel). */
#define barrier() asm volatile("" : : : "memory")

/*
 * A pointer to an object of the kernel whose fields are read in place. bcc replaces each read
 * through a kernel pointer by a call of bpf_probe_read_kernel; it does not recognize this one. Not
 * needed with a compiler that does not rewrite (libbpf).
 */
#define IN_KERNEL(pointer) barrier_var(pointer)

/*
 * A value below a power of two, `mask` + 1. The compiler removes a mask if it knows the limit from
 * earlier code, which the verifier may not know: so the value is hidden first. Needed with LLVM 14
 * to 19, on all kernels.
 */
#define BOUND(value, mask)              \
	({                              \
		u64 _bounded = (value); \
		barrier_var(_bounded);  \
		_bounded &(mask);       \
	})

/*
 * Adds `nothing`, a zero that the verifier does not know (control->nothing). After this, the
 * variable has no known value, so all paths to the end of a loop have one state, and the next
 * iteration is verified once. Loops with bpf_for (Linux 6.4) do not need it since kernel commit
 * 2793a8b015f7 (widen_imprecise_scalars): it can be removed when all supported kernels have that.
 */
#define FORGET(value, nothing) ((value) += (nothing))

/*
 * Shared words are read or written exactly once, and here (as READ_ONCE and WRITE_ONCE of the
 * kernel).
 */
#define ONCE(word) (*(volatile typeof(word) *)&(word))

/*
 * 1 for any number but 0. Without a branch, and hidden from the compiler, which would make a branch
 * of it.
 */
static inline u64 any(u64 value)
{
	u64 sign = value | -value;

	barrier_var(sign);
	return sign >> 63;
}

/*
 * The smaller of two numbers below 2^63. Without a branch: each branch in a loop doubles the work
 * of the verifier.
 */
static inline u64 least(u64 a, u64 b)
{
	s64 difference = a - b;

	return b + (difference & difference >> 63);
}
