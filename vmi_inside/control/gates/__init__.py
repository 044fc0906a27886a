"""Gates: a security policy put into a running guest from outside, and taken out again.

A gate is a rule: these operations are refused to these tasks. The functions in which the kernel asks its security
modules begin with a NOP for tracing; a jump there leads to a few instructions in unused room of the kernel's text, and
these read the rules. `place` and `entries` find room and functions, `offsets` what the code must know, `stub` is the
code, `layout` what lies in the guest, `rules` whom a rule is for; `standing` tells what is there, `placing` changes it.
"""
