"""volatility3 on the RAM file of the running guest, with a symbol table that vmi-inside made.

Its own way to a symbol table (dwarf2json on a debug package) is not counted. What it reads it keeps, so that a second
answer in one process shows the first one's moment; that is its fastest, and is what is timed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

from benchmarks.contestants import Absent
from benchmarks.scene import KIB, MIB, SYMBOLS, Scene

_PLUGINS: Final = {
    "processes": "linux.pslist", "sockets": "linux.sockstat", "open files": "linux.lsof", "modules": "linux.lsmod",
}  # fmt: skip


class Contestant:
    """See `benchmarks.contestants`."""

    def __init__(self, scene: Scene) -> None:
        if not scene.ram:
            raise Absent("the guest's RAM is no file that begins at address 0 without holes")
        self.scene = scene

    def attach(self) -> None:
        from volatility3 import framework, plugins, symbols
        from volatility3.framework import automagic, constants, contexts
        from volatility3.framework import plugins as making

        (Path(self.scene.folder) / "cache").mkdir(exist_ok=True)
        constants.CACHE_PATH = str(Path(self.scene.folder) / "cache")
        constants.OFFLINE = True
        symbols.__path__ = [self.scene.symbols, *symbols.__path__]
        framework.import_files(plugins, True)
        self.known = framework.list_plugins()
        self.contexts, self.making, self.automagic = contexts, making, automagic
        self.ready: dict[str, Any] = {}
        self._plugin("linux.lsmod.Lsmod")

    def _plugin(self, name: str) -> Any:
        """A plugin that is ready to run, in a context of its own, as for each command."""
        if name not in self.ready:
            kind = self.known[name]
            context = self.contexts.Context()
            context.config["automagic.LayerStacker.single_location"] = "file://" + self.scene.ram
            chosen = self.automagic.choose_automagic(self.automagic.available(context), kind)
            self.ready[name] = self.making.construct_plugin(context, chosen, kind, "plugins", None, None)
        return self.ready[name]

    def _rows(self, name: str) -> list[list[Any]]:
        grid = self._plugin(name).run()
        rows: list[list[Any]] = []
        grid.populate(lambda node, gathered: gathered.append(node.values) or gathered, rows)
        return rows

    @property
    def _kernel(self) -> Any:
        plugin = self._plugin("linux.lsmod.Lsmod")
        return plugin.context.modules[plugin.config["kernel"]]

    def processes(self) -> Any:
        return self._rows("linux.pslist.PsList")

    def sockets(self) -> Any:
        return self._rows("linux.sockstat.Sockstat")

    def files(self) -> Any:
        return self._rows("linux.lsof.Lsof")

    def modules(self) -> Any:
        return self._rows("linux.lsmod.Lsmod")

    def symbols(self) -> Any:
        return [self._kernel.get_absolute_symbol_address(name) for name in SYMBOLS]

    def _read(self, size: int) -> bytes:
        layer = self._plugin("linux.lsmod.Lsmod").context.layers[self._kernel.layer_name]
        return bytes(layer.read(self.scene.next() & layer.address_mask, size))

    def read_page(self) -> Any:
        return self._read(4 * KIB)

    def read_bulk(self) -> Any:
        return self._read(MIB)

    def plain(self, question: str, answer: Any) -> Any:
        if question == "processes":
            return {int(row[1]): (int(row[3]), str(row[4])) for row in answer}
        if question == "sockets":
            return {int(row[10]) for row in answer if str(row[8]) == "TCP" and str(row[13]) == "LISTEN"}
        if question == "open files":
            found: dict[int, int] = {}
            for row in answer:
                found[int(row[0])] = found.get(int(row[0]), 0) + 1
            return found
        if question == "modules":
            return {str(row[1]) for row in answer}
        if question == "5 symbols":
            top = ~0 << 48 & (1 << 64) - 1  # its addresses are cut to 48 bits
            return {name: int(address) | top for name, address in zip(SYMBOLS, answer, strict=True)}
        return answer

    @staticmethod
    def command(scene: Scene, question: str) -> list[str] | None:
        return [
            str(Path(sys.executable).parent / "vol"), "-q", "--offline", "-s", scene.symbols,
            "--cache-path", str(Path(scene.folder) / "cache"), "-f", scene.ram, _PLUGINS[question],
        ]  # fmt: skip
