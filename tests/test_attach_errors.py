"""Whatever goes wrong while a kernel is learned ends in one typed error that names the target."""

from __future__ import annotations

import pytest

from vmi_inside import errors, guest


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (errors.PageFault(0x1000, 2, 3), errors.UnknownKernel),
        (errors.NoMemory(0x1000), errors.UnknownKernel),
        (errors.NoSymbol("init_task"), errors.UnknownKernel),
        (errors.GuestGone("it ended"), errors.GuestGone),
    ],
)
def test_errors_while_learning(
    monkeypatch: pytest.MonkeyPatch, raised: errors.VmiError, kind: type[errors.VmiError]
) -> None:
    def learn(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr(guest, "learn", learn)
    with pytest.raises(kind, match="web01: "):
        guest._learned("web01", None, None, live=True)
