"""The kernel program: records shared with it, BTF, compiler, loader, maps, shared segments."""
