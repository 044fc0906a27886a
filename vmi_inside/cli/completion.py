r"""`vmi-inside completion`: the script that teaches a shell the commands, domains and columns.

zsh and fish use click's scripts. bash gets one of our own, because bash takes `file:/path` for three words, and click's
does not put them together again.
"""

from __future__ import annotations

from typing import Final

import click

from vmi_inside.cli.app import cli
from vmi_inside.cli.messages import PROGRAM
from vmi_inside.cli.sink import emit

_VARIABLE: Final = "_VMI_INSIDE_COMPLETE"
_BASH: Final = r"""_vmi_inside_complete() {
    local line=${COMP_LINE:0:COMP_POINT} current kind word
    local -a words
    read -ra words <<< "$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    current=${words[${#words[@]}-1]}
    # Readline replaces only what follows the last colon, if it takes colons for the end of words.
    local before=
    [[ $COMP_WORDBREAKS == *:* && $current == *:* ]] && before=${current%:*}:
    COMPREPLY=()
    while IFS=, read -r kind word; do
        [[ $kind == plain ]] || continue
        [[ $word == */ || $word == *: ]] && compopt -o nospace
        COMPREPLY+=("${word#"$before"}")
    done < <(COMP_WORDS="${words[*]}" COMP_CWORD=$((${#words[@]} - 1)) \
             _VMI_INSIDE_COMPLETE=bash_complete "$1" 2>/dev/null)
}
complete -o nosort -F _vmi_inside_complete vmi-inside
"""


@click.command(
    epilog='\b\nExamples:\n  eval "$(vmi-inside completion bash)"             # in ~/.bashrc\n'
    '  vmi-inside completion zsh > "${fpath[1]}/_vmi-inside"\n'
    "  vmi-inside completion fish > ~/.config/fish/completions/vmi-inside.fish"
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for a shell."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if shell == "bash" or kind is None:
        emit([_BASH])
    else:
        emit([kind(cli, {}, PROGRAM, _VARIABLE).source()])
