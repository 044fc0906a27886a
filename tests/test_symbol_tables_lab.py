"""Where kallsyms' own tables are, held against what the kernel tells crash tools of them."""

from __future__ import annotations

import pytest

from tests.lab.guest import LabGuest
from vmi_inside.linux import vmcore
from vmi_inside.linux.symbols.symbol_tables import symbol_tables
from vmi_inside.profile import vmcoreinfo


def test_tables_are_where_vmcoreinfo_says(lab_each: LabGuest) -> None:
    with lab_each.attach() as seen:
        found = symbol_tables(seen.kernel)
        info = vmcoreinfo.parse(vmcore.vmcoreinfo(seen.kernel))
    told = {name: vmcoreinfo.number(info, f"SYMBOL({name})", 16) for name in found if f"SYMBOL({name})" in info}
    if not told:
        pytest.skip("before 6.0 kernels do not tell")
    assert told == {name: found[name] for name in told}
    assert {"kallsyms_names", "kallsyms_token_table", "kallsyms_num_syms"} <= set(told)
    assert "kallsyms_markers" in found
