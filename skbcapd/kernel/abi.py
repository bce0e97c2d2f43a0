"""What the kernel program and Python share: sizes of the shared memory, offsets of kernel fields,
records of the maps.

In: the BTF of the kernel, and the wanted sizes. Out: the `-D` definitions for compiling bpf/, and
the Python view of every shared record.

The rule: each number is defined once. The C code gets it from here as a definition. When the
program is loaded, the sizes of the records on both sides are compared, so a change on one side only
is noticed.
"""

from __future__ import annotations

import contextlib
import enum
import os
import platform
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from skbcapd.errors import KernelError
from skbcapd.kernel.btf import Btf
from skbcapd.pcapng.comment import OPTIONS_MAX
from skbcapd.pcapng.interface import DISK_BLOCK
from skbcapd.pcapng.link_type import ETHERNET, RAW, device_types

SEGMENT_SIZE = 1 << 21
CAPTURE_MAX = 1 << 18  # longest captured frame; its block fits into any segment
UPCALLS_LISTED = 1024
SLACK = CAPTURE_MAX + 4096  # after each segment: for the verifier, a write may start at the last byte of the segment
LISTING = SEGMENT_SIZE + SLACK  # offset of the list of local blocks
SEGMENT_STRIDE = LISTING + 8 * UPCALLS_LISTED
LABELS_MAX = 16384
OWNERS_MAX = 65536
FLOWS_MAX = 65536
HOLDERS_MAX = 65536
GROUP_MAX = 32  # candidate sockets of one packet; at least UDP_CHAIN_MAX
GROUPS_MAX = 1024
SHARED_AT_USE = 1  # time of an owner: other processes may have had the socket open
OPEN_IN_SEVERAL = 1 << 62  # marks the inode of a socket that several processes may have open
IS_GROUP, MADE_BY_PYTHON = 1 << 63, 1 << 62  # mark numbers in place of an inode: of a group; of one made in resolver.py
DESCENDANTS_MAX = 16384  # processes
FORKS_MAX = 16384  # processes that listen, or use datagrams
FRAGMENTS_MAX = 4096  # packets in fragments whose first fragment has arrived
SIGHTINGS = 8192  # packets that can be between two interfaces at the same time
SIGHTING_PLACES = 8  # interfaces on which one packet can be recognized
UDP_CHAIN_MAX = 32  # sockets in one slot of the kernel's table
ADDRESSES_MAX = 64  # addresses of an interface, or its multicast groups
JOINED_MAX = 32  # multicast groups of a socket: net.ipv4.igmp_max_memberships is 20
ABOVE_MAX = 16  # interfaces on top of one
HOOKS_MAX = 8  # hooks of netfilter at one point, for one family
DESCRIPTORS_MAX = 1024  # descriptors of a process that are checked if its system call names no socket
DEVICES_MAX = 4096
TGIDS = 4 << 20  # process ids: PID_MAX_LIMIT of include/linux/threads.h
SLOTS = 4096
PIECES_MAX = 130  # linear parts and fragments of one frame: at most 45 fragments, or a chain of 64 skbs with two each
CANDIDATES = 128  # GiB of address space that one marker packet tries

BLOCK_UPCALL = 0x80000001
BLOCK_CUT = 0x80000002  # with the length of the options << CUT_OPTIONS_BIT
CUT_OPTIONS_BIT, CUT_OPTIONS_MASK = 8, 0xFFFF
BLOCK_DROP = 0x80000003
DROPS_ETHERNET, DROPS_RAW = 0xFFFFFFFF, 0xFFFFFFFE  # numbers of the interfaces of dropped packets

# struct control
CURSOR = 0
TAIL, SLEEPING, WAKE_AT, CLOCK_OFFSET, PAGE_BASE, ADDRESS_BASE, ENTRY_REGS, STACK_SIZE, SNAPLEN, DEVICE_FILTER = range(
    8, 18
)
UDP_TABLE, DEDUP, FILL, LATE, OWN_NET, FILTERED, GENERATION, WIRED, HEADERS_ONLY, DROPS_RATE, NAMING, PLACED = range(
    19, 31
)
VIA_TEXTS = 32  # two words for each enum via below VIA_GROUP
QUESTIONS = 48
STATES = 56  # words before the first struct segment_state
STATE_WORDS = 4  # used, committed, upcalls, begin and placed

UNKNOWN_SELF = (1 << 64) - 1  # tgid of a measurement

# enum via of bpf/layout.h; its enum direction is defined in pcapng.blocks
VIA_CURRENT, VIA_SOCKET, VIA_FLOW, VIA_INODE, VIA_PATH = range(5)
VIA_KERNEL, VIA_FORWARDED, VIA_UNKNOWN, VIA_GROUP, VIA_UNRESOLVED = range(5, 10)


class Stage(enum.IntEnum):
    """enum stage of bpf/skbcapd.bpf.c: the index of a stage's program in the map of its direction."""

    GUARD = 0
    FILTER = 1
    PROCESS = 2
    BLOCK = 3
    FRAME = 4
    PAYLOAD = 5
    LABEL = 6


