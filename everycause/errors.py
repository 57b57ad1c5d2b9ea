"""The one kind of error that is shown to a user as a sentence instead of a traceback."""


class UserError(ValueError):
    """Something outside the code is wrong: params, data, a file, a missing artifact.

    The message says what is wrong, where, and what to do.

    Everything else that is raised is a fault of the program and keeps its traceback.
    """
