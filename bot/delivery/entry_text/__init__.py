"""How each kind of entry reads as a post. A kind is one function here; docs/how-to-add-an-entry-kind.md shows how."""

from bot.delivery.entry_text import allocation, lab, project, run
from bot.delivery.entry_text.registry import TEXTS, Payload, general

__all__ = ["TEXTS", "Payload", "allocation", "general", "lab", "project", "run"]
