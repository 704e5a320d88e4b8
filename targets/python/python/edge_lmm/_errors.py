"""Exceptions. Their texts are those of the command line."""


class Error(RuntimeError):
    """A model cannot be loaded or a request not be answered."""


class RecordError(Error):
    """The record is missing, damaged, or of another version."""


class InputError(Error, ValueError):
    """An image, video, sound or setting cannot be used."""


class PromptTooLongError(Error, ValueError):
    """The request is longer than the context of the model."""


class DeviceError(Error):
    """The device is missing, or the package was built without it."""


class OutOfMemoryError(Error, MemoryError):
    """The model or the request does not fit into memory."""
