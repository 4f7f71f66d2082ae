"""Which failures of a worker end a training at once: those that a restart would meet again."""

from typing import Any

from ray.train import TrainingFailedError, UserCallback
from ray.train.v2._internal.execution.context import TrainRunContext

from bintally.errors import BinTallyError, RunError, SourceUnreachableError
from data.session import unwrap
from train.memory import is_out_of_memory


class GiveUp(UserCallback):
    """Ends a training on errors of ours and on exhausted memory; what Train restarts is what may go away."""

    def after_exception(self, run_context: TrainRunContext, worker_exceptions: dict[int, Exception]) -> Any:  # noqa: ANN401, ARG002  # Ray's signature
        """Called by Train's controller; an exception from here ends the training."""
        for failure in worker_exceptions.values():
            if final := final_error(failure):
                raise final


def causes_of(error: TrainingFailedError) -> list[BaseException]:
    """The error itself, what the workers raised, and what the controller did."""
    failures = [error, *getattr(error, "worker_failures", {}).values(), getattr(error, "controller_failure", None)]
    return [_unwrapped(failure) for failure in failures if failure is not None]


def final_failure(error: TrainingFailedError) -> BinTallyError | None:
    """The error of ours that ended a training for good, or None if another try may help."""
    return next((final for cause in causes_of(error) if (final := final_error(cause))), None)


def final_error(failure: BaseException) -> BinTallyError | None:
    """The error to end with, or None if a restart may help."""
    error = _unwrapped(failure)
    if is_out_of_memory(error):
        return RunError(
            f"out of memory: {str(error).splitlines()[0]}; choose a smaller global_batch_size, or"
            " compute.fit_memory=true, which takes fewer photos at once"
        )
    ours = error if isinstance(error, BinTallyError) else unwrap(error)
    return None if isinstance(ours, SourceUnreachableError) else ours


def _unwrapped(failure: BaseException) -> BaseException:
    """What a worker raised; Train wraps it, with its traceback as text."""
    cause: BaseException = getattr(failure, "_base_exc", failure)
    return cause
