"""Records shared by kernel and Python: two handmade kernels, old and new, compared with the text of
the C side.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import pytest

from skbcapd.capture.record import VIA
from skbcapd.errors import BtfError, KernelError
from skbcapd.kernel import abi, compiler, loader, segments
from skbcapd.kernel.abi import Geometry
from skbcapd.kernel.btf import Btf
from skbcapd.pcapng import blocks, comment
from tests.support import blob

Fields = dict[str, int | tuple[int, int]]
Structs = dict[str, tuple[int, Fields]]

# As on Debian's 6.1 and on 6.18 (x86-64): a byte offset, or (bit offset, width).
COMMON: Structs = {
    "page": (64, {}),
    "pt_regs": (
        168,
        {"di": 112, "orig_ax": 120, "dx": 96, "bx": 40, "cx": 88, "regs": 0, "orig_x0": 272, "syscallno": 280},
    ),
    "thread_info": (24, {"flags": 0, "status": 16}),
    "task_struct": (
        9600,
        {
            "thread_info": 0,
            "stack": 32,
            "flags": 44,
            "start_boottime": 2500,
            "group_leader": 2400,
            "comm": 3000,
            "files": 3032,
            "pid": 2460,
            "tgid": 2464,
            "nvcsw": 2480,
        },
    ),
    "timespec64": (16, {}),
    "files_struct": (704, {"count": 0, "fdt": 32}),
    "file": (232, {"f_count": 56, "private_data": 200}),
    "fdtable": (56, {"max_fds": 0, "fd": 8}),
    "net_device": (  # type: ignore[dict-item] # mypy infers the joined literals alone
        2688,
        {"ifindex": 224, "flags": 176, "nd_net": 264, "name": 288, "type": 320, "dev_addr": 1000, "addr_len": 330}
        | {"rtnl_link_ops": 400, "adj_list": 408, "ip_ptr": 500, "ip6_ptr": 508, "header_ops": 516, "priv_flags": 180},
    ),
    "header_ops": (56, {"create": 0}),
    "netdev_adjacent": (64, {"dev": 0, "list": 32}),
    "rtnl_link_ops": (224, {"kind": 16}),
    "net": (4096, {"net_cookie": 200, "ns": 144, "ipv4": 512, "hash_mix": 1400}),
    "ns_common": (24, {"inum": 16}),
    "skb_shared_info": (320, {"nr_frags": 2, "gso_size": 4, "frag_list": 8, "frags": 48}),
    "sock_common": (  # type: ignore[dict-item] # the same
        136,
        {"skc_daddr": 0, "skc_rcv_saddr": 4, "skc_hash": 8, "skc_dport": 12, "skc_num": 14, "skc_family": 16}
        | {
            "skc_state": 18,
            "skc_ipv6only": (19 * 8 + 5, 1),
            "skc_net_refcnt": (19 * 8 + 6, 1),
        }
        | {"skc_bound_dev_if": 20, "skc_prot": 40, "skc_net": 48, "skc_v6_daddr": 56, "skc_v6_rcv_saddr": 72}
        | {"skc_listener": 96, "skc_node": 104},
    ),
    "sock": (760, {"sk_socket": 624, "sk_lock": 320, "sk_protocol": 540, "sk_type": 538, "sk_reuseport_cb": 640}),
    "udp_sock": (1200, {"encap_rcv": 1080}),
    "spinlock": (4, {}),
    "inet_sock": (  # type: ignore[dict-item] # the same
        976,
        {"inet_sport": 792, "transparent": (797 * 8 + 2, 1), "freebind": (797 * 8 + 4, 1), "mc_all": (797 * 8 + 5, 1)}
        | {"mc_list": 856, "pinet6": 784},
    ),
    "ipv6_pinfo": (200, {"ipv6_mc_list": 112, "mc_all": (60 * 8 + 3, 1)}),
    "ip_mc_socklist": (48, {"next_rcu": 0, "multi": 8, "sfmode": 20, "sflist": 24}),
    "ip_mreqn": (12, {"imr_ifindex": 8}),
    "ipv6_mc_socklist": (56, {"addr": 0, "next": 24, "sfmode": 20, "sflist": 32}),
    "socket": (128, {"file": 16, "sk": 24}),
    "sock_reuseport": (64, {"num_socks": 18, "socks": 64}),
    "in_device": (300, {"ifa_list": 16, "mc_list": 24}),
    "in_ifaddr": (80, {"ifa_next": 16, "ifa_local": 40}),
    "ip_mc_list": (200, {"next_rcu": 64, "multiaddr": 8}),
    "inet6_dev": (400, {"addr_list": 8, "mc_list": 24}),
    "inet6_ifaddr": (200, {"if_list": 120, "addr": 0}),
    "ifmcaddr6": (200, {"next": 24, "mca_addr": 0}),
    "udp_table": (32, {"hash": 0, "mask": 16}),
    "udp_hslot": (16, {"head": 0}),
    "proto": (500, {"h": 400}),
    "socket_alloc": (768, {"vfs_inode": 128}),
    "inode": (640, {"i_ino": 64}),
}
SK_BUFF: Fields = {
    "next": 0,
    "dev": 16,
    "sk": 24,
    "len": 112,
    "data_len": 116,
    "pkt_type": (128 * 8, 3),
    "ip_summed": (128 * 8 + 5, 2),
    "encapsulation": (129 * 8 + 4, 1),
    "csum_start": 136,
    "csum_offset": 138,
    "skb_iif": 144,
    "vlan_proto": 152,
    "vlan_tci": 154,
    "inner_network_header": 174,
    "transport_header": 178,
    "network_header": 180,
    "mac_header": 182,
    "protocol": 184,
    "end": 188,
    "head": 192,
    "data": 200,
}
OLD: Structs = COMMON | {
    "sk_buff": (232, SK_BUFF | {"vlan_present": (130 * 8 + 7, 1)}),
    "bio_vec": (16, {"bv_page": 0, "bv_len": 8, "bv_offset": 12}),
    "skb_frag": (8, {"unrelated": 0}),
    "netns_ipv4": (800, {"unrelated": 0}),
}
NEW: Structs = COMMON | {
    "sk_buff": (
        232,
        SK_BUFF
        | {"vlan_all": 152, "csum_not_inet": (129 * 8, 1), "tc_skip_classify": (131 * 8 + 2, 1)}
        | {"_nfct": 104},
    ),
    "tcp_sock": (2400, {"is_mptcp": 2252}),
    "tcp_request_sock": (312, {"is_mptcp": 273}),
    "mptcp_subflow_request_sock": (376, {"mp_join": (312 * 8 + 1, 1)}),
    "nf_conn": (248, {"tuplehash": 16, "status": 128, "timeout": 8}),
    "nf_conntrack_tuple_hash": (56, {"tuple": 16}),
    "nf_conntrack_tuple": (40, {"dst": 20}),
    "nf_inet_addr": (16, {}),
    "netns_ipv4": (800, {"udp_table": 64}),
    "vlan_info": (200, {"grp": 8}),
    "vlan_group": (152, {"vlan_devices_arrays": 24}),
    "net": (4096, {"net_cookie": 200, "ns": 144, "ipv4": 512, "hash_mix": 1400, "nf": 2000, "bpf": 2200}),
    "net_device": (
        2688,
        COMMON["net_device"][1]
        | {"tcx_ingress": 8, "tcx_egress": 16, "nf_hooks_ingress": 24, "nf_hooks_egress": 32}
        | {"xdp_prog": 40, "vlan_info": 48},
    ),
    "netns_nf": (200, {"hooks_ipv4": 40, "hooks_ipv6": 80, "defrag_ipv4_users": 120, "defrag_ipv6_users": 124}),
    "nf_hook_entries": (8, {"num_hook_entries": 0, "hooks": 8}),
    "nf_hook_entry": (16, {}),
    "nf_hook_ops": (48, {"hook_ops_type": (57 * 8, 8), "priority": 36}),
    "netns_bpf": (16, {"run_array": 0}),
    "mini_Qdisc": (56, {"filter_list": 0}),
    "tcf_proto": (120, {"next": 0, "ops": 40}),
    "tcf_proto_ops": (200, {"kind": 16}),
    "bpf_mprog_entry": (520, {"parent": 512}),
    "tcx_entry": (1100, {"miniq": 0, "bundle": 8}),
    "skb_frag": (16, {"netmem": 0, "len": 8, "offset": 12}),
    "bio_vec": (32, {"bv_page": 8, "bv_len": 16, "bv_offset": 24}),
}


def definitions(structs: Structs, *functions: str) -> dict[str, int | str]:
    """The definitions for a handmade kernel."""
    return abi.definitions(Btf(blob.kernel(structs, *functions)), Geometry(4))


def with_field(name: str, field: str, at: int | tuple[int, int] | None) -> Structs:
    """The new kernel with one field at another offset, or without it."""
    size, fields = NEW[name]
    return NEW | {name: (size, {key: value for key, value in (fields | {field: at}).items() if value is not None})}


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        ("x86_64", {"ARGUMENT_0": -8, "ARGUMENT_2": -24, "ARGUMENT_0_COMPAT": -80, "ARGUMENT_1_COMPAT": -32}),
        ("aarch64", {"ARGUMENT_0": -8, "ARGUMENT_2": -264, "ARGUMENT_0_COMPAT": -8, "ARGUMENT_1_COMPAT": -272}),
    ],
)
def test_where_arguments_of_a_system_call_stand(
    machine: str, expected: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The arguments of a system call are at fixed distances from its number, on each processor."""
    monkeypatch.setattr("skbcapd.kernel.abi.platform.machine", lambda: machine)
    found = definitions(NEW)

    assert {name: found[f"CALL_{name}"] for name in expected} == expected


