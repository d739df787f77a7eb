"""What is said of data that cannot be used."""


class DataError(ValueError):
    """Data that cannot be used as it is; the message says what was found, what was expected, and how to mend it."""


class UnreadableItem(DataError):
    """One item that cannot be read, such as a corrupt picture.

    Args:
        reason: what is wrong with it.
        is_lasting: whether reading the same bytes again must fail again. False where the disk, the network or the
            memory failed, or a decoder is missing: nothing may remember such an item as unreadable.
    """

    def __init__(self, reason: str, is_lasting: bool = True):
        super().__init__(reason)
        self.is_lasting = is_lasting

    def __reduce__(self):
        """Through another process, with both arguments."""
        return type(self), (str(self), self.is_lasting)