class Naming(enum.IntFlag):
    """NAMING_* of bpf/label.h: which labels the program makes. Below them, FIELD_BITS for each field of the comment."""

    ON = 1 << 16
    VIA = 1 << 17
    DIFFERS = 1 << 18


FIELD_BITS = 4
COMMENT_FIELDS = {"comm": 1, "pid": 2, "tgid": 3, "process": 4}
"""enum field of bpf/label.h: the fields of a comment that the program can write."""


class Sleep(enum.IntEnum):
    """enum sleep of bpf/layout.h: the packet that wakes Python."""

    NOT = 0
    UNTIL_PACKET = 1
    UNTIL_UPCALL = 2


COUNTERS = (
    *("seen", "delivered", "wire_bytes", "filtered", "full", "contended", "start", "duplicate"),
    *("other_interfaces", "unattributed", "limited", "labels"),
)

Members = TypeVar("Members", bound=NamedTuple)


class Record(Generic[Members]):
    """A record shared with the kernel program: the names of its members, in the order of the C
    struct, and its layout.

    Args:
        members: the names.
        layout: in the syntax of `struct`, little endian, with one value for each name.
    """

    def __init__(self, members: type[Members], layout: str) -> None:
        self.members = members
        self._struct = struct.Struct(layout)
        self.format, self.size = self._struct.format, self._struct.size

    def pack(self, *values: object) -> bytes:
        """Pack the members, in their order."""
        return self._struct.pack(*values)

    def unpack(self, data: bytes | memoryview, offset: int = 0) -> Members:
        """Unpack the record at an offset."""
        return self.members._make(self._struct.unpack_from(data, offset))

    def only(self, *names: str) -> struct.Struct:
        """The layout of some of the members: the bytes of the others are skipped."""
        members, layout = iter(self.members._fields), "<"
        for code in re.findall(r"\d*[a-zA-Z]", self.format):
            is_skipped = code[-1] == "x" or next(members) not in names
            layout += f"{struct.calcsize('<' + code)}x" if is_skipped else code
        return struct.Struct(layout)


class Key(NamedTuple):
    """struct key of bpf/layout.h: packets with the same label."""

    net: int
    ifindex: int
    direction: int
    tgid: int
    tid: int
    start: int
    via: int
    linked: int


class Label(NamedTuple):
    """struct label: the options for packets of a key."""

    comm: bytes
    device: bytes
    process: bytes
    interface_id: int
    slot: int
    snaplen: int
    filter: int
    generation: int
    options_len: int
    flags_at: int
    headers_only: int
    options: bytes


class DeviceKey(NamedTuple):
    """struct device_key: an interface and a direction."""

    net: int
    ifindex: int
    direction: int


class Device(NamedTuple):
    """struct device: the row of counters of an interface, and whether it is excluded."""

    name: bytes
    slot: int
    unwanted: int
    interface_id: int = 0
    generation: int = 0


class User(NamedTuple):
    """struct user: a thread that uses a socket."""

    tgid: int
    tid: int
    start: int
    comm: bytes
    process: bytes


class Owner(NamedTuple):
    """struct owner: the last user of a socket, and what identifies the socket.

    In the map `owners`, `time` is when this was learned, in ns since boot, or SHARED_AT_USE.
    """

    sk: int
    tgid: int
    tid: int
    start: int
    comm: bytes
    process: bytes
    inode: int
    identity: int
    time: int = 0
    conntrack: int = 0
    binding: int = 0


class Flow(NamedTuple):
    """struct flow: addresses and ports of a socket; local is this host."""

    net: int
    local: bytes
    remote: bytes
    local_port: int
    remote_port: int
    protocol: int
    family: int
    on_wire: int = 0


class Descendant(NamedTuple):
    """struct descendant: when a process began, and which one it descends from."""

    start: int
    root: int


class Upcall(NamedTuple):
    """struct upcall: the end of a BLOCK_UPCALL."""

    net: int
    ifindex: int
    direction: int
    tgid: int
    tid: int
    start: int
    via: int
    linked: int
    comm: bytes
    device: bytes
    process: bytes
    mac: bytes
    packet_id: int
    sk: int
    inode: int
    identity: int
    checksum: int
    netns: int
    flags: int
    device_type: int
    addr_len: int
    payload: int


class Dropped(NamedTuple):
    """struct dropped: where and why the kernel dropped the packet of a BLOCK_DROP."""

    location: int
    reason: int
    ifindex: int
    device: bytes


class Measurement(NamedTuple):
    """struct measurement of bpf/measure.h: the first five members are inputs, the others results."""

    tgid: int
    frame_number: int
    candidate: int
    syscall_number: int
    marker: bytes
    packets: int = 0
    page_base: int = 0
    address_base: int = 0
    stack_size: int = 0
    entry_regs: int = 0
    udp_table: int = 0


