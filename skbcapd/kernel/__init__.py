"""The program in the kernel: records shared with it, BTF, compiler, loader, maps, shared segments."""
