"""The errors that the rules of the domain raise; each carries one sentence that can be shown to a person."""


class DomainError(Exception):
    """A rule refuses an act, and nothing has changed; `str(error)` says what is wrong and what would be right."""


class InvalidError(DomainError):
    """A value cannot be used."""


class ForbiddenError(DomainError):
    """The person may not do this act."""


class NotFoundError(DomainError):
    """Nothing exists under this name or number."""


class ConflictError(DomainError):
    """The act does not fit the current state: it comes too late or too early."""


class OverError(ConflictError):
    """The act comes too late for good: no other input would make it possible."""


class AwayError(DomainError):
    """The database cannot be reached now; the same act may succeed in some minutes."""