KEY = Record(Key, "<QIIIIQII")
LABEL = Record(Label, f"<16s16s16sIIIIIIIxxxxQ{OPTIONS_MAX}s")
DEVICE_KEY = Record(DeviceKey, "<QII")
DEVICE = Record(Device, "<16sIIII")
COUNTER_ROW = struct.Struct(f"<{len(COUNTERS)}Q")
USER = Record(User, "<IIQ16s16s")
DESCENDANT = Record(Descendant, "<QQ")
OWNER = Record(Owner, "<QIIQ16s16sQQQQQ")
FLOW = Record(Flow, "<Q16s16sHHBBH")
GROUP = struct.Struct(f"<QQQ{GROUP_MAX}Q{GROUP_MAX}Q")
GROUP_SOCKETS, GROUP_INODES = slice(3, 3 + GROUP_MAX), slice(3 + GROUP_MAX, None)  # of what it unpacks
FRAGMENT = struct.Struct("<Q16s16sIHH")
UPCALL = Record(Upcall, "<QIIIIQII16s16s16s8sQQQQIIIHBxQ")
DROPPED = Record(Dropped, "<QII16s")
MEASUREMENT = Record(Measurement, "<QQQQ32sQQQQQQ")


@dataclass(frozen=True, slots=True)
class Geometry:
    """The size of the shared memory: the number of segments of SEGMENT_SIZE bytes."""

    segment_count: int

    @classmethod
    def for_buffer(cls, size: int) -> Geometry:
        """The largest power of two of segments within `size` bytes, at least 4."""
        return cls(max(4, 1 << ((size // SEGMENT_SIZE).bit_length() - 1) if size >= SEGMENT_SIZE else 4))

    @property
    def size(self) -> int:
        """Bytes for packets."""
        return self.segment_count * SEGMENT_SIZE

    @property
    def control_size(self) -> int:
        """Bytes of struct control."""
        return 8 * (STATES + self.segment_count * STATE_WORDS)

    def record_sizes(self) -> dict[str, tuple[int, int]]:
        """Map name -> (key size, value size), as defined in this module."""
        return {
            "segments": (4, SEGMENT_STRIDE),
            "controls": (4, self.control_size),
            "labels": (KEY.size, LABEL.size),
            "devices": (DEVICE_KEY.size, DEVICE.size),
            "owners": (8, OWNER.size),
            "flows": (FLOW.size, OWNER.size),
            "holders": (8, USER.size),
            "groups": (8, GROUP.size),
            "forks": (4, 8),
            "fragments": (FRAGMENT.size, OWNER.size),
            "descendants": (4, DESCENDANT.size),
            "labelled": (4, 8),
            "counters": (4, COUNTER_ROW.size),
            "measurements": (4, MEASUREMENT.size),
        }


@dataclass(frozen=True, slots=True)
class Machine:
    """What differs between processor architectures."""

    argument_1: str  # field of pt_regs with the first argument of a function
    syscall: str  # field of pt_regs with the number of the system call
    syscall_type: str
    sendfile: int  # its number
    arguments: tuple[tuple[str, int], tuple[str, int]]  # first and third argument: field of pt_regs, offset in it
    calls: Mapping[str, int]  # numbers of system calls with their own rules, see is_at_work_on in bpf/owner.h
    compat: tuple[str, int]  # field of thread_info, and the bit that marks a 32-bit system call
    compat_arguments: tuple[tuple[str, int], tuple[str, int]]  # first and second argument
    compat_calls: Mapping[str, int]
    softirq_stack: str = ""  # kernel function that runs softirqs on the stack of the processor; empty: they always do


_NO_CALL = 0xFFFFFFFF
_SOFTIRQS = "softirq_disable_cnt"  # of task_struct, only with PREEMPT_RT
_ANYWHERE = {"io_uring_enter": 426, "close_range": 436}

# Source: arch/*/include/asm/ptrace.h and thread_info.h, arch/x86/entry/syscalls/*.tbl,
# arch/arm/tools/syscall.tbl, include/uapi/asm-generic/unistd.h.
MACHINES = {
    "x86_64": Machine(
        *("di", "orig_ax", "s64", 40),
        (("di", 0), ("dx", 0)),
        _ANYWHERE
        | {"splice": 275, "io_submit": 209, "close": 3, "dup2": 33, "dup3": 292}
        | {"exit": 60, "exit_group": 231},
        ("status", 1 << 1),  # TS_COMPAT
        (("bx", 0), ("cx", 0)),
        _ANYWHERE
        | {"socketcall": 102, "splice": 313, "io_submit": 248, "close": 6, "dup2": 63, "dup3": 330}
        | {"exit": 1, "exit_group": 252},
    ),
    "aarch64": Machine(
        *("regs", "syscallno", "s32", 71),
        (("orig_x0", 0), ("regs", 16)),
        _ANYWHERE
        | {"splice": 76, "io_submit": 2, "close": 57, "dup2": _NO_CALL, "dup3": 24}
        | {"exit": 93, "exit_group": 94},
        ("flags", 1 << 22),  # TIF_32BIT
        (("orig_x0", 0), ("regs", 8)),
        _ANYWHERE
        | {"socketcall": _NO_CALL, "splice": 340, "io_submit": 246, "close": 6, "dup2": 63, "dup3": 358}
        | {"exit": 1, "exit_group": 248},
        "do_softirq_own_stack",  # since Linux 6.1
    ),
}


class Softirqs(enum.Enum):
    """Where softirqs run: whether the kernel program can tell them from process context."""

    ON_CPU_STACK = "on stacks of their own"
    COUNTED = "in tasks, which count them (PREEMPT_RT)"
    ON_TASK_STACK = "on the stacks of tasks"


def softirqs(btf: Btf) -> Softirqs:
    """Where this kernel runs softirqs.

    Raises:
        BtfError: the types cannot be read.
        KernelError: unknown processor.
    """
    if btf.has("task_struct", _SOFTIRQS):
        return Softirqs.COUNTED
    function = machine().softirq_stack
    is_own = not function or btf.function(function) is not None
    return Softirqs.ON_CPU_STACK if is_own else Softirqs.ON_TASK_STACK


def machine() -> Machine:
    """The constants of this processor architecture.

    Raises:
        KernelError: skbcapd does not know this processor.
    """
    name = platform.machine()
    if name not in MACHINES:
        raise KernelError(f"the processor is {name}; expected one of {', '.join(MACHINES)}")
    return MACHINES[name]


def definitions(btf: Btf, geometry: Geometry) -> dict[str, int | str]:
    """All definitions for compiling bpf/.

    Args:
        btf: types of the running kernel.
        geometry: size of the shared memory.

    Returns:
        Name -> value: sizes in bytes, offsets in bytes, bitfields as byte, shift and width.

    Raises:
        BtfError: the kernel lacks a required field.
        KernelError: unknown processor, or a struct layout that the program does not support.
    """
    found = machine()
    values = _sizes(btf, geometry) | _task(btf, found) | _device(btf) | _calls(btf, found) | _in_place(btf)
    values |= _links() | _skb(btf) | _shared(btf) | _sock(btf) | _groups(btf) | _addresses(btf) | _udp(btf)
    return values | _guard(btf) | _conntrack(btf) | _multipath(btf)


def _sizes(btf: Btf, geometry: Geometry) -> dict[str, int | str]:
    """Sizes of shared records, and limits of loops."""
    return {
        "SEGMENT_SIZE": SEGMENT_SIZE,
        "SEGMENT_COUNT": geometry.segment_count,
        "SEGMENTS_MADE": geometry.segment_count,
        "SLACK": SLACK,
        "DISK_BLOCK": DISK_BLOCK,
        "UPCALLS_LISTED": UPCALLS_LISTED,
        "CAPTURE_MAX": CAPTURE_MAX,
        "OPTIONS_MAX": OPTIONS_MAX,
        "LABELS_MAX": LABELS_MAX,
        "OWNERS_MAX": OWNERS_MAX,
        "FLOWS_MAX": FLOWS_MAX,
        "HOLDERS_MAX": HOLDERS_MAX,
        "GROUP_MAX": GROUP_MAX,
        "GROUPS_MAX": GROUPS_MAX,
        "SHARED_AT_USE": SHARED_AT_USE,
        "OPEN_IN_SEVERAL": OPEN_IN_SEVERAL,
        "FORKS_MAX": FORKS_MAX,
        "DESCENDANTS_MAX": DESCENDANTS_MAX,
        "FRAGMENTS_MAX": FRAGMENTS_MAX,
        "SIGHTINGS": SIGHTINGS,
        "SIGHTING_PLACES": SIGHTING_PLACES,
        "UDP_CHAIN_MAX": UDP_CHAIN_MAX,
        "ADDRESSES_MAX": ADDRESSES_MAX,
        "JOINED_MAX": JOINED_MAX,
        "ABOVE_MAX": ABOVE_MAX,
        "HOOKS_MAX": HOOKS_MAX,
        "DESCRIPTORS_MAX": DESCRIPTORS_MAX,
        "DEVICES_MAX": DEVICES_MAX,
        "SLOTS": SLOTS,
        "LABELLED_WORDS": TGIDS // 64,
        "COUNTERS": len(COUNTERS),
        "PIECES_MAX": PIECES_MAX,
        "CANDIDATES": CANDIDATES,
        "RESERVE_TRIES": 32,
        "PAGE_BYTES": os.sysconf("SC_PAGE_SIZE"),
        "PAGE_STRUCT_SIZE": btf.size("page"),
    }


def _links() -> dict[str, int | str]:
    """Tests of the type of an interface (ARPHRD_*), by the link type of its frames."""
    return {
        f"{name}(type)": "(" + " || ".join(f"(type) == {kind}" for kind in device_types(link)) + ")"
        for name, link in (("IS_ETHERNET", ETHERNET), ("IS_RAW", RAW))
    }


def _task(btf: Btf, found: Machine) -> dict[str, int | str]:
    """The stack, names, ids and descriptors of a task, and the registers of its system call."""
    proof: dict[str, int | str] = {}
    where = softirqs(btf)
    if where is Softirqs.COUNTED:
        proof = {"TASK_SOFTIRQS": btf.offset("task_struct", _SOFTIRQS)}
    elif where is Softirqs.ON_TASK_STACK:
        proof = {"NO_PROOF": 1}
    return proof | {
        "ARGUMENT_1": btf.offset("pt_regs", found.argument_1),
        "REGS_SIZE": btf.size("pt_regs"),
        "REGS_SYSCALL": btf.offset("pt_regs", found.syscall),
        "SYSCALL_NUMBER_TYPE": found.syscall_type,
        "TASK_STACK": btf.offset("task_struct", "stack"),
        "TASK_FLAGS": btf.offset("task_struct", "flags"),
        "TASK_TGID": btf.offset("task_struct", "tgid"),
        "TASK_TID": btf.offset("task_struct", "pid"),
        "TASK_SWITCHES": btf.offset("task_struct", "nvcsw"),  # nivcsw follows it
        "TASK_START": btf.offset("task_struct", "start_boottime"),
        "TASK_LEADER": btf.offset("task_struct", "group_leader"),
        "TASK_COMM": btf.offset("task_struct", "comm"),
        "TASK_FILES": btf.offset("task_struct", "files"),
        "FILES_TABLE": btf.offset("files_struct", "fdt"),
        "FILES_COUNT": btf.offset("files_struct", "count"),
        "TABLE_SIZE": btf.offset("fdtable", "max_fds"),
        "TABLE_FILES": btf.offset("fdtable", "fd"),
    }


def _device(btf: Btf) -> dict[str, int | str]:
    """An interface, the interfaces on top of it, and its network namespace."""
    vlans: dict[str, int | str] = {}
    if btf.has("net_device", "vlan_info"):
        vlans = {
            "DEV_VLANS": btf.offset("net_device", "vlan_info"),
            "VLANS": btf.offset("vlan_info", "grp") + btf.offset("vlan_group", "vlan_devices_arrays"),
        }
    return vlans | {
        "DEV_IFINDEX": btf.offset("net_device", "ifindex"),
        "DEV_FLAGS": btf.offset("net_device", "flags"),
        "DEV_NET": btf.offset("net_device", "nd_net"),
        "DEV_NAME": btf.offset("net_device", "name"),
        "DEV_TYPE": btf.offset("net_device", "type"),
        "DEV_HEADER_OPERATIONS": btf.offset("net_device", "header_ops"),
        "HEADER_CREATE": btf.offset("header_ops", "create"),
        "DEV_ADDR": btf.offset("net_device", "dev_addr"),
        "DEV_ADDR_LEN": btf.offset("net_device", "addr_len"),
        "DEV_LINK_OPERATIONS": btf.offset("net_device", "rtnl_link_ops"),
        "DEV_UPPER": btf.offset("net_device", "adj_list"),  # upper and lower, each a list_head
        "ADJACENT_DEV": btf.offset("netdev_adjacent", "dev"),
        "ADJACENT_LIST": btf.offset("netdev_adjacent", "list"),
        "LINK_KIND": btf.offset("rtnl_link_ops", "kind"),
        "NET_COOKIE": btf.offset("net", "net_cookie"),
        "NET_INUM": btf.offset("net", "ns") + btf.offset("ns_common", "inum"),
    }


def _calls(btf: Btf, found: Machine) -> dict[str, int | str]:
    """Numbers of system calls, and the offsets of their arguments from the number, in bytes."""
    number = btf.offset("pt_regs", found.syscall)
    compat, bit = found.compat

    def at(argument: tuple[str, int]) -> int:
        return btf.offset("pt_regs", argument[0]) + argument[1] - number

    return {
        **{f"SYSCALL_{name.upper()}": value for name, value in found.calls.items()},
        **{f"COMPAT_{name.upper()}": value for name, value in found.compat_calls.items()},
        "CALL_ARGUMENT_0": at(found.arguments[0]),
        "CALL_ARGUMENT_2": at(found.arguments[1]),
        "CALL_ARGUMENT_0_COMPAT": at(found.compat_arguments[0]),
        "CALL_ARGUMENT_1_COMPAT": at(found.compat_arguments[1]),
        "TASK_COMPAT": btf.offset("task_struct", "thread_info") + btf.offset("thread_info", compat),
        "COMPAT_BIT": bit,
    }


def _in_place(btf: Btf, jit: Path = Path("/proc/sys/net/core/bpf_jit_enable")) -> dict[str, int | str]:
    """The kernel function that lets a program read memory at an address (bpf_rdonly_cast): since
    Linux 6.2, only with the JIT.
    """
    function = btf.function("bpf_rdonly_cast")
    with contextlib.suppress(OSError):
        if jit.read_text().strip() == "0":
            return {}
    if function is None:
        return {}
    types = {"WORDS": "timespec64", "SKB": "sk_buff", "DEVICE": "net_device", "FILES": "files_struct"}
    return {"RDONLY_CAST": function, **{f"{name}_TYPE": btf.number(of) for name, of in types.items()}}


def _skb(btf: Btf) -> dict[str, int | str]:
    """The fields of sk_buff, and the number of bytes from its start that contain them."""
    fields = (
        *("next", "dev", "sk", "len", "data_len", "skb_iif", "vlan_proto", "vlan_tci"),
        *("mac_header", "network_header", "protocol", "csum_start", "csum_offset", "end", "head", "data"),
        *("transport_header", "inner_network_header"),
    )
    values: dict[str, int | str] = {f"SKB_{field.upper()}": btf.offset("sk_buff", field) for field in fields}
    if btf.has("sk_buff", "_nfct"):
        values["SKB_CONNTRACK"] = btf.offset("sk_buff", "_nfct")
    span = (max(int(value) for value in values.values()) + 8 + 7) & ~7
    if span > 256:
        raise KernelError(f"struct sk_buff has its fields in the first {span} bytes; expected at most 256")
    # Up to Linux 6.1, a separate bit says whether there is a tag; later the tag is compared with
    # zero. csum_not_inet exists on kernels with SCTP, tc_skip_classify on those with actions of tc.
    fields_of_some = ("vlan_present", "csum_not_inet", "tc_skip_classify")
    optional = [field for field in fields_of_some if btf.has("sk_buff", field)]
    bits = ["pkt_type", "ip_summed", "encapsulation", *optional]
    if "vlan_present" not in bits:
        values["SKB_VLAN_ALL"] = btf.offset("sk_buff", "vlan_all")
    for field in bits:
        bit, width = btf.bits("sk_buff", field)
        values[f"SKB_{field.upper()}_BYTE"] = bit // 8
        values[f"SKB_{field.upper()}_SHIFT"] = bit % 8
        values[f"SKB_{field.upper()}_WIDTH"] = width
    return values | {"SKB_SPAN": span}


def _sock(btf: Btf) -> dict[str, int | str]:
    """The fields of struct sock that identify it; it starts with struct sock_common."""
    fields = (
        *("daddr", "rcv_saddr", "hash", "dport", "num", "family", "state", "bound_dev_if", "net"),
        *("v6_daddr", "v6_rcv_saddr", "listener", "node"),
    )
    values: dict[str, int | str] = {
        f"SOCK_{field.upper()}": btf.offset("sock_common", f"skc_{field}") for field in fields
    }
    short = max(int(values[f"SOCK_{field}"]) for field in ("HASH", "DPORT", "NUM", "FAMILY", "STATE"))
    span = max(int(value) for value in values.values()) + 16
    if span > 192:
        raise KernelError(f"struct sock_common has its fields in the first {span} bytes; expected at most 192")
    for name, field in (("REFCNT", "net_refcnt"), ("V6ONLY", "ipv6only")):
        bit, _ = btf.bits("sock_common", f"skc_{field}")
        values |= {f"SOCK_{name}_BYTE": bit // 8, f"SOCK_{name}_SHIFT": bit % 8}
    for flag in ("transparent", "freebind", "mc_all"):
        bit = _inet_flag(btf, flag)
        values |= {f"SOCK_{flag.upper()}_BYTE": bit // 8, f"SOCK_{flag.upper()}_SHIFT": bit % 8}
    return values | {
        "SOCK_SPAN": (span + 7) & ~7,
        "SOCK_SHORT": (short + 8) & ~7,  # the fields that identify a socket
        "SOCK_SOCKET": btf.offset("sock", "sk_socket"),
        "SOCK_LOCKED": btf.offset("sock", "sk_lock") + _owned(btf),
        "SOCK_PROTOCOL": btf.offset("sock", "sk_protocol"),
        "SOCK_TYPE": btf.offset("sock", "sk_type"),
        "SOCK_ENCAP": btf.offset("udp_sock", "encap_rcv"),
        "SOCK_REUSEPORT": btf.offset("sock", "sk_reuseport_cb"),
        "SOCK_SPORT": btf.offset("inet_sock", "inet_sport"),
        "SOCKET_SK": btf.offset("socket", "sk"),
        "SOCKET_FILE": btf.offset("socket", "file"),
        "FILE_PRIVATE": btf.offset("file", "private_data"),
        # Since Linux 6.13 a file_ref_t, which is one less than the number of references (commit 90ee6ed776c0).
        "FILE_COUNT": btf.offset("file", "f_count", "f_ref"),
        "FILE_COUNT_BIAS": int(btf.has("file", "f_ref")),
        "SOCKET_INODE": btf.offset("socket_alloc", "vfs_inode") + btf.offset("inode", "i_ino"),
        "REUSEPORT_SOCKETS": btf.offset("sock_reuseport", "num_socks"),
        "REUSEPORT_LIST": btf.offset("sock_reuseport", "socks"),
    }


def _inet_flag(btf: Btf, name: str) -> int:
    """The position of an option in struct inet_sock, in bits: a bitfield, since Linux 6.6 one of the flags."""
    number = btf.enumerator(f"INET_FLAGS_{name.upper()}")
    if number is None:
        return btf.bits("inet_sock", name)[0]
    return btf.offset("inet_sock", "inet_flags") * 8 + number


def _groups(btf: Btf) -> dict[str, int | str]:
    """The multicast groups of a socket: of IPv4 (struct ip_mc_socklist), and of IPv6."""
    number = btf.enumerator("INET_FLAGS_MC6_ALL")
    bit = btf.bits("ipv6_pinfo", "mc_all")[0] if number is None else btf.offset("inet_sock", "inet_flags") * 8 + number
    values: dict[str, int | str] = {
        "SOCK_GROUPS": btf.offset("inet_sock", "mc_list"),
        "SOCK_PINET6": btf.offset("inet_sock", "pinet6"),
        "PINET6_GROUPS": btf.offset("ipv6_pinfo", "ipv6_mc_list"),
        "MC6_ALL_IN_PINET6": int(number is None),  # up to Linux 6.5
        "MC6_ALL_BYTE": bit // 8,
        "MC6_ALL_SHIFT": bit % 8,
    }
    for name, of, fields in (
        ("JOINED", "ip_mc_socklist", ("next_rcu", "multi", "sfmode", "sflist")),
        ("JOINED6", "ipv6_mc_socklist", ("next", "addr", "sfmode", "sflist")),
    ):
        for word, field in zip(("NEXT", "ADDRESS", "MODE", "SOURCES"), fields, strict=True):
            values[f"{name}_{word}"] = btf.offset(of, field)
    values["JOINED_IFINDEX"] = btf.offset("ip_mc_socklist", "multi") + btf.offset("ip_mreqn", "imr_ifindex")
    return values


def _owned(btf: Btf) -> int:
    """The offset of `owned` in socket_lock_t, which a system call sets while it uses the socket:
    after `slock`; on Linux 7 before it.
    """
    return btf.offset("slock_owned", "owned") if btf.has("slock_owned", "owned") else btf.size("spinlock")


def _addresses(btf: Btf) -> dict[str, int | str]:
    """The addresses and multicast groups of an interface."""
    return {
        "DEV_IN_DEVICE": btf.offset("net_device", "ip_ptr"),
        "IN_ADDRESSES": btf.offset("in_device", "ifa_list"),
        "IN_GROUPS": btf.offset("in_device", "mc_list"),
        "ADDRESS_NEXT": btf.offset("in_ifaddr", "ifa_next"),
        "ADDRESS_LOCAL": btf.offset("in_ifaddr", "ifa_local"),
        "GROUP_NEXT": btf.offset("ip_mc_list", "next_rcu"),
        "GROUP_ADDRESS": btf.offset("ip_mc_list", "multiaddr"),
        "DEV_IN6_DEVICE": btf.offset("net_device", "ip6_ptr"),
        "IN6_ADDRESSES": btf.offset("inet6_dev", "addr_list"),
        "IN6_GROUPS": btf.offset("inet6_dev", "mc_list"),
        "ADDRESS6_LIST": btf.offset("inet6_ifaddr", "if_list"),
        "ADDRESS6_LOCAL": btf.offset("inet6_ifaddr", "addr"),
        "GROUP6_NEXT": btf.offset("ifmcaddr6", "next"),
        "GROUP6_ADDRESS": btf.offset("ifmcaddr6", "mca_addr"),
    }


def _udp(btf: Btf) -> dict[str, int | str]:
    """The table of UDP sockets: up to Linux 6.1 one for all namespaces, found by the measurement;
    later one per namespace.
    """
    values: dict[str, int | str] = {
        "UDP_TABLE_HASH": btf.offset("udp_table", "hash"),
        "UDP_TABLE_MASK": btf.offset("udp_table", "mask"),
        "UDP_SLOT_SIZE": btf.size("udp_hslot"),
        "UDP_SLOT_HEAD": btf.offset("udp_hslot", "head"),
        "NET_HASH_MIX": btf.offset("net", "hash_mix"),
        "SOCK_PROT": btf.offset("sock_common", "skc_prot"),
        "PROT_TABLE": btf.offset("proto", "h"),
    }
    if btf.has("netns_ipv4", "udp_table"):
        values["NET_UDP_TABLE"] = btf.offset("net", "ipv4") + btf.offset("netns_ipv4", "udp_table")
    return values


def _multipath(btf: Btf) -> dict[str, int | str]:
    """What a socket of TCP has of MPTCP; nothing if the kernel was built without it."""
    if not btf.has("mptcp_subflow_request_sock", "mp_join"):
        return {}
    bit, _ = btf.bits("mptcp_subflow_request_sock", "mp_join")
    return {
        "TCP_IS_MPTCP": btf.offset("tcp_sock", "is_mptcp"),
        "REQUEST_IS_MPTCP": btf.offset("tcp_request_sock", "is_mptcp"),
        "REQUEST_JOINS_BYTE": bit // 8,
        "REQUEST_JOINS_SHIFT": bit % 8,
    }


def _conntrack(btf: Btf) -> dict[str, int | str]:
    """An entry of conntrack; nothing if the kernel was built without it."""
    if not btf.has("sk_buff", "_nfct") or not btf.has("nf_conn", "tuplehash"):
        return {}
    return {
        "CONNTRACK_TUPLES": btf.offset("nf_conn", "tuplehash"),
        "CONNTRACK_STATUS": btf.offset("nf_conn", "status"),
        "CONNTRACK_TIMEOUT": btf.offset("nf_conn", "timeout"),
        "TUPLE_HASH_SIZE": btf.size("nf_conntrack_tuple_hash"),
        "TUPLE_HASH_TUPLE": btf.offset("nf_conntrack_tuple_hash", "tuple"),
        # The source is first: an address, then the port; the destination has the same.
        "TUPLE_TO": btf.offset("nf_conntrack_tuple", "dst"),
        "TUPLE_PORT": btf.size("nf_inet_addr"),
    }


def _guard(btf: Btf) -> dict[str, int | str]:
    """The kernel fields with everything that can translate, redirect or steal a packet after the
    hook (bpf/guard.h).

    If a field is missing, this kernel was built without it, or has renamed it. Linux 5.15 to 6.18
    have these names. For netfilter, `net.nf` shows which of the two it is.
    """
    values: dict[str, int | str] = {}
    if btf.has("net", "nf"):
        hooks = btf.offset("net", "nf")
        bit, width = btf.bits("nf_hook_ops", "hook_ops_type")
        values |= {
            "NET_HOOKS_V4": hooks + btf.offset("netns_nf", "hooks_ipv4"),
            "NET_HOOKS_V6": hooks + btf.offset("netns_nf", "hooks_ipv6"),
            "ENTRIES_COUNT": btf.offset("nf_hook_entries", "num_hook_entries"),
            "ENTRIES_HOOKS": btf.offset("nf_hook_entries", "hooks"),
            "ENTRY_SIZE": btf.size("nf_hook_entry"),
            "HOOK_PRIORITY": btf.offset("nf_hook_ops", "priority"),
            "HOOK_TYPE": bit // 8,
            "HOOK_TYPE_MASK": (1 << (width or 8)) - 1,
        }
        if btf.has("netns_nf", "defrag_ipv4_users") and btf.has("netns_nf", "defrag_ipv6_users"):
            values["NET_DEFRAG_USERS_V4"] = hooks + btf.offset("netns_nf", "defrag_ipv4_users")
            values["NET_DEFRAG_USERS_V6"] = hooks + btf.offset("netns_nf", "defrag_ipv6_users")
    if btf.has("net", "bpf"):
        values["NET_BPF"] = btf.offset("net", "bpf") + btf.offset("netns_bpf", "run_array")
    for name, fields in (
        ("DEV_TC_INGRESS", ("tcx_ingress", "miniq_ingress")),
        ("DEV_TC_EGRESS", ("tcx_egress", "miniq_egress")),
        ("DEV_NF_INGRESS", ("nf_hooks_ingress",)),
        ("DEV_NF_EGRESS", ("nf_hooks_egress",)),
        ("DEV_XDP", ("xdp_prog",)),
        ("DEV_PRIVATE_FLAGS", ("priv_flags",)),
    ):
        found = [field for field in fields if btf.has("net_device", field)]
        if found:
            values[name] = btf.offset("net_device", found[0])
    if "DEV_TC_INGRESS" in values and btf.has("tcf_proto_ops", "kind"):
        values |= {
            "FILTERS": btf.offset("mini_Qdisc", "filter_list"),
            "FILTER_NEXT": btf.offset("tcf_proto", "next"),
            "FILTER_OPERATIONS": btf.offset("tcf_proto", "ops"),
            "FILTER_KIND": btf.offset("tcf_proto_ops", "kind"),
        }
        if btf.has("net_device", "tcx_ingress"):  # since Linux 6.6
            values["TCX_PARENT"] = btf.offset("bpf_mprog_entry", "parent")
            values["TCX_QDISC"] = btf.offset("tcx_entry", "bundle") - btf.offset("tcx_entry", "miniq")
    return values


def _shared(btf: Btf) -> dict[str, int | str]:
    """The fields of skb_shared_info and of a page fragment: bio_vec up to Linux 6.8, then skb_frag."""
    fragment = "skb_frag" if btf.has("skb_frag", "offset") else "bio_vec"
    values: dict[str, int | str] = {
        f"SHARED_{field.upper()}": btf.offset("skb_shared_info", field)
        for field in ("nr_frags", "gso_size", "frag_list")
    }
    span = max(int(value) for value in values.values()) + 8
    if span > 64:
        raise KernelError(f"struct skb_shared_info has its fields in the first {span} bytes; expected at most 64")
    return values | {
        "SHARED_SPAN": (span + 7) & ~7,
        "SHARED_FRAGS": btf.offset("skb_shared_info", "frags"),
        "FRAGMENT_SIZE": btf.size(fragment),
        "FRAGMENT_PAGE": btf.offset(fragment, "netmem", "bv_page", "page"),
        "FRAGMENT_OFFSET": btf.offset(fragment, "offset", "bv_offset"),
        "FRAGMENT_LEN": btf.offset(fragment, "len", "bv_len"),
    }
