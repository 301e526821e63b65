"""Every failure that a user could meet, each with the exit code that the command ends with."""


class HyenaError(Exception):
    """A failure that is told in one line: what was given, what is allowed, what to do. Base of all others."""

    exit_code = 1


class UsageError(HyenaError):
    """The command line, the environment or a configuration file asks for something that does not exist or fit."""

    exit_code = 2


class InputError(HyenaError):
    """The data that was given cannot be used as it is."""

    exit_code = 3


class FastaError(InputError):
    """A FASTA file is empty, truncated, not DNA, or not readable as FASTA."""


class IntervalError(InputError):
    """Intervals leave their contig, overlap where they must not, or name an unknown contig."""


class StaleIndexError(InputError):
    """A pack or an index no longer belongs to the file that it was made from."""


class CheckpointError(InputError):
    """A model folder or checkpoint has missing, extra or mis-shaped tensors, or holds what may not be unpickled."""


class ProbeError(CheckpointError):
    """The weights do not give the logits that the model folder promises in probe.json."""


class SequenceTooLong(InputError):
    """A sequence is longer than the model's filters."""


class HubError(HyenaError):
    """A model could not be fetched from the hub."""


class DownloadError(HyenaError):
    """A data set could not be fetched."""


class RunFolderError(UsageError):
    """A run folder is in use, or belongs to another configuration."""


class WriteError(HyenaError):
    """A file could not be written; what was there before is unchanged."""


class MissingExtra(HyenaError):
    """An optional part is not installed."""


class NotFiniteError(HyenaError):
    """Training met a loss or a gradient that is not a number."""


class LossTooLarge(HyenaError):
    """Quantisation costs more bits per base than was allowed; nothing was written."""


class OutOfMemory(HyenaError):
    """The device's memory does not hold the job; 137 is what the kernel's own kill gives."""

    exit_code = 137


class ShapeError(UsageError, ValueError):
    """The tensors given to an operator do not fit each other, or have a dtype that it does not take."""


class KernelError(HyenaError):
    """A Triton kernel did not compile or run on this device."""


class HyenaWarning(UserWarning):
    """Something that a user should know but that does not stop the work."""


class Interrupted(BaseException):
    """A signal asked for the end of the work; what was done is saved. Ends with 128 + the signal's number."""

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
