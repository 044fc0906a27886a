"""The profiles that were kept on disk: which there are, and taking them away.

Knows the cache's files as rows. What a profile is, is `profile`'s; how it is kept, `profile.cache`'s.
"""

from __future__ import annotations

import numpy as np

from vmi_inside.profile.cache import Cache, Kept
from vmi_inside.table import Table, Text, text
from vmi_inside.types import I64


class Profiles(Table):
    """One row for each kernel build whose profile is kept."""

    release: Text
    build_id: Text
    size: I64  # bytes on disk
    written: I64  # when the file was written, seconds since the epoch
    banner: Text
    path: Text


def profiles(cache: Cache | None = None) -> Profiles:
    """What is kept, by release. A file that is damaged or another user's is marked in `fault`."""
    found = sorted((cache or Cache()).kept(), key=lambda one: (one.release, one.build_id))
    return Profiles({
        "release": text(one.release for one in found),
        "build_id": text(one.build_id for one in found),
        "size": np.array([one.size for one in found], dtype=np.int64),
        "written": np.array([one.written for one in found], dtype=np.int64),
        "banner": text(one.banner for one in found),
        "path": text(str(one.path) for one in found),
        "fault": text(one.fault for one in found),
    })  # fmt: skip


def remove(which: str, cache: Cache | None = None) -> list[Kept]:
    """Take away the profiles of the builds whose id begins so, or of that release; gives those that were."""
    wanted = [
        one for one in (cache or Cache()).kept()
        if which and (one.build_id.startswith(which) or one.release == which)
    ]  # fmt: skip
    for one in wanted:
        one.path.unlink(missing_ok=True)
    return wanted
