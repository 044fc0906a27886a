"""Tools that are missing, too old, or fail: said in one line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from vmi_inside.bridges.foreign import Foreign, require
from vmi_inside.errors import GuestGone, ToolFailed, Unsupported


def installed(folder: Path, tool: str, release: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of that name and release, before all others."""
    (folder / f"{tool}.py").write_text("")
    (folder / f"{tool}-{release}.dist-info").mkdir()
    (folder / f"{tool}-{release}.dist-info" / "METADATA").write_text(f"Name: {tool}\nVersion: {release}\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, tool, raising=False)


@pytest.mark.parametrize(("tool", "old", "needed"), [("volatility3", "2.5.2", "2.11"), ("drgn", "0.0.33", "0.1")])
def test_an_old_release_is_refused(
    tool: str, old: str, needed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == tool}
    installed(tmp_path, tool, old, monkeypatch)
    with pytest.raises(Unsupported) as refused:
        require(tool)
    assert f"{tool} {old} is too old, {needed} is needed" in str(refused.value)
    assert f"vmi-inside[{tool}]" in str(refused.value)
    sys.modules.pop(tool, None)
    sys.modules.update(kept)


@pytest.mark.parametrize("release", ["2.28.2", "2.11", "3.0.0rc1"])
def test_a_newer_one_is_taken(release: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "volatility3"}
    installed(tmp_path, "volatility3", release, monkeypatch)
    assert require("volatility3").__name__ == "volatility3"
    sys.modules.pop("volatility3", None)
    sys.modules.update(kept)


def test_what_a_tool_raises_is_one_line() -> None:
    with (
        pytest.raises(ToolFailed, match=r"^drgn failed: KeyError: 'nothing' \(.*test_foreign\.py:\d+\)$"),
        Foreign("drgn"),
    ):
        raise KeyError("nothing")
    with pytest.raises(GuestGone), Foreign("drgn"):
        raise GuestGone("web01: gone")
    with pytest.raises(KeyboardInterrupt), Foreign("drgn"):
        raise KeyboardInterrupt
