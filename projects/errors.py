"""The one family of errors that the rules of the domain raise; each carries a sentence fit to show a person."""


class DomainError(Exception):
    """Nothing was changed; `str(error)` says in one sentence what is wrong and what would be right."""


class InvalidError(DomainError):
    """A value that was given cannot be used."""


class ForbiddenError(DomainError):
    """This person may not do this."""


class NotFoundError(DomainError):
    """What was named does not exist."""


class ConflictError(DomainError):
    """The state has moved on: it is too late, or too early, for this."""
