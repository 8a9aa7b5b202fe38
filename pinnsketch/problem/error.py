"""ProblemError: what is raised where a problem is not well posed as it is written."""


class ProblemError(ValueError):
    """A problem that cannot be solved as it is written."""
