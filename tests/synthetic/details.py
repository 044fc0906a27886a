"""What hangs on a process beside its files: credentials in full, limits, signals, namespaces of all kinds."""

from __future__ import annotations

from tests.synthetic.layout import Layout
from tests.synthetic.linux import LinuxGuest, Task
from tests.synthetic.structs import NEWER, OLDER

_TASK = """
    ptrace 0x30 u32
    atomic_flags 0x930 u64
    jobctl 0x938 u64
    parent 0x988 *task_struct
    pending 0xb78 sigpending
    blocked 0xb90 sigset
    sighand 0xb98 *sighand_struct
    last_siginfo 0xba0 *kernel_siginfo
    loginuid 0xba8 kuid
    sessionid 0xbac u32
    seccomp 0xbb0 seccomp
"""
_SIGNAL = """
    shared_pending 0x20 sigpending
    rlim 0x300 rlimit[16]
"""
_STRUCTS = """
sigset 8
    sig 0 u64[1]
sigpending 24
    signal 16 sigset
kernel_siginfo 48
    si_signo 0 i32
sigaction 32
    sa_handler 0 *void
k_sigaction 32
    sa 0 sigaction
sighand_struct 2080
    action 32 k_sigaction[64]
seccomp 16
    mode 0 i32
    filter_count 4 atomic
rlimit 16
    rlim_cur 0 u64
    rlim_max 8 u64
group_info 8
    ngroups 4 i32
    gid 8 kuid[0]
user_namespace 128
    ns 32 ns_common
uts_namespace 128
    ns 40 ns_common
ipc_namespace 128
    ns 48 ns_common
mnt_namespace 128
    ns 8 ns_common
cgroup_namespace 128
    ns 16 ns_common
time_namespace 128
    ns 24 ns_common
nsproxy 72
    uts_ns 8 *uts_namespace
    ipc_ns 16 *ipc_namespace
    mnt_ns 24 *mnt_namespace
    net_ns 0x28 *net
    time_ns 0x30 *time_namespace
    cgroup_ns 0x40 *cgroup_namespace
cred 184
    uid 4 kuid
    gid 8 kuid
    suid 12 kuid
    sgid 16 kuid
    euid 20 kuid
    egid 24 kuid
    fsuid 28 kuid
    fsgid 32 kuid
    securebits 36 u32
    cap_inheritable 40 kernel_cap
    cap_permitted 48 kernel_cap
    cap_effective 56 kernel_cap
    cap_bset 64 kernel_cap
    cap_ambient 72 kernel_cap
    security 80 *void
    user_ns 88 *user_namespace
    group_info 96 *group_info
lsm_blob_sizes 4
    lbs_cred 0 i32
aa_policy 16
    hname 8 *char
aa_profile 64
    base 0 aa_policy
    mode 16 i64
aa_label 80
    size 72 i32
    vec 80 *aa_profile[0]
"""
_CAPS = ("kernel_cap 8\n    val 0 u64\n", "kernel_cap 8\n    cap 0 u32[2]\n")
KINDS = ("uts", "ipc", "mnt", "time", "cgroup")


def extended(source: str, struct: str, more: str) -> str:
    """That struct of `source`, with more members."""
    found = source[source.index(f"{struct} ") :].split("\n")
    end = next((at for at, line in enumerate(found[1:], 1) if not line.startswith(" ")), len(found))
    return "\n".join(found[:end]) + more.rstrip() + "\n"


class DetailsGuest(LinuxGuest):
    """A guest whose tasks have credentials, limits, signals and namespaces in full."""

    def __init__(self, levels: int = 4, *, older: bool = False, scattered: bool = False, seed: int = 1) -> None:
        super().__init__(levels, older=older, scattered=scattered, seed=seed)
        base = (NEWER, OLDER) if older else (NEWER,)
        more = (
            _CAPS[older],
            _STRUCTS,
            extended(base[-1], "task_struct", _TASK),
            extended(NEWER, "signal_struct", _SIGNAL),
        )
        names = [line.split()[0] for text in more for line in text.splitlines() if line and not line.startswith(" ")]
        whole = Layout(*base, *more)
        self.profile.layout.structs.update({name: whole.structs[name] for name in names})
        self.user_ns = self.new("user_namespace", ns__inum=0xF0000100)
        self.groups = self.group_list()

    def group_list(self, *groups: int) -> int:
        at = self.alloc(8 + 4 * len(groups), "group_info")
        self.put("group_info", at, ngroups=len(groups))
        self.write(at + 8, b"".join(each.to_bytes(4, "little") for each in groups))
        return at

    def detailed(self, pid: int, name: str, **members: int) -> Task:
        """A task with credentials, signals, limits and namespaces of its own."""
        made = self.task(pid, name, **members)
        cred = self.new("cred", user_ns=self.user_ns, group_info=self.groups)
        made.cred = cred
        made.signal = self.new("signal_struct", nr_threads=1)
        kinds = {f"{kind}_ns": self.new(f"{kind}_namespace", ns__inum=0xF0000000 + 16 * pid + at)
                 for at, kind in enumerate(KINDS)}  # fmt: skip
        made.nsproxy = self.new("nsproxy", net_ns=self.init_net, **kinds)
        self.give(made, real_cred=cred, signal=made.signal, nsproxy=made.nsproxy, sighand=self.new("sighand_struct"),
                  loginuid__val=0xFFFFFFFF, sessionid=0xFFFFFFFF)  # fmt: skip
        return made

    def profile_label(self, *names: str, mode: int = 0) -> int:
        """What a credential's `security` points at: AppArmor's label of these profiles, 8 bytes in."""
        label = self.alloc(self.size("aa_label") + 8 * len(names), "aa_label")
        self.put("aa_label", label, size=len(names))
        for at, name in enumerate(names):
            profile = self.new("aa_profile", base__hname=self.string(name), mode=mode)
            self.word(label + self.offset("aa_label", "vec") + 8 * at, profile)
        blob = self.alloc(16, "blob")
        self.word(blob + 8, label)
        return blob