@pytest.mark.parametrize(
    ("machine", "structs", "functions", "expected"),
    [
        ("x86_64", NEW, (), {}),
        ("aarch64", NEW, ("do_softirq_own_stack",), {}),
        ("aarch64", NEW, (), {"NO_PROOF": 1}),
        ("x86_64", with_field("task_struct", "softirq_disable_cnt", 2700), (), {"TASK_SOFTIRQS": 2700}),
        ("aarch64", with_field("task_struct", "softirq_disable_cnt", 2700), (), {"TASK_SOFTIRQS": 2700}),
    ],
)
def test_softirqs_are_told_from_process_context(
    machine: str,
    structs: Structs,
    functions: tuple[str, ...],
    expected: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Softirqs have their own stack, or the task counts them (PREEMPT_RT); else nothing proves process context."""
    monkeypatch.setattr("skbcapd.kernel.abi.platform.machine", lambda: machine)
    found = definitions(structs, *functions)

    assert {name: found[name] for name in ("NO_PROOF", "TASK_SOFTIRQS") if name in found} == expected


@pytest.mark.parametrize(
    ("structs", "expected"),
    [
        (NEW, {"SKB_SPAN": 208, "SKB_LEN": 112, "SKB_DATA": 200, "SKB_NEXT": 0}),
        (NEW, {"SKB_IP_SUMMED_BYTE": 128, "SKB_IP_SUMMED_SHIFT": 5, "SKB_IP_SUMMED_WIDTH": 2, "SKB_VLAN_ALL": 152}),
        (NEW, {"FRAGMENT_SIZE": 16, "FRAGMENT_PAGE": 0, "FRAGMENT_LEN": 8, "FRAGMENT_OFFSET": 12}),
        (NEW, {"NET_INUM": 160, "PAGE_STRUCT_SIZE": 64, "SEGMENT_COUNT": 4}),
        (OLD, {"SKB_VLAN_PRESENT_BYTE": 130, "SKB_VLAN_PRESENT_SHIFT": 7, "SKB_VLAN_PRESENT_WIDTH": 1}),
        (OLD, {"FRAGMENT_SIZE": 16, "FRAGMENT_PAGE": 0, "FRAGMENT_LEN": 8, "FRAGMENT_OFFSET": 12}),
        (NEW, {"SOCK_TRANSPARENT_BYTE": 797, "SOCK_TRANSPARENT_SHIFT": 2, "SOCK_FREEBIND_SHIFT": 4}),
        (NEW, {"SOCK_LOCKED": 324}),
        (NEW | {"slock_owned": (8, {"owned": 0, "slock": 4})}, {"SOCK_LOCKED": 320}),
        (with_field("sk_buff", "data", 248), {"SKB_SPAN": 256}),
        (with_field("skb_shared_info", "frag_list", 16), {"SHARED_SPAN": 24}),
    ],
)
def test_offsets_become_definitions(structs: Structs, expected: dict[str, int]) -> None:
    """The offsets of an old and of a new kernel become definitions, with renamed fields under both
    names.
    """
    found = definitions(structs)

    assert {name: found.get(name) for name in expected} == expected


def test_old_and_new_kernels_store_a_vlan_tag_differently() -> None:
    """Only one of the two ways to recognize a VLAN tag is defined; otherwise the program would use
    the wrong one.
    """
    assert "SKB_VLAN_ALL" not in definitions(OLD)
    assert not any(name.startswith("SKB_VLAN_PRESENT") for name in definitions(NEW))


def test_the_table_of_udp_sockets_is_the_namespace_s_or_all_s() -> None:
    """The offset in the namespace is only defined for a kernel with one UDP table per namespace."""
    assert "NET_UDP_TABLE" not in definitions(OLD)
    assert definitions(NEW)["NET_UDP_TABLE"] == 512 + 64


def test_missing_kernel_features_guard_nothing() -> None:
    """For a kernel without netfilter, BPF in namespaces or tc, their offsets are not defined;
    otherwise all are.
    """
    kinds = ("NET_HOOKS", "NET_BPF", "NET_DEFRAG", "DEV_TC", "DEV_NF", "DEV_XDP", "CONNTRACK", "TUPLE")
    names = {name for name in definitions(NEW) if name.startswith((*kinds, "SKB_CONNTRACK"))}
    guarded = {"NET_HOOKS_V4", "NET_HOOKS_V6", "NET_BPF", "DEV_TC_INGRESS", "DEV_NF_INGRESS", "DEV_XDP"}
    users = {"NET_DEFRAG_USERS_V4", "NET_DEFRAG_USERS_V6", "SKB_CONNTRACK"}
    tracked = {f"CONNTRACK_{field}" for field in ("TUPLES", "STATUS", "TIMEOUT")}
    tuples = {f"TUPLE_{field}" for field in ("HASH_SIZE", "HASH_TUPLE", "TO", "PORT")}

    assert names == guarded | users | tracked | tuples | {"DEV_TC_EGRESS", "DEV_NF_EGRESS"}
    assert not names & definitions(OLD).keys()
    older = with_field("net_device", "tcx_ingress", None)
    older["net_device"][1]["miniq_ingress"] = 48
    assert definitions(older)["DEV_TC_INGRESS"] == 48


def test_memory_is_read_in_place_if_the_kernel_allows_it(tmp_path: Path) -> None:
    """Only on a kernel that has the function and the JIT is it called."""
    old, new = Btf(blob.kernel(OLD)), Btf(blob.kernel(NEW, "other", "bpf_rdonly_cast"))
    jit = tmp_path / "bpf_jit_enable"
    types = {"WORDS": "timespec64", "SKB": "sk_buff", "DEVICE": "net_device", "FILES": "files_struct"}
    names = {"RDONLY_CAST": new.function("bpf_rdonly_cast")}
    names |= {f"{name}_TYPE": new.number(of) for name, of in types.items()}

    assert abi._in_place(new, jit) == names
    assert len(set(names.values())) == 5
    assert abi._in_place(old, jit) == {}
    jit.write_text("1\n")
    assert abi._in_place(new, jit) == names
    jit.write_text("0\n")
    assert abi._in_place(new, jit) == {}


@pytest.mark.parametrize(
    ("structs", "error", "message"),
    [
        (with_field("sk_buff", "head", None), BtfError, "no field head"),
        (with_field("sk_buff", "data", 256), KernelError, "in the first 264 bytes; expected at most 256"),
        (with_field("sock_common", "skc_node", 184), KernelError, "in the first 200 bytes; expected at most 192"),
        (with_field("skb_shared_info", "frag_list", 64), KernelError, "in the first 72 bytes; expected at most 64"),
        ({name: NEW[name] for name in NEW if name != "page"}, BtfError, "struct page is not"),
    ],
)
def test_an_unsupported_kernel_layout_is_refused(structs: Structs, error: type[Exception], message: str) -> None:
    """A kernel with missing fields, or with fields out of reach, is an error."""
    with pytest.raises(error, match=message):
        definitions(structs)


def test_the_running_kernel() -> None:
    """The layout of the running kernel is supported."""
    found = abi.definitions(Btf.load(), Geometry(32))

    assert found["SEGMENT_COUNT"] == 32
    texts = {"SYSCALL_NUMBER_TYPE", "IS_ETHERNET(type)", "IS_RAW(type)"}
    assert all(type(value) is int for name, value in found.items() if name not in texts)


@pytest.mark.parametrize(
    ("size", "count"),
    [(0, 4), ((1 << 21) - 1, 4), (4 << 20, 4), (16 << 20, 8), ((32 << 20) - 1, 8), (64 << 20, 32), (4 << 30, 2048)],
)
def test_geometry(size: int, count: int) -> None:
    """A buffer has the largest power of two of segments that fits, and at least four."""
    assert Geometry.for_buffer(size) == Geometry(count)


def test_sizes_that_the_program_relies_on() -> None:
    """Masks need powers of two; records and segments need the alignment of their words and of
    pages.
    """
    masked = (abi.SEGMENT_SIZE, abi.CAPTURE_MAX, comment.OPTIONS_MAX, abi.UPCALLS_LISTED)
    assert all(size & size - 1 == 0 for size in masked)
    assert abi.SEGMENT_STRIDE % 8 == abi.LISTING % 8 == 0
    records = (abi.KEY, abi.LABEL, abi.DEVICE_KEY, abi.DEVICE, abi.MEASUREMENT, abi.COUNTER_ROW)
    assert all(record.size % 8 == 0 for record in records)
    largest = 28 + abi.CAPTURE_MAX + max(comment.OPTIONS_MAX, abi.UPCALL.size) + 4
    assert largest <= abi.SEGMENT_SIZE
    assert abi.SLACK >= abi.CAPTURE_MAX


# The C side, as text.


def c_text(name: str) -> str:
    """A file of bpf/ without its comments."""
    return re.sub(r"/\*.*?\*/", "", (compiler.SOURCES / name).read_text(), flags=re.DOTALL)


PROGRAM = "\n".join(c_text(path.name) for path in sorted(Path(compiler.SOURCES).glob("*.[ch]")))


def used(text: str) -> set[str]:
    """All names in capitals that the C text uses; for names that a macro pastes together, the
    results.
    """
    macros = {}
    for line, name, parameters, body in re.findall(r"(#define\s+(\w+)\(([^)]*)\)((?:.*\\\n)*.*))", text):
        if "##" in body:
            macros[name] = [parameter.strip() for parameter in parameters.split(",")], body
            text = text.replace(line, "")

    def expand(call: re.Match[str]) -> str:
        parameters, body = macros[call[1]]
        values = dict(zip(parameters, (value.strip() for value in call[2].split(",")), strict=True))
        return re.sub(r"\s*##\s*", "", re.sub(r"[A-Za-z]\w*", lambda word: values.get(word[0], word[0]), body))

    for _ in range(2):  # one macro can use another
        text = re.sub(rf"\b({'|'.join(macros)})\(([^()]*)\)", expand, text)
    return set(re.findall(r"\b[A-Z][A-Z0-9_]+\b", text))


def test_every_definition_is_used_and_every_use_defined() -> None:
    """Each name in capitals in bpf/ is defined there, by bcc, or by abi.py; and abi.py defines no
    unused name.
    """
    defined_there = set(re.findall(r"#define\s+(\w+)", PROGRAM))
    for members in re.findall(r"enum \w+ \{(.*?)\}", PROGRAM, re.DOTALL):
        defined_there |= set(re.findall(r"\b[A-Z]\w+", members))
    by_bcc = {"BPF_F_TABLE", "BPF_TABLE", "BPF_ARRAY", "BPF_PERCPU_ARRAY", "BPF_RINGBUF_OUTPUT", "BPF_F_MMAPABLE"}
    by_bcc |= {"BPF_PROG_ARRAY"}
    by_compiler = {"KPROBE", "TAP", "CPUS", "WINDOW", "CALL_RDONLY_CAST"}
    by_compiler |= {"DROPS_MAX", "DROP_REASON", "DROP_RECEIVER", "SKB_REFDST", "DST_DEV"}  # see kernel/drops.py
    by_compiler |= {"DROPS_CAPTURED", "DROP_LOCATION", "DROPS_OF_OTHERS_MAX", "DROP_TC_EGRESS", "DROP_NETFILTER_DROP"}
    by_kernel = {"NO_PROOF"}  # on arm64 before Linux 6.1
    real_time = definitions(with_field("task_struct", "softirq_disable_cnt", 2700))
    names = definitions(OLD).keys() | definitions(NEW, "bpf_rdonly_cast").keys() | real_time.keys() | by_kernel
    given = {name.removesuffix("(type)") for name in names}

    assert used(PROGRAM) - defined_there - by_bcc - by_compiler - {"NULL"} - given == set()
    assert given - used(PROGRAM) == set()


def record(name: str) -> str:
    """A C struct as the format of `struct`; without padding between members."""
    found = re.search(rf"struct {name} {{(.*?)}};", PROGRAM, re.DOTALL)
    assert found, name
    sizes = definitions(NEW)
    text = ""
    for kind, member, length in re.findall(r"(u8|u16|u32|u64|struct \w+)\s+(\w+)\s*(?:\[(\w+)\])?;", found[1]):
        count = int(sizes.get(length, length or 1))
        if kind == "u8":
            text += "x" * count if member == "spare" else f"{count}s" if length else "B"
        elif (kind, length) == ("u64", "2"):  # names and addresses, compared as words
            text += "16s"
        else:
            text += record(kind[7:]) * count if " " in kind else {"u16": "H", "u32": "I", "u64": "Q"}[kind] * count
    return text


RECORDS: dict[str, abi.Record[Any] | struct.Struct] = {
    "key": abi.KEY,
    "label": abi.LABEL,
    "device_key": abi.DEVICE_KEY,
    "device": abi.DEVICE,
    "counters": abi.COUNTER_ROW,
    "upcall": abi.UPCALL,
    "user": abi.USER,
    "owner": abi.OWNER,
    "flow": abi.FLOW,
    "group": abi.GROUP,
    "fragment": abi.FRAGMENT,
    "descendant": abi.DESCENDANT,
    "measurement": abi.MEASUREMENT,
    "block_head": blocks.PACKET_HEAD,
    "dropped": abi.DROPPED,
}
OTHERS = {"control", "segment", "segment_state"}  # in other tests


@pytest.mark.parametrize("name", RECORDS)
def test_records_have_the_members_of_the_c_side(name: str) -> None:
    """The format of each record is that of its C struct, member by member, and so are the names."""
    python = RECORDS[name]
    expected = re.sub(r"(\d+)([QI])", lambda run: run[2] * int(run[1]), python.format.lstrip("<"))
    assert record(name) == expected
    if isinstance(python, abi.Record):
        names = [member for member in members(name) if member != "spare" or "x" not in python.format]
        assert list(python.members._fields) == names


@pytest.mark.parametrize("name", [name for name, found in RECORDS.items() if isinstance(found, abi.Record)])
def test_some_members_are_read_alone(name: str) -> None:
    """A layout of some members has their values, and the size of the record."""
    record = RECORDS[name]
    assert isinstance(record, abi.Record)
    data = bytes(range(1, 252))[: record.size].ljust(record.size, b"\xa5")
    whole = record.unpack(data)._asdict()
    for names in (record.members._fields[::2], record.members._fields[-1:], record.members._fields):
        part = record.only(*names)
        assert part.size == record.size
        assert part.unpack(data) == tuple(whole[each] for each in names)


def test_every_shared_struct_and_enum_is_compared() -> None:
    """Each struct and each enum of layout.h is compared with Python by a test here."""
    text = c_text("layout.h")
    structs, enums = (set(re.findall(rf"^{kind} (\w+) \{{", text, re.MULTILINE)) for kind in ("struct", "enum"))

    assert structs == (RECORDS.keys() | OTHERS) - {"measurement"}  # which is in measure.h
    assert enums == {"direction", "via", "counter", "sleep"}


def members(name: str) -> list[str]:
    """The names of the members of a C struct, including those of nested structs."""
    found = re.search(rf"struct {name} {{(.*?)}};", PROGRAM, re.DOTALL)
    assert found, name
    kinds = re.findall(r"(u8|u16|u32|u64|struct \w+)\s+(\w+)\s*(?:\[\w+\])?;", found[1])
    return [one for kind, member in kinds for one in (members(kind[7:]) if " " in kind else [member])]


def test_words_of_control_have_the_offsets_of_the_c_side() -> None:
    """Each word of struct control has the index of abi.py, and the states of segments follow."""
    body = re.search(r"struct control \{(.*?)\};", PROGRAM, re.DOTALL)
    assert body
    index = 0
    for member, length in re.findall(r"u64 (\w+)(?:\[(\w+)\])?;", body[1]):
        if not member.startswith("pad") and member != "nothing":
            assert getattr(abi, member.upper()) == index, member
        index += int(length or 1)
    assert index == abi.STATES


def test_segments_have_the_layout_of_the_c_side() -> None:
    """The members of a segment, and the words of its state, are at the offsets of the reader."""
    body = re.search(r"struct segment \{(.*?)\};", PROGRAM, re.DOTALL)
    assert body
    assert re.findall(r"(\w+)\s+(\w+)\s*\[(.*?)\];", body[1]) == [
        ("u8", "bytes", "SEGMENT_SIZE + SLACK"),
        ("u64", "upcall_at", "UPCALLS_LISTED"),
    ]
    assert (abi.LISTING, abi.SEGMENT_STRIDE) == (
        abi.SEGMENT_SIZE + abi.SLACK,
        abi.SEGMENT_SIZE + abi.SLACK + 8 * abi.UPCALLS_LISTED,
    )
    words = members("segment_state")
    assert [words.index(name) for name in ("used", "committed", "upcalls")] == [
        *(segments._USED, segments._COMMITTED, segments._UPCALLS)
    ]
    assert len(words) == len(record("segment_state")) == abi.STATE_WORDS


def enum(name: str) -> list[str]:
    """The members of a C enum."""
    body = re.search(rf"enum {name} {{(.*?)}}", PROGRAM, re.DOTALL)
    assert body
    return re.findall(r"[A-Z]\w+", body[1])


def test_stages_have_one_word_each() -> None:
    """Each stage has one word and one number in C and in Python, a function stage_WORD, and a
    program per direction.
    """
    assert [f"STAGE_{stage.name}" for stage in abi.Stage] == enum("stage")
    assert [*abi.Stage] == list(range(len(abi.Stage)))
    assert re.search(rf"#define STAGES {len(abi.Stage)}\n", PROGRAM)
    for stage in abi.Stage:
        word = stage.name.lower()
        for direction in ("out", "in"):
            program = re.search(rf"int {word}_{direction}\(void \*ctx\)\n{{\n\tstage_(\w+)\(", PROGRAM)
            assert program, (stage, direction)
            assert program[1] == word


@pytest.mark.parametrize("stages", [tuple(abi.Stage), (abi.Stage.FILTER,), loader._UNFILTERED])
def test_a_hook_s_stages_are_called_through_the_map_of_its_direction(stages: tuple[abi.Stage, ...]) -> None:
    """The programs after each hook for frames are those of its direction; other hooks have none."""
    hooks = [loader.Hook("tracepoint", "any", name) for name in ("on_transmit", "on_receive", "on_used")]
    found = loader._behind(hooks, stages)

    assert {hook.function: place for hook, place in found.items()} == {
        f"{stage.name.lower()}_{direction}": (f"stages_{direction}", stage)
        for stage in stages
        for direction in ("out", "in")
    }


def test_numbers_mean_the_same_on_both_sides() -> None:
    """Counters, `via` and block types have the same order and values in C and in Python."""
    counters = [name.lower().removeprefix("lost_") for name in enum("counter")]
    assert counters == list(abi.COUNTERS)
    ways = [name.lower().removeprefix("via_") for name in enum("via")]
    assert ways[1:-1] == list(VIA)[1:]
    assert [getattr(abi, f"VIA_{way.upper()}") for way in ways] == list(range(len(ways)))
    assert {name.lower().removeprefix("field_"): code for code, name in enumerate(enum("field"))} == {
        "none": 0,
        **abi.COMMENT_FIELDS,
    }
    assert [f"SLEEP_{sleep.name}" for sleep in abi.Sleep] == enum("sleep")
    assert [*abi.Sleep] == [0, 1, 2]
    assert re.search(rf"enum direction \{{ IN = {blocks.DIRECTION_IN}, OUT = {blocks.DIRECTION_OUT} \}}", PROGRAM)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BLOCK_PACKET", blocks.PACKET),
        ("BLOCK_UPCALL", abi.BLOCK_UPCALL),
        ("BLOCK_CUT", abi.BLOCK_CUT),
        ("CUT_OPTIONS_BIT", abi.CUT_OPTIONS_BIT),
        ("BLOCK_DROP", abi.BLOCK_DROP),
        ("DROPS_ETHERNET", abi.DROPS_ETHERNET),
        ("DROPS_RAW", abi.DROPS_RAW),
        ("IS_GROUP", abi.IS_GROUP),
        ("MADE_BY_PYTHON", abi.MADE_BY_PYTHON),
        ("UNKNOWN_SELF", abi.UNKNOWN_SELF),
        ("OPT_COMMENT", blocks.OPT_COMMENT),
        ("EPB_FLAGS", blocks.EPB_FLAGS),
        ("EPB_PACKETID", blocks.EPB_PACKETID),
        ("EPB_PROCESSID_THREADID", blocks.EPB_PROCESSID_THREADID),
        ("FIELD_BITS", abi.FIELD_BITS),
        *((f"NAMING_{flag.name}", flag) for flag in abi.Naming),
        ("EPB_UNICAST", blocks.RECEPTION_UNICAST),
        ("EPB_MULTICAST", blocks.RECEPTION_MULTICAST),
        ("EPB_BROADCAST", blocks.RECEPTION_BROADCAST),
        ("EPB_PROMISCUOUS", blocks.RECEPTION_PROMISCUOUS),
        ("EPB_CHECKSUM_NOT_READY", blocks.CHECKSUM_NOT_READY),
        ("EPB_SEGMENTATION_OFFLOADED", blocks.SEGMENTATION_OFFLOADED),
    ],
)
def test_named_numbers_are_the_same_on_both_sides(name: str, value: int) -> None:
    """Types of blocks, bits of epb_flags, and numbers that mean something else than a count have the same
    values in C and in Python.
    """
    assert constant(name) == value


def constant(name: str) -> int:
    """The value of a C macro without arguments: a number, another macro, or a shift of both; ~ is of 64 bits."""
    found = re.search(rf"#define {name}\s+(.*)", PROGRAM)
    assert found, name
    left, *right = (
        constant(word) if word[0].isalpha() else ~int(word[1:], 0) % (1 << 64) if word[0] == "~" else int(word, 0)
        for word in re.sub(r"ULL\b", "", found[1]).strip().strip("()").split(" << ")
    )
    return left << sum(right)
