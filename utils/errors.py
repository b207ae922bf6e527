"""The errors a task can end with, each with the code that the platform knows (SPEC section 4)."""


class ExecutorError(Exception):
    """Any failure we can put into words.

    The text says what is wrong, where (file, line, key) and what to do, in one line.
    """

    code = 160004


class StoppedError(ExecutorError):
    """The platform, or a person, asked the task to end."""


class BusyError(ExecutorError):
    """Another process has the file or folder."""


class ConfigError(ExecutorError):
    """env.yaml, config.yaml or a command line holds something that can't be used."""

    code = 300001


class DatasetError(ExecutorError):
    """An index file, an annotation file or a data set can't be used."""

    code = 300002


class ImageError(ExecutorError):
    """A picture can't be read."""

    code = 300003


class WeightsError(ExecutorError):
    """A weights file is missing, damaged, hostile or doesn't fit the task."""

    code = 300004


class ObjectTypeError(ExecutorError):
    """The task asks for something else than detection."""

    code = 300005


class DeviceError(ExecutorError):
    """CUDA failed."""

    code = 300101


class NoDeviceError(ExecutorError):
    """A GPU that was asked for is not there."""

    code = 300102


class DeviceMemoryError(ExecutorError):
    """Memory ran out, on the device or in the process."""

    code = 300103


class NotFiniteError(ExecutorError):
    """The loss became NaN or infinite."""

    code = 300201


class NetworkError(ExecutorError):
    """Something had to be reached over the network and was not."""

    code = 300301
