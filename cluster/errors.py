"""Every error that this project raises on purpose, each with its exit code.

    OrchestratorError                1    anything below
    ├── ConfigError                  2    a setting, an argument or an input file is wrong
    ├── StoreError                   1    the object store refused or failed
    │   ├── StoreAccessError         2    wrong keys, no permission, no such bucket, wrong endpoint
    │   ├── StoreUnavailableError    1    no answer within the retry budget
    │   │   └── DiskFullError        1    the disk, or the quota, has no room for what was to be written
    │   ├── IntegrityError           100  a stored object or a download is damaged
    │   └── PreconditionError        1    somebody else wrote the object first (conditional PUT)
    ├── NotFoundError                102  the named dataset, run, sweep, model, endpoint or job does not exist
    ├── ClusterError                 2    no Ray cluster, another version, or too small for the request
    │   └── WorkerLostError          2    a process that was to do something for a driver died
    ├── RunFailedError               100  a training, a sweep or a job ended with an error
    ├── RunUnfinishedError           101  it stopped before its end and can be resumed
    │   └── LeaseLostError           101  another driver took the run over; it goes on there
    └── RunCancelledError            103  somebody stopped it
        └── RunInterruptedError      130  with Ctrl-C, here

A message follows one grammar: ``<key or object> must <rule>, got <value>. <cure>.``
"""


class OrchestratorError(Exception):
    """Base of the tree; ``exit_code`` is what the command line ends with."""

    exit_code = 1


class ConfigError(OrchestratorError):
    """A setting, an argument or an input file is wrong; raised before any machine starts."""

    exit_code = 2


class StoreError(OrchestratorError):
    """The object store refused or failed."""


class StoreAccessError(StoreError):
    """The store is there but will not do it: wrong keys, no permission, no such bucket."""

    exit_code = 2


class StoreUnavailableError(StoreError):
    """The store gave no usable answer within the retry budget."""


class DiskFullError(StoreUnavailableError):
    """A disk of this machine, or the store, has no room for what was to be written."""


class IntegrityError(StoreError):
    """A stored object or a download is damaged: not the bytes of its SHA-256, or not what its place must hold."""

    exit_code = 100


class PreconditionError(StoreError):
    """A conditional write lost: the object already exists, or changed since it was read."""


class NotFoundError(OrchestratorError):
    """The named dataset, run, sweep, model, endpoint, job or object does not exist."""

    exit_code = 102


class ClusterError(OrchestratorError):
    """There is no usable Ray cluster: none running, another version, or too small."""

    exit_code = 2


class WorkerLostError(ClusterError):
    """A process that was to do something for a driver died."""


class RunFailedError(OrchestratorError):
    """A training, a sweep or a job ended with an error of its own."""

    exit_code = 100


class RunUnfinishedError(OrchestratorError):
    """A training or a sweep stopped before its end; it can be resumed."""

    exit_code = 101


class LeaseLostError(RunUnfinishedError):
    """Another driver took the run over; what this one still writes would not count."""


class RunCancelledError(OrchestratorError):
    """Somebody stopped the training, the sweep or the job."""

    exit_code = 103


class RunInterruptedError(RunCancelledError):
    """The person at this terminal stopped the training or the sweep with Ctrl-C."""

    exit_code = 130
