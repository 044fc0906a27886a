"""Control of guests: pauses, writes, the journal, signals, and what becomes of a guest whose controller is killed."""

from pathlib import Path

#: The checkout.
ROOT = Path(__file__).parents[2]
