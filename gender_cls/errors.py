"""The one exception that a person is meant to read."""


class UserError(Exception):
    """Something that the user can mend: its text is one line naming the path or key and the way out.

    `train.py` and `predict.py` print it without a traceback.
    """
