"""A profile as Rekall's JSON, and as a `libvmi.conf` entry with its System.map.

Knows these formats. Rekall's last release is of 2017; its profiles are what LibVMI, DRAKVUF and others read. Types come
from `isf`, which says the same in another form. Addresses are those that the kernel was linked at: readers find the
slide.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from vmi_inside.errors import NoMember, WrongProfile
from vmi_inside.profile.profile import LINKED_AT, Profile

_NEST_LIMIT: Final = 32
#: LibVMI's names for the members that it must know of.
_OFFSETS: Final = (
    ("linux_name", "task_struct", ("comm",)),
    ("linux_tasks", "task_struct", ("tasks",)),
    ("linux_mm", "task_struct", ("mm",)),
    ("linux_pid", "task_struct", ("pid",)),
    ("linux_pgd", "mm_struct", ("pgd",)),
)


def rekall(table: Mapping[str, Any], release: str) -> dict[str, Any]:
    """A symbol table of volatility3's format (`isf.isf`) as a Rekall profile; members of nameless structs in line."""
    kernel, enums = table["symbols"], table["enums"]
    functions = {name: each["address"] for name, each in kernel.items() if each["type"]["kind"] == "function"}
    return {
        "$METADATA": {
            "ProfileClass": "Linux", "Type": "Profile", "Name": release, "Version": 1, "arch": "AMD64",
            "Producer": "vmi-inside",
        },
        "$STRUCTS": {
            name: [each["size"], dict(_members(table["user_types"], each, 0, 0))]
            for name, each in table["user_types"].items()
        },
        "$CONSTANTS": {name: each["address"] for name, each in kernel.items()},
        "$FUNCTIONS": functions,
        "$ENUMS": {
            name: {str(value): label for label, value in each["constants"].items()} for name, each in enums.items()
        },
        "$REVENUMS": {name: each["constants"] for name, each in enums.items()},
        "$CONSTANT_TYPES": {
            name: _type(each["type"]) for name, each in kernel.items()
            if each["type"] != {"kind": "base", "name": "void"} and name not in functions
        },
    }  # fmt: skip


def _members(types: Mapping[str, Any], struct: Mapping[str, Any], at: int, depth: int) -> Iterator[tuple[str, Any]]:
    if depth > _NEST_LIMIT:
        raise WrongProfile("a nameless struct is nested too deeply")
    for name, field in struct["fields"].items():
        if field.get("anonymous") and field["type"]["kind"] in ("struct", "union"):
            yield from _members(types, types[field["type"]["name"]], at + field["offset"], depth + 1)
        else:
            yield name, [at + field["offset"], _type(field["type"])]


def _type(told: Mapping[str, Any]) -> list[Any]:
    kind = told["kind"]
    if kind == "pointer":
        return ["Pointer", _target(told["subtype"])]
    if kind == "array":
        return ["Array", {"count": told["count"], **_target(told["subtype"])}]
    if kind == "bitfield":
        start, target = told["bit_position"], _target(told["type"])
        return ["BitField", {"start_bit": start, "end_bit": start + told["bit_length"], **target}]
    if kind == "enum":
        return ["Enumeration", {"enum_name": told["name"], "target": "unsigned int"}]
    if kind == "function":
        return ["Function", {}]
    return ["Void" if told["name"] == "void" else told["name"], None]


def _target(told: Mapping[str, Any]) -> dict[str, Any]:
    name, arguments = _type(told)
    return {"target": name, "target_args": arguments} if arguments else {"target": name}


def system_map(profile: Profile) -> Iterator[str]:
    """The lines of a System.map, ascending: address, nm's letter, name. Absolute and per-CPU symbols come first."""
    for row in range(len(profile.symbols)):
        one = profile.symbols[row]
        value = one.value if one.fixed else (one.value + LINKED_AT) % (1 << 64)
        yield f"{value:016x} {one.type} {one.name}"


def libvmi(profile: Profile, root: int, name: str, key: str, path: str) -> str:
    """An entry for /etc/libvmi.conf: `key` is sysmap, rekall_profile or volatility_ist, `path` that file's.

    Beside the offsets, which hold for this kernel, it says where the kernel runs in this boot, so that LibVMI need not
    search; after a reboot these lines are to be made anew, or taken out.
    """
    lines = ['ostype = "Linux";', f'{key} = "{_quoted(path)}";']
    for label, struct, members in _OFFSETS:
        try:
            lines.append(f"{label} = {profile.struct(struct).member(*members).offset:#x};")
        except NoMember:
            continue
    lines += [
        "# of this boot:",
        f"linux_init_task = {profile.symbol('init_task'):#x};",
        f"linux_kaslr = {profile.slide:#x};",
        f"kpgd = {root:#x};",
    ]
    body = "".join(f"    {line}\n" for line in lines)
    return f"# {_quoted(profile.release)}, build id {profile.build_id or 'unknown'}\n{_quoted(name)} {{\n{body}}}\n"


def _quoted(text: str) -> str:
    """Without what would end the string, or the entry: names of guests and files can hold anything."""
    return "".join(c if c.isprintable() and c not in '"{};\\' else "_" for c in text)
